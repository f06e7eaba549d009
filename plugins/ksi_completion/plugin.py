"""The hooks of the conversations and their turns."""

from collections.abc import AsyncIterator
from typing import Final

from ksi_completion.acceptance import Acceptance, key_of
from ksi_completion.handlers import Handlers
from ksi_completion.news import News
from ksi_completion.prompts import Prompts
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import Store
from ksi_completion.sweep import Sweep
from ksi_completion.turns import Turns
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Context
from ksi_daemon.supervisor import RestartPolicy
from ksi_postgres.database import Database
from ksi_workflows.api import Workflows

FOR_EVER: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=10.0, max_restarts=1_000_000)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(
        requires=("postgres", "workflows", "models", "tools"), settings=CompletionSettings
    )


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Have turns while the daemon runs."""
    settings: CompletionSettings = plugin.settings
    database = plugin.service(Database)
    workflows = plugin.service(Workflows)
    store = Store(database, lambda: workflows.office)
    news = News(store)

    async def start(run: str, context: Context) -> None:
        await workflows.start(turns.turn, id=key_of(context.tenant, run))

    acceptance = Acceptance(settings, store, plugin.bus, start)
    turns = Turns(settings, store, plugin.bus, news, Prompts(store).prompt, acceptance.begin)
    sweep = Sweep(settings, store, acceptance, workflows, turns.give_up)
    workflows.register(turns.turn)
    async with acceptance:
        plugin.add(Handlers(settings, store, acceptance, turns, news, workflows, plugin.bus))
        await news.listen(database)
        plugin.start_task("teller", news.run, FOR_EVER)
        plugin.start_task("sweep", sweep.run, FOR_EVER)
        yield
        news.unlisten(database)

"""The hooks of the conversations and their turns."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ksi_completion import tokens
from ksi_completion.acceptance import Acceptance, key_of
from ksi_completion.context import Contexts
from ksi_completion.conversation_handlers import ConversationHandlers
from ksi_completion.conversations import Conversations
from ksi_completion.handlers import Handlers
from ksi_completion.locks import Locks
from ksi_completion.previews import Previews
from ksi_completion.profiles import Profiles
from ksi_completion.prompts import Prompts
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import Store
from ksi_completion.summaries import Summaries
from ksi_completion.sweep import Sweep
from ksi_completion.tooling import Tooling
from ksi_completion.turns import Turns
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Context
from ksi_daemon.supervisor import RestartPolicy
from ksi_postgres.database import Database
from ksi_postgres.news import News
from ksi_workflows.api import Workflows

CHANNEL: Final = "ksi_completion"
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
    news = News(CHANNEL, database)

    async def start(run: str, context: Context) -> None:
        # The sweep begins it again where it was forgotten: a turn's own writes come later.
        await workflows.start(turns.turn, id=key_of(context.tenant, run), is_light=True)

    settled = asyncio.Event()

    async def watch_plugins() -> None:
        for loaded in list(plugin.daemon.loader.plugins.values()):
            if loaded.name != plugin.name:
                await loaded.settled.wait()
        settled.set()

    profiles = Profiles(plugin.bus)
    acceptance = Acceptance(settings, store, profiles, news, start)
    conversations = Conversations(database)
    calibration = tokens.Calibration()
    contexts = Contexts(conversations, plugin.bus, settings, calibration)
    summaries = Summaries(conversations, plugin.bus, settings)
    prompts = Prompts(contexts, summaries, calibration)
    turns = Turns(settings, store, plugin.bus, news, prompts, profiles, acceptance, settled)
    previews = Previews(conversations, contexts, Tooling(plugin.bus, settings.patience_s), profiles)
    sweep = Sweep(settings, store, acceptance, workflows, turns.give_up)

    async def start_next(tenant: str, conversation: str) -> None:
        ready = await store.claim_next(tenant, conversation)
        if ready is not None:
            acceptance.begin(ready)

    locks = Locks(conversations, start_next)
    workflows.register(turns.turn)
    async with acceptance, turns.relays:
        plugin.add(Handlers(settings, store, acceptance, turns, news, workflows, plugin.bus))
        plugin.add(ConversationHandlers(conversations, locks, plugin.bus, settings), previews)
        await news.listen()
        await locks.listen(database)
        plugin.start_task("plugins", watch_plugins)
        plugin.start_task("teller", news.run, FOR_EVER)
        plugin.start_task("sweep", sweep.run, FOR_EVER)
        plugin.start_task("locks", locks.run_expiry, FOR_EVER)
        yield
        locks.unlisten(database)
        news.unlisten()

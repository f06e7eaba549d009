"""The hooks of the orchestrations."""

from collections.abc import AsyncIterator
from typing import Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_orchestration.following import Following
from ksi_orchestration.handlers import OrchestrationHandlers
from ksi_orchestration.pattern_handlers import PatternHandlers
from ksi_orchestration.patterns import Patterns
from ksi_orchestration.performing import QUEUE, Performing
from ksi_orchestration.settings import OrchestrationSettings
from ksi_orchestration.settling import Settling
from ksi_orchestration.store import Store
from ksi_orchestration.telling import Telling
from ksi_orchestration.turns import Turns
from ksi_orchestration.watching import Watching
from ksi_postgres.database import Database
from ksi_postgres.news import News
from ksi_workflows.api import Workflows

CHANNEL: Final = "ksi_orchestration"
FOR_EVER: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=10.0, max_restarts=1_000_000)
REQUIRED: Final = ("postgres", "workflows", "completion", "agents")


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=REQUIRED, settings=OrchestrationSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Have several agents work together."""
    settings: OrchestrationSettings = plugin.settings
    database, bus, workflows = plugin.service(Database), plugin.bus, plugin.service(Workflows)
    news = News(CHANNEL, database)
    store, telling = Store(database), Telling(news, bus)
    patterns = Patterns(plugin.home / settings.patterns)
    turns = Turns(settings, store, bus, telling)
    watching = Watching(store, plugin.add)
    performing = Performing(settings, store, bus, workflows, turns, telling, watching)
    settling = Settling(settings, store, bus, performing, turns, telling)
    workflows.queue(QUEUE, worker_concurrency=settings.max_at_once)
    workflows.register(performing.perform)
    plugin.offer(patterns)
    plugin.add(
        PatternHandlers(patterns),
        OrchestrationHandlers(
            settings,
            patterns,
            store,
            performing,
            turns,
            Following(store, telling),
            telling,
            workflows,
            bus,
        ),
        settling,
    )
    await news.listen()
    plugin.start_task("teller", news.run, FOR_EVER)
    plugin.start_task("looked after", settling.run, FOR_EVER)
    yield
    news.unlisten()

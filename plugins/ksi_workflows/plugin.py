"""The hooks of the durable engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_postgres.database import Database
from ksi_workflows.handlers import Handlers
from ksi_workflows.settings import WorkflowsSettings
from ksi_workflows.workflows import Workflows

# Without its engine the daemon is of little use: it is launched again for as long as it takes.
FOR_EVER: Final = RestartPolicy(first_delay_s=0.5, max_delay_s=10.0, max_restarts=1_000_000)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres",), settings=WorkflowsSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Run workflows while the daemon runs.

    The engine is launched behind: it takes a while, and nobody has to wait for it who does not
    start a run. Only its tables are waited for, where it makes them for the first time.
    """
    database = plugin.service(Database)
    daemon = plugin.daemon

    def give_up(why: str) -> None:
        daemon.failure = why
        daemon.shutdown(0.0)

    workflows = Workflows(plugin.settings, database, plugin.bus, give_up)
    duty = workflows.duty
    settled = asyncio.Event()

    async def launch() -> None:
        await duty.launch(plugin.home, database.logins)

    async def watch_plugins() -> None:
        for loaded in list(daemon.loader.plugins.values()):
            await loaded.settled.wait()
        settled.set()

    async def settle() -> None:
        await duty.run_settling(settled)

    plugin.offer(workflows)
    plugin.add(Handlers(workflows, daemon.options.contributor_timeout_s))
    async with workflows.runner:
        with duty.watching_for_standstill():
            plugin.start_task("launch", launch, FOR_EVER)
            plugin.start_task("lease", duty.run_lease, FOR_EVER)
            plugin.start_task("sweeps", duty.run_sweeps, FOR_EVER)
            plugin.start_task("queues", duty.run_queues, FOR_EVER)
            plugin.start_task("quarantine", duty.run_quarantine, FOR_EVER)
            plugin.start_task("plugins", watch_plugins)
            plugin.start_task("settling", settle, FOR_EVER)
            plugin.start_task("teller", workflows.news.run, FOR_EVER)
            plugin.start_task("clock", workflows.run_clock, FOR_EVER)
            await workflows.news.listen()
            await duty.await_tables()
            yield
            await duty.stop()
            workflows.news.unlisten()

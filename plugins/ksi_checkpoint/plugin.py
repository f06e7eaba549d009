"""The hooks of the checkpoints."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ksi_checkpoint.handlers import Handlers
from ksi_checkpoint.identity import daemon_id
from ksi_checkpoint.keeper import Keeper
from ksi_checkpoint.settings import CheckpointSettings
from ksi_checkpoint.store import Checkpoints, Subscriptions
from ksi_checkpoint.subscriptions import Reading
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import Loaded
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_journal.journal import Journal
from ksi_postgres.database import Database

# Until the old state is given back no new one may be saved, so it is tried for as long as it takes.
ALWAYS: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=15.0, max_restarts=1_000_000)
READY_SHARE: Final = 0.5  # of the time that a start may take


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres", "journal"), settings=CheckpointSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Give back what was saved, and save while the daemon runs."""
    settings: CheckpointSettings = plugin.settings
    options = plugin.daemon.options
    whose = settings.daemon or await asyncio.to_thread(daemon_id, plugin.home)
    database = plugin.service(Database)
    store = Checkpoints(database, whose)
    keeper = Keeper(plugin.daemon.router, store, settings, plugin.bus.publish)
    handlers = Handlers(keeper, store, settings, options.contributor_timeout_s)
    reading = Reading(Subscriptions(database), plugin.service(Journal), settings.max_subscriptions)
    plugin.add(handlers, reading)
    if settings.restore_at_start:
        await _begin(plugin, keeper, options.start_timeout_s * READY_SHARE)
    else:
        keeper.restored = True
    if settings.interval_s:
        plugin.start_task("interval", handlers.run_interval)
    yield


def _others(plugin: Plugin) -> list[Loaded]:
    """Return the plugins that are installed besides this one."""
    return [each for each in plugin.daemon.loader.plugins.values() if each.name != plugin.name]


async def _begin(plugin: Plugin, keeper: Keeper, limit: float) -> None:
    """Give back what was saved once the other plugins are there.

    This plugin is ready after that, and so is the daemon: who finds it ready finds the state of
    before. Where that can't be had soon, it is gone on with behind.
    """
    tried = asyncio.Event()

    async def begin() -> None:
        try:
            for other in _others(plugin):
                await other.settled.wait()
            await keeper.begin()
        finally:
            tried.set()

    plugin.start_task("restore", begin, ALWAYS)
    if any(plugin.name in other.info.requires for other in _others(plugin)):
        return  # it waits for this one
    try:
        async with asyncio.timeout(limit):
            await tried.wait()
    except TimeoutError:
        plugin.log.warning("other plugins take long to start; their state is given back later")

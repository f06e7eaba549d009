"""The hooks of the system plugin."""

from collections.abc import AsyncIterator

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_system.handlers import System


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin: without it nobody could see or stop the daemon."""
    return PluginInfo(essential=True)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Answer ``system:*`` and ``token:*`` while the daemon runs."""
    plugin.add(System(plugin.daemon, plugin.bus))
    yield

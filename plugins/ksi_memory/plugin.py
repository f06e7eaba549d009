"""The hooks of the memory."""

from collections.abc import AsyncIterator

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_memory.settings import MemorySettings


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(
        requires=("postgres", "workflows", "tools", "models", "completion"),
        settings=MemorySettings,
    )


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Remember while the daemon runs."""
    yield

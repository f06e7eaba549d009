"""The hooks of the example."""

from collections.abc import AsyncIterator

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_example.handlers import Example
from ksi_example.settings import ExampleSettings


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(settings=ExampleSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Answer while the daemon runs."""
    plugin.add(Example(plugin.settings))
    yield

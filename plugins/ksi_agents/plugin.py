"""The hooks of the agents."""

from collections.abc import AsyncIterator

from ksi_agents.settings import AgentsSettings
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("completion", "tools"), settings=AgentsSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Have agents run."""
    yield

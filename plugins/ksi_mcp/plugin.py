"""The hooks of MCP."""

from collections.abc import AsyncIterator

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_mcp.offers import Offers
from ksi_mcp.settings import McpSettings


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres", "tools", "models"), settings=McpSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Bring what other programs may call, and what agents may call of theirs."""
    offers = Offers(plugin.bus)
    plugin.add(offers)
    plugin.offer(offers)
    yield

"""The hooks of MCP."""

from collections.abc import AsyncIterator

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_mcp.changes import Changes
from ksi_mcp.client.service import client
from ksi_mcp.handlers import Handlers, logs_are_shown
from ksi_mcp.offering import Offering
from ksi_mcp.offers import Offers
from ksi_mcp.runtimes.service import runtimes_of
from ksi_mcp.settings import McpSettings
from ksi_tools.api import Tools


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres", "workflows", "tools", "models"), settings=McpSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Bring what other programs may call, and what agents may call of theirs."""
    settings: McpSettings = plugin.settings
    offers = Offers(plugin.bus)
    changes, tools = Changes(plugin.bus), plugin.service(Tools)
    plugin.add(offers, Handlers(settings, plugin.bus), changes)
    plugin.offer(offers)
    offering = Offering(plugin.bus, plugin.daemon.router)
    tools.on_change.append(changes.tools_changed)
    plugin.start_task("changes", changes.run)
    with tools.add(offering, provider=plugin.name), logs_are_shown():
        async with client(plugin), runtimes_of(plugin):
            yield
    tools.on_change.remove(changes.tools_changed)

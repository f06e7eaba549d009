"""The hooks of the memory."""

from collections.abc import AsyncIterator

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_memory.item_handlers import ItemHandlers
from ksi_memory.items import Items
from ksi_memory.reasons import Reasons
from ksi_memory.schema_handlers import SchemaHandlers
from ksi_memory.settings import MemorySettings
from ksi_memory.transfer import Transfer
from ksi_postgres.database import Database


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
    settings: MemorySettings = plugin.settings
    database = plugin.service(Database)
    items = Items(database, settings, plugin.bus.publish)
    plugin.add(
        ItemHandlers(items, Reasons(items, plugin.bus), Transfer(database, settings)),
        SchemaHandlers(items),
    )
    yield

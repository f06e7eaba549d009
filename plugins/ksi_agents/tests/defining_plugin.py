"""A plugin of definitions alone, for daemons under test."""

from collections.abc import AsyncIterator

from ksi_agents.definition_handlers import DefinitionHandlers
from ksi_agents.definitions import Definitions
from ksi_agents.settings import AgentsSettings
from ksi_daemon.event_system import event_handler
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_postgres.database import Database
from ksi_postgres.news import News
from ksi_tools.events import ToolInfo, ToolList, ToolListed

TOOLS = ("calendar", "memory_save", "memory_search")


class Toolbox:
    """Lists tools, which nobody calls here."""

    @event_handler("tool:list")
    def list_tools(self, request: ToolList) -> ToolListed:
        """List them."""
        tools = (ToolInfo(name=n, description="", effects="read_only", provider="x") for n in TOOLS)
        return ToolListed(tools=tuple(tools))


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres", "models"), settings=AgentsSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Keep definitions."""
    database = plugin.service(Database)
    news = News("ksi_agents", database)
    definitions = Definitions(database, news, plugin.settings, plugin.bus)
    await news.listen()
    plugin.start_task("teller", news.run)
    plugin.add(DefinitionHandlers(definitions), Toolbox())
    plugin.offer(definitions)
    yield
    news.unlisten()

"""The client half of the plugin, as its lifespan runs it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_mcp.client.handlers import Handlers
from ksi_mcp.client.servers import Servers
from ksi_mcp.client.store import Store
from ksi_mcp.settings import McpSettings
from ksi_postgres.database import Database
from ksi_tools.api import Tools

# Postgres may be away for as long as it likes.
FOR_EVER: Final = RestartPolicy(first_delay_s=0.5, max_delay_s=15.0, max_restarts=1_000_000)


@asynccontextmanager
async def client(plugin: Plugin) -> AsyncIterator[None]:
    """Offer the tools of other programs' servers, while this runs."""
    settings: McpSettings = plugin.settings
    database = plugin.service(Database)
    servers = Servers(
        settings, plugin.service(Tools), Store(database), plugin.bus, plugin.home, plugin.confined
    )
    async with servers.running(database):
        plugin.add(Handlers(servers))
        plugin.start_task("servers", servers.keep_up, FOR_EVER)
        plugin.start_task("unknown servers", servers.look_out, FOR_EVER)
        yield

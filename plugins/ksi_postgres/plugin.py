"""The hooks of the store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Unavailable
from ksi_daemon.supervisor import RestartPolicy
from ksi_postgres import migrations, store
from ksi_postgres.database import Database
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.handlers import Postgres
from ksi_postgres.keys import Keys
from ksi_postgres.place import SUPERUSER
from ksi_postgres.reader import Reader
from ksi_postgres.settings import PostgresSettings

FORGET_EVERY_S: Final = 3600.0
# Without end: a server that has died of a full disk must come back when there is room.
ALWAYS: Final = RestartPolicy(first_delay_s=0.1, max_delay_s=15.0, max_restarts=1_000_000)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin: what is accepted must last, so nothing runs without it."""
    return PluginInfo(essential=True, settings=PostgresSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Run the store, or connect to it, and offer it to the other plugins."""
    settings: PostgresSettings = plugin.settings
    async with AsyncExitStack() as stack:
        server = None
        if not settings.url:
            server = EmbeddedServer(store.embedded_folder(plugin.home, settings), settings)
            stack.push_async_callback(server.stop)
            await server.start()
        ready = await _ready(plugin, settings, server)
        database = Database(ready.logins, settings, role=ready.role)
        stack.push_async_callback(database.close)
        await database.open()
        reader = Reader(database, settings, problem=ready.reader_problem)
        stack.push_async_callback(reader.close)
        if server is not None:
            plugin.start_task("server", lambda: _keep_running(plugin, server), ALWAYS)
        plugin.start_task("connection", database.watch, ALWAYS)
        _keep_keys(plugin, database, is_alone=server is not None)
        plugin.add(Postgres(plugin.bus, database, reader, server, ready.version))
        plugin.offer(database)
        plugin.offer(reader)
        yield


async def _ready(
    plugin: Plugin, settings: PostgresSettings, server: EmbeddedServer | None
) -> store.Ready:
    loaded = plugin.daemon.loader.plugins.values()
    requires = {p.name: p.info.requires for p in loaded if p.state not in ("disabled", "failed")}
    known = await asyncio.to_thread(migrations.find_migrations, migrations.in_order(requires))
    if server is None:
        return await store.make_ready(store.external_logins(settings), settings, known)
    await store.create_database(server)
    passwords = {role: text for role, text in server.passwords.items() if role != SUPERUSER}
    logins = store.embedded_logins(server)
    return await store.make_ready(logins, settings, known, passwords=passwords)


async def _keep_running(plugin: Plugin, server: EmbeddedServer) -> None:
    """Start the server again when it has ended; the task's policy waits between attempts."""
    if server.pid is None:
        await server.start()
        plugin.log.warning("the embedded Postgres runs again")
    why = await server.wait_end()
    raise Unavailable(f"the embedded Postgres has ended: {why}")


def _keep_keys(plugin: Plugin, database: Database, *, is_alone: bool) -> None:
    """Let requests with an idempotency key be done once, whatever becomes of the daemon."""
    daemon = plugin.daemon
    keys = Keys(
        database,
        daemon.router.boot,
        is_alone=is_alone,
        in_doubt_after_s=daemon.options.request_timeout_s or FORGET_EVERY_S,
    )
    daemon.server.hub.ledger.keeper = keys

    async def forget() -> None:
        while True:
            await keys.forget()
            await asyncio.sleep(FORGET_EVERY_S)

    plugin.start_task("keys", forget, ALWAYS)
    plugin.start_task("owed answers", keys.pay, ALWAYS)

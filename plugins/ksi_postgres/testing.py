"""The test kit of the store, as a pytest plugin: ``database``, ``database_logins`` and the server.

One server serves a whole test run, or one worker of it. It has a template with the migrations of
every installed plugin; each test gets a copy of that, which takes some milliseconds.
"""

import asyncio
import itertools
import os
import secrets
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import pytest
from msgspec import Struct

from ksi_daemon.testing import memory_folder
from ksi_postgres import migrations, store
from ksi_postgres.database import Database
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import APP, READER, Logins, socket_url, with_database
from ksi_postgres.migrations import SQL
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings

__all__ = ["TestServer", "fresh_database", "plugin_requirements", "settings_for"]

Result = TypeVar("Result")

TEMPLATE: Final = "ksi_template"
SETTINGS: Final = PostgresSettings(max_connections=200, shared_buffers_mb=32)


class TestServer(Struct, frozen=True):
    """A server with a template, and how to reach it.

    Attributes:
        host: The folder of its socket.
        passwords: By role.
    """

    __test__ = False  # pytest: this is no test

    host: str
    passwords: dict[str, str]

    def logins(self, database: str) -> Logins:
        """Return the logins for one of its databases."""

        def url(role: str) -> str:
            return socket_url(role, self.passwords[role], host=self.host, database=database)

        return Logins(app=url(APP), direct=url(APP), admin=url(SUPERUSER), reader=url(READER))


def plugin_requirements() -> dict[str, tuple[str, ...]]:
    """Return what each installed plugin requires, by name."""
    requires = {}
    for name, point in migrations.installed_plugins().items():
        describe: Callable[[], Any] | None = getattr(point.load(), "ksi_plugin", None)
        requires[name] = describe().requires if describe is not None else ()
    return requires


def settings_for(logins: Logins) -> list[str]:
    """Return the settings that point a daemon under test at a database."""
    return [f"postgres.url={logins.admin}", f"postgres.reader_url={logins.reader}"]


_numbers = itertools.count(1)


async def fresh_database(server: TestServer, template: str = TEMPLATE) -> Logins:
    """Make a database of a template, for its caller alone; ``template0`` is an empty one."""
    connection = await asyncpg.connect(server.logins("postgres").admin)
    try:
        return server.logins(await _create(connection, template))
    finally:
        await connection.close()


async def drop_database(server: TestServer, logins: Logins) -> None:
    """Drop a database, and end who uses it."""
    connection = await asyncpg.connect(server.logins("postgres").admin)
    try:
        await _drop(connection, logins)
    finally:
        await connection.close()


async def _create(connection: asyncpg.Connection, template: str) -> str:
    """Make a database, and return its name."""
    name = f"t_{os.getpid()}_{next(_numbers)}_{secrets.token_hex(2)}"
    query = await connection.fetchval(
        "SELECT format('CREATE DATABASE %I TEMPLATE %I STRATEGY FILE_COPY', $1::text, $2::text)",
        name,
        template,
    )
    await connection.execute(query)
    if template != "template0":
        await _open(connection, name)
    return name


async def _open(connection: asyncpg.Connection, name: str) -> None:
    """Give the roles their rights on the copy, and take what everybody has on a new database."""
    await connection.execute("SELECT set_config('ksi.database', $1, false)", name)
    await connection.execute(SQL["open_database"])
    await connection.execute(SQL["close_database"])


async def _drop(connection: asyncpg.Connection, logins: Logins) -> None:
    name = logins.admin.partition("?")[0].rpartition("/")[2]
    query = await connection.fetchval(
        "SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', $1::text)", name
    )
    await connection.execute(query)


async def _make_template(server: TestServer) -> None:
    logins = server.logins(TEMPLATE)
    maintenance = await asyncpg.connect(with_database(logins.admin, "postgres"))
    try:
        await maintenance.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
    finally:
        await maintenance.close()
    known = migrations.find_migrations(migrations.in_order(plugin_requirements()))
    passwords = {role: text for role, text in server.passwords.items() if role != SUPERUSER}
    await store.make_ready(logins, SETTINGS, known, passwords=passwords)


class _Loop:
    """A loop in a thread of its own, which outlasts those of the tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test server")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine there and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Maker:
    """Makes the tests' databases by one connection: one for each would cost as much as they do."""

    def __init__(self, loop: _Loop, server: TestServer) -> None:
        self._loop = loop
        self._server = server
        url = server.logins("postgres").admin
        self._connection: asyncpg.Connection = loop.run(asyncpg.connect(url))

    def make(self, template: str) -> Logins:
        """Make a database of a template."""
        return self._server.logins(self._loop.run(_create(self._connection, template)))

    def drop(self, logins: Logins) -> None:
        """Drop one, and end who uses it."""
        self._loop.run(_drop(self._connection, logins))

    def close(self) -> None:
        """End the connection."""
        self._loop.run(self._connection.close())


@pytest.fixture(scope="session")
def _postgres_loop() -> Iterator[_Loop]:
    loop = _Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def postgres_server(_postgres_loop: _Loop) -> Iterator[TestServer]:
    """A server for the whole run, or for one of its workers, with a template of all migrations."""
    with tempfile.TemporaryDirectory(
        prefix="ksi-pg-", dir=memory_folder(), ignore_cleanup_errors=True
    ) as folder:
        Path(folder).chmod(0o711)  # the server's user passes through, where the tests run as root
        server = EmbeddedServer(Path(folder) / "pg", SETTINGS, fsync=False)
        try:
            _postgres_loop.run(server.start())
            made = TestServer(server.host, dict(server.passwords))
            _postgres_loop.run(_make_template(made))
            yield made
        finally:
            _postgres_loop.run(server.stop())


@pytest.fixture(scope="session")
def database_template() -> str:
    """The name of the database that each test gets a copy of; override it for another."""
    return TEMPLATE


@pytest.fixture(scope="session")
def _database_maker(_postgres_loop: _Loop, postgres_server: TestServer) -> Iterator[_Maker]:
    maker = _Maker(_postgres_loop, postgres_server)
    yield maker
    maker.close()


@pytest.fixture
def database_logins(_database_maker: _Maker, database_template: str) -> Iterator[Logins]:
    """A database of the test's own, migrated, and how to reach it."""
    logins = _database_maker.make(database_template)
    yield logins
    _database_maker.drop(logins)


@pytest.fixture
async def database(database_logins: Logins) -> AsyncIterator[Database]:
    """The test's own database as a plugin gets it."""
    made = Database(database_logins, SETTINGS)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def ksi_settings_of_postgres(database_logins: Logins) -> list[str]:
    """Point the daemon under test at a database of the test's own."""
    return settings_for(database_logins)

"""The kit for tests of plugins: a migrated database for each, and nothing left of it."""

import asyncpg

from ksi_daemon.daemon import Daemon
from ksi_postgres import setup
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.migrations import find_migrations, installed_plugins, pending, read_applied
from ksi_postgres.testing import TestServer, drop_database, fresh_database, settings_for

NAME = "SELECT current_database()"


async def test_a_test_gets_all_migrations_of_all_plugins(database_logins: Logins) -> None:
    connection = await asyncpg.connect(database_logins.admin)
    applied = await read_applied(connection)
    await connection.close()

    assert pending(find_migrations(sorted(installed_plugins())), applied) == []


async def test_nothing_is_left_for_a_daemon_to_make_ready(database_logins: Logins) -> None:
    connection = await asyncpg.connect(database_logins.admin)
    await connection.execute("SET default_transaction_read_only = on")  # a write would fail
    standing = await setup.prepare(connection)
    await connection.close()

    assert standing.reader_problem is None


async def test_two_databases_know_nothing_of_each_other(
    postgres_server: TestServer, database: Database
) -> None:
    other = await fresh_database(postgres_server)
    connection = await asyncpg.connect(other.admin)
    await connection.execute("CREATE TABLE public.only_here (n int)")
    name = await connection.fetchval(NAME)
    await connection.close()

    assert await database.fetchval(NAME) != name
    assert await database.fetchval("SELECT to_regclass('public.only_here')") is None
    await drop_database(postgres_server, other)


async def test_a_dropped_database_is_gone_although_somebody_uses_it(
    postgres_server: TestServer, database_logins: Logins
) -> None:
    other = await fresh_database(postgres_server)
    user = await asyncpg.connect(other.app)

    await drop_database(postgres_server, other)

    connection = await asyncpg.connect(database_logins.admin)
    name = other.admin.partition("?")[0].rpartition("/")[2]
    assert not await connection.fetchval(
        "SELECT count(*) FROM pg_database WHERE datname = $1", name
    )
    await connection.close()
    user.terminate()


async def test_each_login_is_who_it_says(database_logins: Logins) -> None:
    roles = []
    for url in (database_logins.app, database_logins.reader, database_logins.admin):
        connection = await asyncpg.connect(url)
        roles.append(await connection.fetchval("SELECT current_user"))
        await connection.close()

    assert roles == ["ksi_app", "ksi_reader", "postgres"]


async def test_the_daemon_under_test_uses_the_test_s_own_database(
    daemon: Daemon, database: Database
) -> None:
    used = daemon._services[Database]

    assert isinstance(used, Database)
    assert await used.fetchval(NAME) == await database.fetchval(NAME)


def test_settings_name_both_logins(database_logins: Logins) -> None:
    assert [each.partition("=")[0] for each in settings_for(database_logins)] == [
        "postgres.url",
        "postgres.reader_url",
    ]

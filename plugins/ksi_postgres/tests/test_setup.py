"""Making a database ready: with every kind of login, and what each refusal tells to do."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

from ksi_daemon.protocol import Denied, InvalidData, Unavailable
from ksi_daemon.testing import DaemonProcess
from ksi_postgres import setup, store
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins, split_password
from ksi_postgres.migrations import SQL, find_migrations
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.testing import SETTINGS, TestServer, drop_database, fresh_database


@pytest.fixture
async def empty(postgres_server: TestServer) -> AsyncIterator[Logins]:
    """A database that nothing was ever done to, on a server that has the roles."""
    logins = await fresh_database(postgres_server, "template0")
    yield logins
    await drop_database(postgres_server, logins)


@asynccontextmanager
async def login(base: Logins, options: str = "", *grants: str) -> AsyncIterator[str]:
    """Make a login with these rights, for a while; yields its URL."""
    name, password = f"login_{secrets.token_hex(4)}", secrets.token_hex(8)
    admin = await asyncpg.connect(base.admin)
    await admin.execute(f"CREATE ROLE {name} LOGIN {options} PASSWORD '{password}'")
    for grant in grants:
        await admin.execute(grant.format(name=name, database=_name(base)))
    try:
        yield base.admin.replace(base.admin.partition("@")[0], f"postgresql://{name}:{password}")
    finally:
        for cleaning in ("REASSIGN OWNED BY {} TO postgres", "DROP OWNED BY {}", "DROP ROLE {}"):
            await admin.execute(cleaning.format(name))
        await admin.close()


def _name(logins: Logins) -> str:
    return logins.admin.partition("?")[0].rpartition("/")[2]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_superuser_makes_all_of_it_and_the_second_time_changes_nothing(
    empty: Logins,
) -> None:
    async with connected(empty.admin) as connection:
        first = await setup.prepare(connection)
        async with connection.transaction():
            second = await setup.prepare(connection)
            written = await connection.fetchval("SELECT pg_current_xact_id_if_assigned()")

    assert first == second
    assert first.role == "ksi_app"
    assert first.reader_problem is None
    assert written is None  # a transaction that writes has an id


@pytest.mark.parametrize(
    ("grants", "told"),
    [
        ((), "CREATE EXTENSION"),
        (("GRANT ALL ON DATABASE {database} TO {name}",), "GRANT ksi_owner TO"),
        (
            (
                "GRANT ALL ON DATABASE {database} TO {name}",
                "GRANT ksi_owner TO {name} WITH INHERIT FALSE, SET TRUE",
                "GRANT ksi_app TO {name}",
            ),
            "WITH GRANT OPTION",
        ),
    ],
)
async def test_a_login_that_lacks_a_right_is_told_the_command_that_gives_it(
    empty: Logins, grants: tuple[str, ...], told: str
) -> None:
    if grants:
        async with connected(empty.admin) as admin:
            await admin.execute(SQL["create_extensions"])
    async with login(empty, "", *grants) as url, connected(url) as connection:
        with pytest.raises(Denied, match=told) as caught:
            await setup.prepare(connection)

    assert "as a superuser" in caught.value.message


async def test_the_commands_that_are_told_are_enough(empty: Logins) -> None:
    async with login(empty) as url:
        for _ in range(6):
            async with connected(url) as connection:
                try:
                    standing = await setup.prepare(connection)
                except Denied as denied:
                    commands = denied.message.partition("as a superuser: ")[2]
                else:
                    break
            async with connected(empty.admin) as admin:
                await admin.execute(commands)
        else:
            pytest.fail(f"it still lacks a right: {commands}")

    assert standing.role is None
    assert standing.reader_problem is not None
    assert "ksi db migrate" in standing.reader_problem


async def test_a_prepared_database_is_enough_for_a_plain_member(
    database_logins: Logins,
) -> None:
    grants = (
        "GRANT ksi_owner TO {name} WITH INHERIT FALSE, SET TRUE",
        "GRANT ksi_app TO {name} WITH INHERIT TRUE",
    )
    async with login(database_logins, "", *grants) as url:
        logins = replace(database_logins, app=url, direct=url, admin=url)
        ready = await store.make_ready(logins, SETTINGS, find_migrations(["postgres"]))
        database = Database(ready.logins, SETTINGS, role=ready.role)
        await database.open()
        count = await database.fetchval("SELECT count(*) FROM ksi_postgres.idempotency_key")
        await database.close()

    assert (ready.role, ready.reader_problem, ready.migrated, count) == (None, None, 0, 0)


async def test_a_stranger_at_a_prepared_database_is_told_what_lacks(
    database_logins: Logins,
) -> None:
    async with login(database_logins) as url, connected(url) as connection:
        with pytest.raises(Denied, match="GRANT ksi_owner TO"):
            await setup.prepare(connection)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "ALTER ROLE ksi_app BYPASSRLS",
            "ALTER ROLE ksi_app NOSUPERUSER NOBYPASSRLS",
        ),
        (
            "GRANT ksi_owner TO ksi_reader",
            "REVOKE ksi_owner FROM ksi_reader",
        ),
    ],
)
async def test_roles_that_pass_the_walls_are_refused(
    database_logins: Logins, change: str, told: str
) -> None:
    async with connected(database_logins.admin) as admin:
        transaction = admin.transaction()
        await transaction.start()
        if "ksi_reader" in change:
            await admin.execute("REVOKE ksi_reader FROM ksi_owner")
        await admin.execute(change)
        with pytest.raises(Denied, match=told):
            await setup.prepare(admin)
        await transaction.rollback()


async def test_an_extension_that_is_not_installed_says_what_to_install(empty: Logins) -> None:
    class Without(asyncpg.Connection):  # type: ignore[misc]  # asyncpg is not typed
        async def fetchrow(self, query: str, *args: object, **options: object) -> object:
            return await super().fetchrow(query.replace("'btree_gin'", "'no_such'"), *args)

    connection = await asyncpg.connect(empty.admin, connection_class=Without)
    with pytest.raises(InvalidData, match=r"lacks the extensions no_such.*on Debian"):
        await setup.prepare(connection)
    await connection.close()


async def test_an_old_postgres_is_refused_with_its_version(empty: Logins) -> None:
    class Old(asyncpg.Connection):  # type: ignore[misc]  # asyncpg is not typed
        async def fetchrow(self, query: str, *args: object, **options: object) -> object:
            old = query.replace("current_setting('server_version_num')::int", "150004")
            return await super().fetchrow(
                old.replace("current_setting('server_version')", "'15.4'"), *args
            )

    connection = await asyncpg.connect(empty.admin, connection_class=Old)
    with pytest.raises(InvalidData, match=r"Postgres 16 or later is needed; this is 15\.4"):
        await setup.prepare(connection)
    await connection.close()


async def test_what_everybody_may_execute_later_on_is_taken_from_the_reader_again(
    database_logins: Logins,
) -> None:
    async with connected(database_logins.admin) as admin:
        await admin.execute(
            "CREATE FUNCTION public.effect() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'"
        )
        may = "SELECT has_function_privilege('ksi_reader', 'public.effect()', 'EXECUTE')"
        before = await admin.fetchval(may)

        await setup.prepare(admin)

        assert (before, await admin.fetchval(may)) == (True, False)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (("password", "wrong"), Denied, "mend the user or the password"),
        (("database", "no_such_database"), InvalidData, "CREATE DATABASE"),
        (("port=5432", "port=5999"), Unavailable, "did not answer"),
    ],
)
async def test_a_url_that_leads_nowhere_says_what_to_mend(
    database_logins: Logins, change: tuple[str, str], kind: type[Exception], told: str
) -> None:
    url = database_logins.admin
    password = split_password(url)[1]
    old = {"password": password, "database": _name(database_logins)}.get(change[0], change[0])
    wrong = url.replace(old, change[1])
    settings = PostgresSettings(start_timeout_s=0.3)

    with pytest.raises(kind, match=told) as caught:
        await store.make_ready(Logins(app=wrong, direct=wrong, admin=wrong), settings, [])

    assert password not in str(caught.value)


async def test_a_daemon_with_a_wrong_password_refuses_clearly_and_shows_none(
    ksi_home: Path, database_logins: Logins, capfd: pytest.CaptureFixture[str]
) -> None:
    password = split_password(database_logins.admin)[1]
    url = database_logins.admin.replace(password, "wr0ngpassw0rd")
    daemon = DaemonProcess(ksi_home, environ={"KSI_DATABASE_URL": url})

    with pytest.raises(AssertionError, match="did not start"):
        daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(20) != 0

    told = capfd.readouterr().err + (ksi_home / "log" / "daemon.log").read_text(encoding="utf-8")
    assert "mend the user or the password of KSI_DATABASE_URL" in told
    assert "wr0ngpassw0rd" not in told


async def test_what_postgres_keeps_of_a_password_lets_it_in_and_no_other(
    empty: Logins,
) -> None:
    async with login(empty) as url, connected(empty.admin) as admin:
        name = url.partition("://")[2].partition(":")[0]
        await setup.set_passwords(admin, {name: "another one"})
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url)
        async with connected(url.replace(split_password(url)[1], "another%20one")) as connection:
            assert await connection.fetchval("SELECT current_user") == name

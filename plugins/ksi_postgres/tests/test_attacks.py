"""Known attacks on a login that may only look, and on the daemon's own: each fails in Postgres."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_daemon.protocol import Denied, InvalidData, KsiError
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.migrations import Migration, migrate
from ksi_postgres.reader import Reader
from ksi_postgres.settings import PostgresSettings

SECRET: Final = "b-secret-4711"
SHOP: Final = """
    CREATE TABLE thing (tenant text NOT NULL, name text, price int);
    SELECT ksi_postgres.protect('thing');
    SELECT ksi_postgres.publish('thing', 'things', ARRAY['name', 'price'], 'what there is');
    INSERT INTO thing VALUES ('a', 'a-thing', 1), ('b', 'b-secret-4711', 4711);
"""
# Whatever is tried, it fails: refused as a statement, or denied.
ATTACKS: Final = (
    # becoming somebody else
    "SELECT set_config('ksi.tenant', 'b', false)",
    "SELECT pg_catalog.set_config('role', 'ksi_app', false)",
    "SELECT set_config('session_authorization', 'postgres', false)",
    "SELECT ksi_postgres.bind_reader(pg_backend_pid(), 'b')",
    "INSERT INTO ksi_postgres.reader_session VALUES (pg_backend_pid(), 'b', now()) RETURNING 1",
    "UPDATE ksi_postgres.reader_session SET tenant = 'b' RETURNING 1",
    "SELECT * FROM ksi_postgres.reader_session",
    "SELECT ksi_postgres.claim_key('b', '', '', '', '', '', '0 s')",
    # tables
    "SELECT * FROM ksi_shop.thing",
    "SELECT * FROM ksi_postgres.idempotency_key",
    "SELECT * FROM ksi_postgres.migration",
    "SELECT query_to_xml('SELECT * FROM ksi_shop.thing', true, false, '')",
    "SELECT table_to_xml('ksi_shop.thing', true, false, '')",
    "SELECT database_to_xml(true, false, '')",
    "SELECT cursor_to_xml('c', 1, true, false, '')",
    "SELECT ts_stat('SELECT to_tsvector(name) FROM ksi_shop.thing')",
    "INSERT INTO ksi_read.things VALUES ('x', 1) RETURNING 1",
    "UPDATE ksi_read.things SET price = 0 RETURNING 1",
    "DELETE FROM ksi_read.things RETURNING 1",
    "WITH gone AS (DELETE FROM ksi_read.things RETURNING 1) SELECT * FROM gone",
    "WITH put AS (INSERT INTO ksi_shop.thing VALUES ('b', '', 1) RETURNING 1) SELECT * FROM put",
    "SELECT * FROM ksi_read.things FOR UPDATE",
    "EXPLAIN ANALYZE DELETE FROM ksi_read.things",
    "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TABLE public.t AS SELECT 1",
    "EXPLAIN SELECT * FROM ksi_shop.thing",
    # files and programs
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('PG_VERSION')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_stat_file('PG_VERSION')",
    "SELECT pg_ls_logdir()",
    "SELECT pg_current_logfile()",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/x')",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_put(1, 0, 'x')",
    "SELECT lo_get(1)",
    "SELECT lo_unlink(1)",
    # other sessions
    "SELECT pg_terminate_backend(pg_backend_pid())",
    "SELECT pg_cancel_backend(1)",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_advisory_xact_lock_shared(1)",
    "SELECT pg_advisory_unlock_all()",
    "SELECT pg_notify('ksi_workflows', 'x')",
    "SELECT pg_stat_get_activity(NULL)",
    "SELECT * FROM pg_stat_activity",
    "SELECT pg_stat_get_backend_activity(1)",
    "SELECT pg_log_backend_memory_contexts(1)",
    "SELECT pg_sleep(1)",
    "SELECT pg_sleep_for('1 s')",
    "SELECT pg_sleep_until('infinity')",
    "SELECT pg_export_snapshot()",
    # the catalogue's secrets
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_shadow",
    "SELECT * FROM pg_user_mapping",
    "SELECT * FROM pg_statistic",
    "SELECT * FROM pg_largeobject",
    "SELECT * FROM pg_hba_file_rules",
    "SELECT * FROM pg_file_settings",
    "SELECT * FROM pg_subscription",
    "SELECT current_setting('data_directory')",
    "SELECT current_setting('hba_file')",
    # the server
    "SELECT pg_reload_conf()",
    "SELECT pg_rotate_logfile()",
    "SELECT pg_switch_wal()",
    "SELECT pg_create_restore_point('x')",
    "SELECT pg_create_physical_replication_slot('x')",
    "SELECT pg_stat_reset()",
    "SELECT nextval('ksi_workflows.signal_number_seq')",
    "SELECT setval('ksi_workflows.signal_number_seq', 1)",
    "SELECT dblink('', 'SELECT 1')",
)
# These return no rows, so none of them is even begun; a session of the login's own is refused, too,
# but for what changes nothing beyond that session.
STATEMENTS: Final = (
    "SET ROLE ksi_app",
    "SET ROLE ksi_owner",
    "SET SESSION AUTHORIZATION postgres",
    "COPY ksi_read.things TO '/tmp/x'",
    "COPY ksi_read.things TO PROGRAM 'cat'",
    "COPY ksi_shop.thing TO STDOUT",
    "COPY ksi_read.things FROM PROGRAM 'id'",
    "CREATE EXTENSION dblink",
    "CREATE EXTENSION postgres_fdw",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION ksi_read.f() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE TABLE public.t (n int)",
    "CREATE TEMP TABLE t (n int)",
    "CREATE TEMP TABLE t AS SELECT * FROM ksi_read.things",
    "SELECT 1 INTO TEMP t",
    "CREATE TEMP VIEW t AS SELECT 1",
    "CREATE SCHEMA x",
    "CREATE VIEW ksi_read.x AS SELECT 1",
    "CREATE OR REPLACE VIEW ksi_read.things AS SELECT ''::text AS name, 1 AS price",
    "ALTER VIEW ksi_read.things RESET (security_barrier)",
    "DROP VIEW ksi_read.things",
    "ALTER ROLE ksi_reader SUPERUSER",
    "ALTER ROLE ksi_reader BYPASSRLS",
    "GRANT ksi_owner TO ksi_reader",
    "ALTER SYSTEM SET log_statement = 'all'",
    "ALTER DATABASE ksi_template SET log_statement = 'all'",
    "TRUNCATE ksi_shop.thing",
    "REFRESH MATERIALIZED VIEW ksi_shop.thing",
    "CHECKPOINT",
    "CALL ksi_shop.nothing()",
    "LOAD 'plpgsql'",
    "SECURITY LABEL ON ROLE ksi_reader IS 'x'",
)
# Allowed to any login in a session of its own; through the reader they are no queries.
HARMLESS_ALONE: Final = (
    "RESET ROLE",
    "SET ksi.tenant = 'b'",
    "SET statement_timeout = 0",
    "SET TRANSACTION READ WRITE",
    "SET default_transaction_read_only = off",
    "SET search_path = ksi_shop",
    "SET row_security = off",
    "COMMIT",
    "ROLLBACK",
    "BEGIN",
    "SAVEPOINT s",
    "PREPARE p AS SELECT 1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "LISTEN ksi_workflows",
    "NOTIFY ksi_workflows, 'x'",
    "UNLISTEN *",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "VACUUM ksi_shop.thing",
    "LOCK TABLE ksi_shop.thing",
)
DENIED: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.UndefinedTableError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InvalidCursorNameError,
    asyncpg.WrongObjectTypeError,
    asyncpg.InvalidParameterValueError,
    asyncpg.InvalidSchemaNameError,
)


@pytest.fixture
async def shop(database_logins: Logins) -> AsyncIterator[asyncpg.Connection]:
    """A table with a row of each of two tenants; the connection is a superuser's."""
    admin = await asyncpg.connect(database_logins.admin)
    await migrate(admin, [Migration("shop", 1, "things", SHOP, "1.0")])
    yield admin
    rows = await admin.fetch("SELECT tenant, name, price FROM ksi_shop.thing ORDER BY 1")
    assert [tuple(row) for row in rows] == [("a", "a-thing", 1), ("b", SECRET, 4711)]
    await admin.close()


@pytest.fixture
async def reader(database: Database, shop: asyncpg.Connection) -> AsyncIterator[Reader]:
    """One session, so that each query gets what the one before has left."""
    made = Reader(database, PostgresSettings(reader_connections=1))
    yield made
    await made.close()


async def names(reader: Reader, tenant: str) -> list[str]:
    rows = await reader.read(tenant, "SELECT name FROM ksi_read.things")
    return [row[0] for row in rows.rows]


async def test_the_reader_works_at_all(reader: Reader) -> None:
    assert await names(reader, "a") == ["a-thing"]
    assert await names(reader, "b") == [SECRET]
    assert await names(reader, "nobody") == []


async def test_no_attack_comes_through_the_reader(reader: Reader) -> None:
    for attack in (*ATTACKS, *STATEMENTS, *HARMLESS_ALONE):
        with pytest.raises((Denied, InvalidData)) as caught:
            pytest.fail(f"{attack} gave {await reader.read('a', attack)}")
        assert SECRET not in str(caught.value.body), attack
        assert await names(reader, "a") == ["a-thing"], attack


async def test_no_attack_comes_through_a_session_of_the_login_s_own(
    database_logins: Logins, shop: asyncpg.Connection
) -> None:
    session = await asyncpg.connect(database_logins.reader)
    for change in ("SET default_transaction_read_only = off", "SET ksi.tenant = 'b'"):
        await session.execute(change)

    for attack in (*ATTACKS, *STATEMENTS):
        try:
            answer = await session.fetch(attack)
        except DENIED:
            continue
        assert SECRET not in str(answer), attack
        pytest.fail(f"{attack} gave {answer}")

    assert await session.fetch("SELECT * FROM ksi_read.things") == []
    await session.close()


@pytest.mark.parametrize(
    "query",
    [
        # what fails or tells something on its way is not asked about rows behind the barrier
        "SELECT name FROM ksi_read.things WHERE 1 / (price - 4711) > 0",
        "SELECT name FROM ksi_read.things WHERE name::int = 1 OR true",
        "SELECT name FROM ksi_read.things WHERE (name || '')::xml IS NULL",
        "SELECT name FROM ksi_read.things WHERE length(name) / (price - 4711) IS NOT NULL",
        "SELECT name FROM ksi_read.things WHERE CASE WHEN price = 4711 THEN name::int END = 1",
        "SELECT count(*) FROM ksi_read.things WHERE price > 100",
        "SELECT max(name) FROM ksi_read.things",
        "SELECT t::text FROM ksi_read.things t UNION ALL SELECT t::text FROM ksi_read.things t",
        "EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM ksi_read.things",
        "SELECT most_common_vals::text FROM pg_stats",
        "SELECT * FROM pg_stats_ext",
        "SELECT query FROM pg_catalog.pg_prepared_statements",
        "SELECT ksi_postgres.reader_tenant()",
        "SELECT * FROM pg_cursors",
        "SELECT current_setting('ksi.tenant', true)",
    ],
)
async def test_nothing_of_another_tenant_shows_in_answers_or_errors(
    reader: Reader, shop: asyncpg.Connection, query: str
) -> None:
    await shop.execute("ANALYZE ksi_shop.thing")
    try:
        told = str((await reader.read("a", query)).rows)
    except KsiError as error:
        told = str(error.body)

    assert SECRET not in told
    assert "4711" not in told.replace("- 4711", "")
    assert "division" not in told


async def test_what_one_tenant_asks_another_does_not_see(
    database: Database, shop: asyncpg.Connection
) -> None:
    reader = Reader(database, PostgresSettings(reader_connections=2))
    for tenant in ("b", "a"):
        await reader.read(tenant, f"SELECT '{SECRET if tenant == 'b' else ''}'")

    for view in ("pg_stat_activity", "pg_locks", "pg_stat_ssl"):
        try:
            told = str((await reader.read("a", f"SELECT * FROM {view}")).rows)  # noqa: S608  a name of the list above
        except KsiError as error:
            told = error.message
        assert SECRET not in told
    await reader.close()


async def test_a_session_is_no_longer_bound_when_its_number_comes_again(
    database: Database, shop: asyncpg.Connection, database_logins: Logins
) -> None:
    session = await asyncpg.connect(database_logins.reader)
    pid = session.get_server_pid()
    await database.fetch("SELECT ksi_postgres.bind_reader($1, 'b')", pid)
    bound = await session.fetch("SELECT name FROM ksi_read.things")

    # as if an earlier process of this number had been bound
    await shop.execute(
        "UPDATE ksi_postgres.reader_session SET bound_at = bound_at - interval '1 day'"
    )

    assert [row["name"] for row in bound] == [SECRET]
    assert await session.fetch("SELECT name FROM ksi_read.things") == []
    await session.close()


async def test_many_tenants_at_once_each_see_their_own(
    database: Database, shop: asyncpg.Connection
) -> None:
    reader = Reader(database, PostgresSettings(reader_connections=3))

    async def ask(tenant: str) -> tuple[str, list[str]]:
        return tenant, await names(reader, tenant)

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask("ab"[n % 2])) for n in range(60)]

    own = {"a": ["a-thing"], "b": [SECRET]}
    assert all(seen == own[tenant] for tenant, seen in (each.result() for each in asked))
    await reader.close()


FRAGMENTS: Final = (
    *ATTACKS,
    *STATEMENTS,
    *HARMLESS_ALONE,
    "SELECT name FROM ksi_read.things",
    "(SELECT name FROM ksi_shop.thing)",
    "ksi_read.things",
    "ksi_shop.thing",
    "name",
    "price",
    "'b'",
    "tenant",
    "4711 - 0",
)
GLUE: Final = (
    " ",
    ";",
    "; ",
    " UNION ALL ",
    " WHERE ",
    ", ",
    ")",
    "(",
    " -- ",
    "/*",
    "*/",
    " OR ",
    "'",
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.sampled_from(GLUE)), min_size=1, max_size=4)
)
async def test_no_mixture_of_attacks_shows_another_tenant_s_rows(
    reader: Reader, parts: list[tuple[str, str]]
) -> None:
    query = "".join(fragment + glue for fragment, glue in parts)

    try:
        told = str((await reader.read("a", query)).rows)
    except KsiError as error:
        told = str(error.body)

    assert SECRET not in told
    assert await names(reader, "a") == ["a-thing"]


@pytest.mark.parametrize(
    "attack",
    [
        "SET ROLE ksi_owner",
        "SET SESSION AUTHORIZATION postgres",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_ls_dir('.')",
        "SELECT lo_import('/etc/passwd')",
        "COPY ksi_shop.thing TO '/tmp/x'",
        "COPY ksi_shop.thing TO PROGRAM 'cat'",
        "CREATE EXTENSION dblink",
        "CREATE FUNCTION public.f() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
        "CREATE TABLE ksi_shop.t (n int)",
        "ALTER TABLE ksi_shop.thing DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE ksi_shop.thing NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY tenants ON ksi_shop.thing",
        "CREATE POLICY mine ON ksi_shop.thing USING (true)",
        "SELECT ksi_postgres.protect('ksi_shop.thing')",
        "TRUNCATE ksi_shop.thing",
        "SELECT * FROM ksi_postgres.reader_session",
        "SELECT * FROM pg_authid",
        "ALTER SYSTEM SET log_statement = 'all'",
        "INSERT INTO ksi_postgres.migration VALUES ('x', 1, '', '', '', 0)",
    ],
)
async def test_the_daemon_s_own_login_can_t_pass_the_walls_either(
    database: Database, shop: asyncpg.Connection, attack: str
) -> None:
    with pytest.raises(DENIED):
        await database.fetch(attack)


async def test_without_row_security_a_query_is_refused_and_not_unbounded(
    database: Database, shop: asyncpg.Connection
) -> None:
    async with database.transaction(tenant="a") as connection:
        await connection.execute("SET LOCAL row_security = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT * FROM ksi_shop.thing")

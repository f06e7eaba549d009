"""The walls between tenants: every table, view and function of every plugin is tried across them.

What is tried is read from the catalogue, so that whatever a plugin adds is tried without a word.
"""
# ruff: noqa: S608, ISC004  what is put together here is names of the catalogue, and scripts

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest

from ksi_daemon.protocol import Failed
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.migrations import Migration, migrate
from ksi_postgres.reader import Reader
from ksi_postgres.settings import PostgresSettings

MARK: Final = "tenant-b-secret"
OURS: Final = "n.nspname LIKE 'ksi\\_%'"
TABLES: Final = f"""
    SELECT c.oid::int AS oid, n.nspname || '.' || quote_ident(c.relname) AS name,
           c.relforcerowsecurity AS is_protected
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE {OURS} AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 2
"""
COLUMNS: Final = """
    SELECT a.attname AS name, t.typname AS type, t.typtype::text AS kind,
           t.typcategory::text AS category,
           (SELECT min(e.enumlabel) FROM pg_enum e WHERE e.enumtypid = t.oid) AS label,
           (SELECT min(substring(pg_get_constraintdef(c.oid) FROM '''([^'']+)'''))
              FROM pg_constraint c
             WHERE c.conrelid = a.attrelid AND c.contype = 'c' AND c.conkey = ARRAY[a.attnum]
           ) AS allowed
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = $1::int::oid AND a.attnum > 0 AND NOT a.attisdropped
       AND a.attgenerated = '' AND a.attidentity = ''
       AND (a.attnotnull AND NOT a.atthasdef OR t.typcategory = 'S' OR a.attname = 'tenant')
     ORDER BY a.attnum
"""
FUNCTIONS: Final = f"""
    SELECT p.oid::int AS oid, p.oid::regprocedure::text AS name, n.nspname AS schema,
           p.proname AS short, p.prosecdef AS is_definer,
           coalesce(p.proargnames[1:p.pronargs], '{{}}') AS arguments,
           ARRAY(SELECT format_type(each, NULL) FROM unnest(p.proargtypes) each) AS types,
           p.proretset AS is_set
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE {OURS} AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype
       AND has_function_privilege('ksi_app', p.oid, 'EXECUTE') ORDER BY 2
"""
# What runs with the owner's rights for all tenants at once, and why.
WITHOUT_TENANT: Final = {
    "ksi_postgres.forget_keys": "forgets old keys, whosever; returns nothing",
    "ksi_postgres.reader_tenant": "tells a session its own tenant",
    "ksi_journal.make_ahead": "makes partitions; touches no row",
    "ksi_journal.partitions": "lists partitions and their sizes",
    "ksi_journal.record": "writes one entry, which names its tenant",
    "ksi_journal.retain": "drops what is too old, whosever",
    "ksi_journal.take_in": "gives entries their position, whosever",
    "ksi_journal.write": "writes a batch, each entry of which names its tenant",
    "ksi_journal.written_through": "tells a writer how far it had come",
    "ksi_completion.at_work": "names the turns at work and whose they are, for the sweep",
    "ksi_completion.drop_questions": "drops what turns that have ended had asked, whosever",
    "ksi_completion.due": "begins what may begin and names whose it is, for the sweep",
    "ksi_completion.tidy_relay": "deletes what was relayed long ago, whosever",
    "ksi_agents.awaiting_events": "names agents that events wake, whosever",
    "ksi_agents.close_accounts": "deletes accounts of turns that have long ended, whosever",
    "ksi_agents.due": "takes agents that somebody is to look after, whosever",
    "ksi_agents.forget_blueprints": "deletes what no agent runs by any more, whosever",
    "ksi_agents.forget_ended": "deletes agents that ended long ago, whosever",
    "ksi_http.find_key": "a key by its id, which says itself whose it is",
    "ksi_orchestration.due": "takes orchestrations that somebody is to look after, whosever",
    "ksi_orchestration.forget_ended": "deletes orchestrations that ended long ago, whosever",
    "ksi_memory.claim_waiting": "takes what waits for vectors, with whose it is, for the worker",
    "ksi_memory.complete_embedder": "notes that a model's vectors are all there",
    "ksi_memory.dreaming_tenants": "names the tenants whose memory has changed, for the schedule",
    "ksi_memory.expire_uploads": "deletes uploads that nobody goes on with, whosever",
    "ksi_memory.fold_counts": "sums up what was counted, tenant by tenant",
    "ksi_memory.index_embedder": "makes a model's index",
    "ksi_memory.known_texts": "names the tenant of each text, for the worker",
    "ksi_memory.next_lease_end": "tells when a lease ends, whosever",
    "ksi_memory.release_waiting": "gives back what was taken; each row names its tenant",
    "ksi_memory.store_vectors": "keeps vectors, each of which names its tenant",
    "ksi_memory.unread": "names conversations that wait to be read and whose they are",
    "ksi_memory.want_embedder": "notes that a model's vectors are wanted, for everybody",
    "ksi_mcp.all_known": "what is known of servers' tools, with whose it is, for the registry",
    "ksi_mcp.all_servers": "names the servers that were added and whose they are",
    "ksi_tools.doubt_calls": "puts in doubt what daemons that are gone have left, whosever",
    "ksi_tools.forget_calls": "forgets calls that ended long ago, whosever",
    "ksi_tools.unsignalled": "names settled calls whose runs were not told, whosever",
    "ksi_models.forget": "deletes rows that are too old, whosever; returns a count",
    "ksi_models.lose": "marks the calls that nobody has ended, whosever; returns a count",
    "ksi_models.tenants": "names the tenants that asked models, for the sums of the owner",
    "ksi_workflows": "the engine's own: addressed by the id of a run, under its daemon's lease",
}
TENANT: Final = re.compile(r"(^|_)tenant$")
SAMPLES: Final = {
    "text": "'x'",
    "integer": "1",
    "bigint": "1",
    "smallint": "1",
    "double precision": "1.0",
    "numeric": "1",
    "boolean": "true",
    "bytea": "'\\x00'::bytea",
    "interval": "interval '0 s'",
    "uuid": "'00000000-0000-0000-0000-000000000001'::uuid",
    "timestamp with time zone": "now()",
    "jsonb": "'{}'::jsonb",
    "json": "'{}'::json",
    "text[]": "ARRAY['x']",
    "integer[]": "ARRAY[1]",
    "bigint[]": "ARRAY[1::bigint]",
}


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture
async def owner(database_logins: Logins) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection, to look past the walls."""
    connection = await asyncpg.connect(database_logins.admin)
    yield connection
    await connection.close()


async def fill(owner: asyncpg.Connection, table: Any, tenant: str) -> bool:
    """Insert a row of a tenant, with its mark wherever text goes; say whether that was possible."""
    names, values = [], []
    for column in await owner.fetch(COLUMNS, table["oid"]):
        names.append(quoted(column["name"]))
        values.append(_value(column, tenant))
    statement = f"INSERT INTO {table['name']} ({', '.join(names)}) VALUES ({', '.join(values)})"
    async with owner.transaction():
        await owner.execute("SET LOCAL session_replication_role = replica")  # no foreign keys
        try:
            async with owner.transaction():
                await owner.execute(statement)
        except (asyncpg.CheckViolationError, asyncpg.DataError):
            return False
    return True


def _value(column: Any, tenant: str) -> str:
    if column["name"] == "tenant":
        return f"'{tenant}'"
    if column["kind"] == "e":
        return f"'{column['label']}'"
    if column["allowed"] is not None:  # the first of the words that its check names
        return f"'{column['allowed']}'"
    if column["category"] == "S":
        return f"'{MARK if tenant == 'b' else 'x'}'"
    if column["category"] == "A":
        return "'{}'"
    if column["type"] == "vector":
        return "'[1]'"
    if column["type"] in ("jsonb", "json"):
        return f'\'{{"x": "{MARK if tenant == "b" else "x"}"}}\''
    if column["type"].startswith("timestamp") or column["type"] == "date":
        return "now()"
    return {
        "bytea": "'\\x00'",
        "uuid": "gen_random_uuid()",
        "bool": "true",
        "interval": "'1 s'",
    }.get(column["type"], "2" if tenant == "b" else "1")


@pytest.fixture
async def filled(owner: asyncpg.Connection) -> list[str]:
    """The protected tables, with a row of tenant b in each and, where keys allow, one of a."""
    filled = []
    for table in await owner.fetch(TABLES):
        if table["is_protected"]:
            has_row = await fill(owner, table, "b")
            assert has_row, f"{table['name']}: teach this test to make a row of it"
            with contextlib.suppress(asyncpg.UniqueViolationError):
                await fill(owner, table, "a")
            filled.append(table["name"])
    return filled


async def rows_of_b(owner: asyncpg.Connection, tables: list[str]) -> dict[str, str]:
    """A checksum of tenant b's rows, by table."""
    return {
        table: await owner.fetchval(
            f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t "
            "WHERE tenant = 'b'"
        )
        for table in tables
    }


# -- tables and views -----------------------------------------------------------------------------


async def test_the_store_s_own_tables_are_among_those_that_are_tried(filled: list[str]) -> None:
    assert "ksi_postgres.idempotency_key" in filled


@pytest.mark.parametrize("bound_to", ["a", "", None])
async def test_no_query_sees_or_changes_another_tenant_s_rows(
    database: Database, owner: asyncpg.Connection, filled: list[str], bound_to: str | None
) -> None:
    before = await rows_of_b(owner, filled)

    for table in filled:
        async with database.transaction(tenant=bound_to) as connection:
            seen = await connection.fetch(f"SELECT t::text AS line, tenant FROM {table} t")
            assert not [row for row in seen if row["tenant"] != bound_to], table
            assert MARK not in str(seen)
            for condition in ("", " WHERE tenant = 'b'"):
                for change in (
                    f"DELETE FROM {table}{condition}",
                    f"UPDATE {table} SET tenant = tenant{condition}",
                    f"UPDATE {table} SET tenant = 'b'{condition}",
                ):
                    await _try(connection, change)

    assert await rows_of_b(owner, filled) == before


async def _try(connection: asyncpg.Connection, statement: str) -> None:
    """Run it and take it back if it was refused, so that the next one can be tried."""
    try:
        async with connection.transaction():
            await connection.execute(statement)
    except (
        asyncpg.InsufficientPrivilegeError,
        asyncpg.IntegrityConstraintViolationError,
        asyncpg.RaiseError,
    ):
        pass


@pytest.mark.parametrize("bound_to", ["a", None])
async def test_no_row_can_be_put_into_another_tenant(
    database: Database, owner: asyncpg.Connection, filled: list[str], bound_to: str | None
) -> None:
    before = await rows_of_b(owner, filled)

    for table in filled:
        async with database.transaction(tenant=bound_to) as connection:
            refused = False
            try:
                async with connection.transaction():
                    columns = await owner.fetch(COLUMNS, await _oid(owner, table))
                    names = ", ".join(quoted(each["name"]) for each in columns)
                    values = ", ".join(_value(each, "b") for each in columns)
                    await connection.execute(f"INSERT INTO {table} ({names}) VALUES ({values})")
            except asyncpg.InsufficientPrivilegeError:
                refused = True
            except asyncpg.IntegrityConstraintViolationError:
                pass  # a trigger or a key was first; the rows tell
            assert refused or await rows_of_b(owner, [table]) == {table: before[table]}

    assert await rows_of_b(owner, filled) == before


async def _oid(owner: asyncpg.Connection, table: str) -> int:
    oid: int = await owner.fetchval("SELECT $1::text::regclass::oid::int", table)
    return oid


async def test_the_reader_reaches_no_table_at_all(
    owner: asyncpg.Connection, filled: list[str], database_logins: Logins
) -> None:
    reader = await asyncpg.connect(database_logins.reader)
    for table in await owner.fetch(TABLES):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.fetch(f"SELECT * FROM {table['name']}")
    await reader.close()


VIEWS: Final = """SELECT 'ksi_read.' || quote_ident(viewname) FROM pg_views
                   WHERE schemaname = 'ksi_read'"""


async def test_documented_views_show_a_tenant_its_own_rows_alone(
    database: Database, owner: asyncpg.Connection, database_logins: Logins
) -> None:
    await migrate(owner, [step(PUBLISHED)])
    for table in await owner.fetch(TABLES):
        if table["is_protected"]:
            await fill(owner, table, "b")
    reader = Reader(database, PostgresSettings(reader_connections=1))
    unbound = await asyncpg.connect(database_logins.reader)
    views = [row[0] for row in await owner.fetch(VIEWS)]

    for view in views:
        shown = await reader.read("a", f"SELECT v::text FROM {view} v")
        own = await reader.read("b", f"SELECT v::text FROM {view} v")
        assert MARK not in str(shown.rows), view
        assert own.rows or view != "ksi_read.things"
        assert await unbound.fetch(f"SELECT * FROM {view}") == []

    assert "ksi_read.things" in views
    await unbound.close()
    await reader.close()


# -- functions ------------------------------------------------------------------------------------


async def test_functions_called_for_a_tenant_show_and_change_nothing_of_another(
    database: Database, owner: asyncpg.Connection, filled: list[str]
) -> None:
    before = await rows_of_b(owner, filled)
    forget = "SET session_replication_role = replica;" + "".join(
        f"DELETE FROM {table} t WHERE tenant = 'a' AND t::text LIKE '%{MARK}%';" for table in filled
    )
    tried = 0

    for function in await owner.fetch(FUNCTIONS):
        if not function["is_definer"] or not any(map(TENANT.search, function["arguments"])):
            continue
        for filler in ("'x'", f"'{MARK}'", "NULL"):
            values = [
                "'a'" if TENANT.search(name) else _argument(kind, filler)
                for name, kind in zip(function["arguments"], function["types"], strict=True)
            ]
            call = f"{function['schema']}.{function['short']}({', '.join(values)})"
            answer = await _called(database, call)
            if filler == f"'{MARK}'":
                await owner.execute(forget)  # else its own words would be taken for b's
            else:
                assert MARK not in answer, call
            tried += 1

    assert await rows_of_b(owner, filled) == before
    assert tried >= 9


def _argument(kind: str, filler: str) -> str:
    if kind == "text":
        return filler
    sample = SAMPLES.get(kind, "NULL")
    return sample if filler != "NULL" else f"NULL::{kind}"


async def _called(database: Database, call: str) -> str:
    try:
        async with database.transaction(tenant="a") as connection:
            return str(await connection.fetch(f"SELECT * FROM {call}"))
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return str(error)


async def test_functions_of_the_owner_s_without_a_tenant_are_on_the_list_with_a_reason(
    owner: asyncpg.Connection,
) -> None:
    missing = [
        function["name"]
        for function in await owner.fetch(FUNCTIONS)
        if function["is_definer"]
        and not any(map(TENANT.search, function["arguments"]))
        and f"{function['schema']}.{function['short']}" not in WITHOUT_TENANT
        and function["schema"] not in WITHOUT_TENANT
    ]

    assert not missing, "\n".join(missing)


# -- holes ----------------------------------------------------------------------------------------

THING = "CREATE TABLE thing (tenant text NOT NULL, name text);"
PROTECTED = THING + "SELECT ksi_postgres.protect('thing');"
PUBLISHED = (
    PROTECTED + "SELECT ksi_postgres.publish('thing', 'things', ARRAY['tenant', 'name'], 'things');"
)
SECURE = "SECURITY DEFINER SET search_path = ksi_shop, pg_temp"
HOLES = {
    "a bare table": (THING, "neither protected nor shared"),
    "one that is enabled but not forced": (
        THING + "ALTER TABLE thing ENABLE ROW LEVEL SECURITY;",
        "neither protected nor shared",
    ),
    "one that is switched off again": (
        PROTECTED + "ALTER TABLE thing DISABLE ROW LEVEL SECURITY;",
        "neither protected nor shared",
    ),
    "a shared one with tenants": (
        THING + "SELECT ksi_postgres.share('thing', 'a reason');",
        "has a column tenant",
    ),
    "a shared one without a reason": (
        "CREATE TABLE thing (n int); SELECT ksi_postgres.share('thing', '');",
        "neither protected nor shared",
    ),
    "an unlogged one": ("CREATE UNLOGGED TABLE t (tenant text);", "neither protected nor shared"),
    "a child by inheritance": (
        PROTECTED + "CREATE TABLE child () INHERITS (thing);",
        "child is neither protected nor shared",
    ),
    "a partition with grants": (
        "CREATE TABLE thing (tenant text NOT NULL, n int) PARTITION BY RANGE (n);"
        "SELECT ksi_postgres.protect('thing');"
        "CREATE TABLE part PARTITION OF thing DEFAULT; GRANT SELECT ON part TO ksi_app;",
        "past its parent",
    ),
    "a policy that shows all": (
        PROTECTED + "CREATE POLICY mine ON thing USING (true);",
        "policy mine of its own",
    ),
    "the tenants' policy changed": (
        PROTECTED + "ALTER POLICY tenants ON thing USING (true);",
        "policy tenants of its own",
    ),
    "a wider check": (
        PROTECTED + "ALTER POLICY tenants ON thing WITH CHECK (true);",
        "policy tenants of its own",
    ),
    "the owners' policy for all": (
        PROTECTED + "ALTER POLICY owners ON thing TO PUBLIC;",
        "policy owners of its own",
    ),
    "a grant to the reader": (
        PROTECTED + "GRANT SELECT ON thing TO ksi_reader;",
        "past the documented views",
    ),
    "a grant of one column to everybody": (
        PROTECTED + "GRANT SELECT (name) ON thing TO PUBLIC;",
        "past the documented views",
    ),
    "a view with its owner's rights": (
        PROTECTED + "CREATE VIEW seen AS SELECT * FROM thing; GRANT SELECT ON seen TO ksi_app;",
        "runs with its owner's rights",
    ),
    "a materialized view": (
        PROTECTED
        + "CREATE MATERIALIZED VIEW m AS SELECT * FROM thing; GRANT SELECT ON m TO ksi_app;",
        "runs with its owner's rights",
    ),
    "a view of the reader's without a barrier": (
        PROTECTED + "CREATE VIEW ksi_read.things AS SELECT * FROM thing;",
        "no documented view",
    ),
    "a view of the reader's without a tenant": (
        PROTECTED + "CREATE VIEW ksi_read.things WITH (security_barrier) AS SELECT * FROM thing;",
        "no documented view",
    ),
    "a table among the views": (
        "CREATE TABLE ksi_read.things (n int);",
        "no documented view",
    ),
    "a function without a path": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';",
        "no search_path of its own",
    ),
    "a function for everybody": (
        f"CREATE FUNCTION f() RETURNS int LANGUAGE sql {SECURE} AS 'SELECT 1';"
        "GRANT EXECUTE ON FUNCTION f TO PUBLIC;",
        "may be executed by everybody",
    ),
    "a function for the reader": (
        f"CREATE FUNCTION f() RETURNS int LANGUAGE sql {SECURE} AS 'SELECT 1';"
        "GRANT EXECUTE ON FUNCTION f TO ksi_reader;",
        "the reader may execute",
    ),
    "a table of the superuser's": (
        "RESET ROLE; CREATE TABLE ksi_shop.thing (n int);"
        "SELECT ksi_postgres.share('ksi_shop.thing', 'a reason');",
        "and not to ksi_owner",
    ),
    "a function of the superuser's": (
        f"RESET ROLE; CREATE FUNCTION ksi_shop.f() RETURNS int LANGUAGE sql {SECURE} "
        "AS 'SELECT 1'; REVOKE EXECUTE ON FUNCTION ksi_shop.f FROM PUBLIC;",
        "and not to ksi_owner",
    ),
}


def step(sql: str) -> Migration:
    return Migration("shop", 1, "things", sql, "1.0")


@pytest.mark.parametrize(("sql", "told"), HOLES.values(), ids=HOLES.keys())
async def test_a_migration_that_leaves_a_hole_is_rolled_back(
    owner: asyncpg.Connection, sql: str, told: str
) -> None:
    with pytest.raises(Failed, match=re.escape(told)):
        await migrate(owner, [step(sql)])

    assert await owner.fetchval("SELECT to_regnamespace('ksi_shop')") is None


@pytest.mark.parametrize(
    "sql",
    [
        PUBLISHED,
        "CREATE TABLE t (n int); SELECT ksi_postgres.share('t', 'a reason');",
        PROTECTED + "CREATE POLICY less ON thing AS RESTRICTIVE USING (name <> '');",
        PROTECTED + "CREATE VIEW seen WITH (security_invoker = true) AS SELECT * FROM thing;"
        "GRANT SELECT ON seen TO ksi_app;",
        f"CREATE FUNCTION f() RETURNS int LANGUAGE sql {SECURE} AS 'SELECT 1';",
    ],
)
async def test_what_stands_within_the_walls_passes(owner: asyncpg.Connection, sql: str) -> None:
    assert await migrate(owner, [step(sql)]) == 1

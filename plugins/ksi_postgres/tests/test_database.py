"""The pool: what its users see when all is well, and when it isn't."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import pytest
from msgspec.structs import replace

from ksi_daemon.logs import RepeatFilter
from ksi_daemon.protocol import Busy, Denied, TimedOut, Unavailable
from ksi_postgres import database as databases
from ksi_postgres import migrations, setup
from ksi_postgres.database import ARRAYS, KEPT, Database, is_lost
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import APP, Logins, socket_url
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.testing import SETTINGS, TestServer

SOON_S = 20.0
KEY = "INSERT INTO ksi_postgres.idempotency_key VALUES ($1, 'p', '', $2, '', 'boot')"


def quick(**changes: object) -> PostgresSettings:
    made: PostgresSettings = replace(SETTINGS, retry_first_s=0.02, retry_max_s=0.1, **changes)
    return made


@asynccontextmanager
async def opened(
    logins: Logins, settings: PostgresSettings, *, watched: bool = True, role: str | None = None
) -> AsyncIterator[Database]:
    database = Database(logins, settings, role=role)
    async with asyncio.TaskGroup() as tasks:
        try:
            await database.open()
            watching = tasks.create_task(database.watch()) if watched else None
            yield database
            if watching is not None:
                watching.cancel()
        finally:
            await database.close()


class Comings:
    """Waits for Postgres to come and go, as the database tells it."""

    def __init__(self, database: Database) -> None:
        self.seen: list[bool] = []
        self._wake = asyncio.Event()
        database.changed.append(self._tell)

    def _tell(self, is_up: bool) -> None:
        self.seen.append(is_up)
        self._wake.set()

    async def until(self, *states: bool) -> None:
        async with asyncio.timeout(SOON_S):
            while tuple(self.seen[-len(states) :]) != states:
                self._wake.clear()
                await self._wake.wait()


async def as_admin(logins: Logins, statement: str, *arguments: object) -> object:
    connection = await asyncpg.connect(logins.admin)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


# -- what comes back ------------------------------------------------------------------------------


async def test_queries_give_rows_a_row_a_value_and_a_tag(database: Database) -> None:
    rows = await database.fetch("SELECT n FROM generate_series(1, $1::int) n", 3)
    row = await database.fetchrow("SELECT 1 AS x WHERE $1", True)

    assert [each["n"] for each in rows] == [1, 2, 3]
    assert row is not None
    assert row["x"] == 1
    assert await database.fetchrow("SELECT 1 WHERE false") is None
    assert await database.fetchval("SELECT 'x'") == "x"
    assert await database.execute("SELECT 1") == "SELECT 1"


async def test_jsonb_comes_as_text_for_its_reader_to_decode(database: Database) -> None:
    assert await database.fetchval("""SELECT '{"a": 1}'::jsonb""") == '{"a": 1}'


async def test_a_transaction_is_bound_to_its_tenant_and_nothing_stays_of_it(
    database: Database,
) -> None:
    for tenant, key in (("a", "1"), ("b", "2")):
        async with database.transaction(tenant=tenant) as connection:
            await connection.execute(KEY, tenant, key)
    count = "SELECT count(*) FROM ksi_postgres.idempotency_key"

    async with database.transaction(tenant="a") as connection:
        seen = await connection.fetchval(count)
    async with database.transaction() as connection:
        unbound = await connection.fetchval(count)

    assert (seen, unbound, await database.fetchval(count)) == (1, 0, 0)


async def test_what_is_raised_rolls_back(database: Database) -> None:
    with pytest.raises(LookupError):  # noqa: PT012  it is the leaving that is tested
        async with database.transaction(tenant="a") as connection:
            await connection.execute(KEY, "a", "1")
            raise LookupError

    async with database.transaction(tenant="a") as connection:
        assert not await connection.fetch("SELECT FROM ksi_postgres.idempotency_key")


async def test_many_rows_are_written_all_or_none(database_logins: Logins) -> None:
    async with opened(database_logins, SETTINGS) as database:
        await as_admin(
            database_logins,
            "DO $$ BEGIN CREATE TABLE public.t (n int PRIMARY KEY); "
            "GRANT ALL ON public.t TO ksi_app; END $$",
        )
        await database.executemany("INSERT INTO public.t VALUES ($1)", [(1,), (2,)])

        with pytest.raises(asyncpg.UniqueViolationError):
            await database.executemany("INSERT INTO public.t VALUES ($1)", [(3,), (1,)])

        assert await database.fetchval("SELECT count(*) FROM public.t") == 2


async def test_a_readonly_transaction_writes_nothing(database: Database) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with database.transaction(tenant="a", readonly=True) as connection:
            await connection.execute(KEY, "a", "1")


# -- what goes wrong ------------------------------------------------------------------------------


async def test_a_violated_constraint_is_its_caller_s_to_translate(database: Database) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):  # noqa: PT012  through the leaving of it
        async with database.transaction(tenant="a") as connection:
            await connection.execute(KEY, "a", "1")
            await connection.execute(KEY, "a", "1")

    assert database.is_up


async def test_a_slow_query_times_out_and_gives_its_connection_back(
    database_logins: Logins,
) -> None:
    async with opened(database_logins, quick(pool_connections=1)) as database:
        with pytest.raises(TimedOut, match=r"postgres\.query_timeout_s"):
            await database.fetch("SELECT pg_sleep(100)", timeout_s=0.1)

        assert await database.fetchval("SELECT 1") == 1


async def test_the_time_of_the_settings_bounds_what_says_nothing_of_time(
    database_logins: Logins,
) -> None:
    async with opened(database_logins, quick(query_timeout_s=0.2)) as database:
        with pytest.raises(TimedOut):
            await database.fetch("SELECT pg_sleep(100)")
        with pytest.raises(TimedOut):
            async with database.transaction() as connection:
                await connection.execute("SELECT pg_sleep(100)")

        assert await database.fetchval("SELECT 1 FROM pg_sleep(0.4)", timeout_s=0) == 1


async def test_a_deadlock_is_busy_and_one_of_the_two_goes_on(database: Database) -> None:
    both = asyncio.Barrier(2)

    async def lock(first: int, second: int) -> str:
        try:
            async with database.transaction() as connection:
                await connection.execute("SELECT pg_advisory_xact_lock($1)", first)
                await both.wait()
                await connection.execute("SELECT pg_advisory_xact_lock($1)", second)
        except Busy as busy:
            return f"{busy.code}, again in {busy.retry_after_s} s"
        return "done"

    async with asyncio.TaskGroup() as tasks:
        ends = [tasks.create_task(lock(*keys)) for keys in ((1, 2), (2, 1))]

    assert sorted(end.result() for end in ends) == ["busy, again in 0.05 s", "done"]


async def test_a_busy_pool_says_which_settings_to_raise(database_logins: Logins) -> None:
    settings = quick(pool_connections=1, acquire_timeout_s=0.1)
    async with opened(database_logins, settings) as database:
        async with database.transaction():
            with pytest.raises(Unavailable, match=r"postgres\.pool_connections") as caught:
                await database.fetch("SELECT 1")

        assert caught.value.retry_after_s == 1.0
        assert database.is_up
        assert await database.fetchval("SELECT 1") == 1


async def test_who_waits_for_a_connection_gets_the_next_that_is_free(
    database_logins: Logins,
) -> None:
    settings = quick(pool_connections=2, acquire_timeout_s=SOON_S)
    async with opened(database_logins, settings) as database:
        async with database.transaction(), asyncio.TaskGroup() as tasks, database.transaction():
            waiting = tasks.create_task(database.fetchval("SELECT 1"))
            await _until(lambda: database._waiting == 1)
        assert waiting.result() == 1
        assert database.pool_sizes() == (2, 2)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not is_so():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.001)


async def test_of_many_free_connections_only_some_stay_taken(database_logins: Logins) -> None:
    async with opened(database_logins, quick(pool_connections=KEPT + 2)) as database:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(KEPT + 2):
                await stack.enter_async_context(database.transaction())
        assert len(database._kept) == KEPT
        assert database.pool_sizes() == (KEPT + 2, KEPT + 2)


async def test_a_free_connection_that_was_closed_is_not_used(database_logins: Logins) -> None:
    async with opened(database_logins, quick(pool_connections=1)) as database:
        before = await database.fetchval("SELECT pg_backend_pid()")
        await as_admin(database_logins, f"SELECT pg_terminate_backend({before})")
        await _until(lambda: is_lost(database._kept[0]))

        connections, free = database.pool_sizes()
        assert await database.fetchval("SELECT pg_backend_pid()") != before
        assert free <= connections
        assert database.pool_sizes() == (1, 1)


async def test_a_connection_that_is_left_in_a_transaction_is_nobody_else_s(
    database_logins: Logins,
) -> None:
    async with opened(database_logins, quick(pool_connections=1)) as database:
        await database.execute("BEGIN")
        first, other = [await database.fetchval("SELECT txid_current()") for _ in range(2)]

        assert first != other


async def test_free_connections_are_closed_when_nobody_needs_them_for_long(
    database_logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_pool = partial(asyncpg.create_pool, max_inactive_connection_lifetime=0.01)
    monkeypatch.setattr(asyncpg, "create_pool", create_pool)
    monkeypatch.setattr(databases, "GIVE_BACK_S", 0.01)
    async with opened(database_logins, quick(pool_connections=4)) as database:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(database.transaction())
        await _until(lambda: database.pool_sizes() == (1, 1))

        assert await database.fetchval("SELECT 1") == 1


async def test_no_connection_from_before_postgres_went_is_used(database_logins: Logins) -> None:
    async with opened(database_logins, quick(pool_connections=2), watched=False) as database:
        async with database.transaction() as taken:
            free = await database.fetchval("SELECT pg_backend_pid()")
            busy = await taken.fetchval("SELECT pg_backend_pid()")
            await database._expire()
        async with database.transaction() as one, database.transaction() as other:
            now = {await each.fetchval("SELECT pg_backend_pid()") for each in (one, other)}

    assert not now & {free, busy}


async def test_connections_that_answer_no_more_hold_up_nobody_when_postgres_is_back(
    database_logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network may have dropped them, or what stands between has another server by now."""
    asked: list[asyncpg.Connection] = []

    async def never(connection: asyncpg.Connection, **_: object) -> None:
        asked.append(connection)
        await asyncio.Event().wait()

    async with opened(database_logins, quick(), watched=False) as database:
        await database.fetchval("SELECT 1")
        monkeypatch.setattr(asyncpg.Connection, "close", never)
        async with asyncio.timeout(SOON_S):
            await database._expire()

        assert not asked
        assert await database.fetchval("SELECT 1") == 1


async def test_a_connection_that_breaks_between_two_messages_is_no_end_of_the_watch(
    database_logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database_logins, quick()) as database:
        comings, broken = Comings(database), database._watched
        execute = asyncpg.Connection.execute

        async def broken_off(connection: asyncpg.Connection, *args: Any, **options: Any) -> str:
            if connection is broken:
                raise asyncpg.InternalClientError("another operation is in progress")
            return str(await execute(connection, *args, **options))

        monkeypatch.setattr(asyncpg.Connection, "execute", broken_off)
        database._doubted.set()
        await comings.until(False, True)

        assert await database.fetchval("SELECT 1") == 1


async def test_what_is_told_before_postgres_is_back_is_told_when_it_is(
    database_logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []
    expire = Database._expire

    async def told_meanwhile(database: Database) -> None:
        await as_admin(database_logins, "SELECT pg_notify('words', 'early')")
        assert database._watched is not None
        await database._watched.execute("SELECT")  # what was notified comes before its answer
        await expire(database)

    monkeypatch.setattr(Database, "_expire", told_meanwhile)
    async with opened(database_logins, quick()) as database:
        comings = Comings(database)
        await database.listen("words", told.append)
        assert database._watched is not None
        pid = database._watched.get_server_pid()
        await as_admin(database_logins, f"SELECT pg_terminate_backend({pid})")
        await comings.until(False, True)

        assert told == [None]


async def test_too_many_connections_are_no_lost_postgres(database_logins: Logins) -> None:
    async with opened(database_logins, quick(pool_connections=8)) as database:
        comings = Comings(database)
        await as_admin(
            database_logins,
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 2', "
            "current_database()); END $$",
        )

        async with database.transaction() as connection:
            with pytest.raises(Unavailable, match="too many connections") as caught:
                await database.fetch("SELECT 1")
            assert await connection.fetchval("SELECT 1") == 1

        assert caught.value.retry_after_s == 1.0
        assert await database.fetchval("SELECT 1") == 1
        assert comings.seen == []


async def test_a_full_disk_says_what_to_do(database_logins: Logins) -> None:
    async with opened(database_logins, SETTINGS) as database:
        with pytest.raises(Unavailable, match="disk is full") as caught:
            await _raise_in(database, database_logins, "53100")

    assert caught.value.retry_after_s == 1.0


async def _raise_in(database: Database, logins: Logins, state: str) -> None:
    await as_admin(
        logins,
        "DO $do$ BEGIN EXECUTE $$CREATE FUNCTION public.fails(state text) RETURNS void LANGUAGE "
        "plpgsql AS 'BEGIN RAISE EXCEPTION USING ERRCODE = state; END'$$; "
        "GRANT EXECUTE ON FUNCTION public.fails TO ksi_app; END $do$",
    )
    await database.fetch("SELECT public.fails($1)", state)


async def test_errors_of_the_caller_s_own_stay_what_they_are(database: Database) -> None:
    with pytest.raises(FileNotFoundError):
        async with database.transaction():
            raise FileNotFoundError

    assert database.is_up


async def test_a_cancelled_query_is_ended_and_its_connection_given_back(
    database_logins: Logins,
) -> None:
    async with opened(database_logins, quick(pool_connections=1)) as database:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(database.fetch("SELECT pg_sleep(100)"))
            await _until_active(database_logins, "SELECT pg_sleep(100)")
            waiting.cancel()

        assert waiting.cancelled()
        assert await database.fetchval("SELECT 1") == 1
        assert database.pool_sizes() == (1, 1)


async def test_a_cancelled_transaction_leaves_nothing(database_logins: Logins) -> None:
    async with opened(database_logins, quick(pool_connections=1)) as database:

        async def write() -> None:
            async with database.transaction(tenant="a") as connection:
                await connection.execute(KEY, "a", "1")
                await connection.execute("SELECT pg_sleep(100)")

        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(write())
            await _until_active(database_logins, "SELECT pg_sleep(100)")
            waiting.cancel()

        async with database.transaction(tenant="a") as connection:
            assert not await connection.fetch("SELECT FROM ksi_postgres.idempotency_key")


async def _until_active(logins: Logins, query: str) -> None:
    connection = await asyncpg.connect(logins.admin)
    try:
        async with asyncio.timeout(SOON_S):
            while not await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE query = $1 AND state = 'active' "
                "AND datname = current_database()",
                query,
            ):
                pass
    finally:
        await connection.close()


# -- Postgres goes and comes ----------------------------------------------------------------------


async def test_a_connection_cut_in_a_transaction_is_unavailable_and_rolled_back(
    database_logins: Logins,
) -> None:
    async with opened(database_logins, quick()) as database:
        comings = Comings(database)

        with pytest.raises(Unavailable) as caught:  # noqa: PT012  through the leaving of it
            async with database.transaction(tenant="a") as connection:
                await connection.execute(KEY, "a", "1")
                backend = connection.get_server_pid()
                await as_admin(database_logins, "SELECT pg_terminate_backend($1, 5000)", backend)
                await connection.execute(KEY, "a", "2")
        assert caught.value.retry_after_s is not None

        async with database.transaction(tenant="a") as connection:
            assert not await connection.fetch("SELECT FROM ksi_postgres.idempotency_key")
        assert comings.seen == []  # Postgres itself was there all the time


async def test_a_connection_cut_while_it_is_idle_is_replaced(database_logins: Logins) -> None:
    async with opened(database_logins, quick(pool_connections=1)) as database:
        backend = await database.fetchval("SELECT pg_backend_pid()")
        await as_admin(database_logins, "SELECT pg_terminate_backend($1, 5000)", backend)

        assert await database.fetchval("SELECT pg_backend_pid()") != backend


async def test_the_watching_connection_cut_is_a_coming_and_a_going(
    database_logins: Logins,
) -> None:
    async with opened(database_logins, quick()) as database:
        comings = Comings(database)

        await as_admin(
            database_logins,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'ksi watch' AND datname = current_database()",
        )
        await comings.until(False, True)

        assert await database.fetchval("SELECT 1") == 1


@pytest.fixture
async def own_server() -> AsyncIterator[EmbeddedServer]:
    """A server that a test may kill."""
    with tempfile.TemporaryDirectory(prefix="ksi-own-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)  # noqa: PTH101  no wait: a directory of this moment
        server = EmbeddedServer(Path(folder) / "pg", SETTINGS, fsync=False)
        await server.start()
        try:
            connection = await asyncpg.connect(_url(server, server.superuser))
            await setup.prepare(connection)
            await setup.set_passwords(connection, {APP: server.passwords[APP]})
            await migrations.migrate(connection, migrations.find_migrations(["postgres"]))
            await connection.close()
            yield server
        finally:
            await server.stop()


def _url(server: EmbeddedServer, role: str) -> str:
    return socket_url(role, server.passwords[role], host=server.host, database="postgres")


async def test_a_killed_postgres_is_noticed_at_once_and_used_again_when_it_is_back(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(RepeatFilter(60.0))
    url = _url(own_server, APP)
    heard: list[str | None] = []
    news = asyncio.Event()

    def hear(payload: str | None) -> None:
        heard.append(payload)
        news.set()

    async with opened(Logins(app=url, direct=url, admin=url), quick()) as database:
        comings = Comings(database)
        await database.listen("news", hear)
        await database.fetch("SELECT pg_notify('news', 'first')")
        async with asyncio.timeout(SOON_S):
            await news.wait()
        assert own_server.pid is not None

        os.kill(own_server.pid, signal.SIGKILL)
        await own_server.wait_end()
        await comings.until(False)
        refusals = []
        for _ in range(100):
            with pytest.raises(Unavailable, match="can't be reached") as caught:
                await database.fetch("SELECT 1")
            refusals.append(caught.value)
        await own_server.start()
        await comings.until(True)
        news.clear()
        await database.fetch("SELECT pg_notify('news', 'second')")
        async with asyncio.timeout(SOON_S):
            await news.wait()

        assert all(0 < (each.retry_after_s or 0) < 1 for each in refusals)
        assert not any("@" in each.message for each in refusals)
        assert heard == ["first", None, "second"]
        assert comings.seen[-2:] == [False, True]
    told = [each for each in caplog.records if each.getMessage() == "Postgres can't be reached"]
    assert len(told) == 1
    assert told[0].levelno == logging.WARNING


async def test_two_who_listen_at_once_both_hear(database: Database) -> None:
    heard: list[tuple[str, str | None]] = []
    done = asyncio.Event()

    def listener(channel: str) -> "object":
        def hear(payload: str | None) -> None:
            heard.append((channel, payload))
            if len(heard) == 3:
                done.set()

        return hear

    async with asyncio.TaskGroup() as tasks:
        for channel in ("one", "two", "three"):
            tasks.create_task(database.listen(channel, listener(channel)))  # type: ignore[arg-type]  # calls alike
    await database.fetch(
        "SELECT pg_notify('one', '1'), pg_notify('two', '2'), pg_notify('three', '3')"
    )
    async with asyncio.timeout(SOON_S):
        await done.wait()

    assert sorted(heard) == [("one", "1"), ("three", "3"), ("two", "2")]


async def test_who_listens_no_more_hears_no_more(database: Database) -> None:
    heard: list[str | None] = []
    done = asyncio.Event()

    def last(payload: str | None) -> None:
        done.set()

    await database.listen("news", heard.append)
    await database.listen("news", last)
    database.unlisten("news", heard.append)

    await database.fetch("SELECT pg_notify('news', 'x')")
    async with asyncio.timeout(SOON_S):
        await done.wait()
    assert heard == []


# -- what crosses the socket ----------------------------------------------------------------------


class CountingProxy:
    """Stands before a server's socket and counts how often it was ready for the next query."""

    def __init__(self, server: TestServer) -> None:
        self._target = f"{server.host}/.s.PGSQL.5432"
        self.round_trips = 0
        self.bridges: set[asyncio.Task[None]] = set()

    async def serve(self, folder: Path) -> asyncio.Server:
        return await asyncio.start_unix_server(self._bridge, folder / ".s.PGSQL.5432")

    async def _bridge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.bridges.add(task)
        to_read, to_write = await asyncio.open_unix_connection(self._target)
        with contextlib.suppress(ConnectionError):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, to_write))
                await self._count(to_read, writer)
        for each in (writer, to_write):
            each.close()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
                self.round_trips += head[:1] == b"Z"
                writer.write(head + body)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
    writer.write_eof()


@asynccontextmanager
async def counted(
    server: TestServer, logins: Logins, folder: Path
) -> AsyncIterator[tuple[Database, CountingProxy]]:
    proxy = CountingProxy(server)
    listening = await proxy.serve(folder)
    here, there = urlencode({"host": str(folder)}), urlencode({"host": server.host})
    url = logins.app.replace(there, here)
    async with opened(Logins(app=url, direct=url, admin=url), quick(pool_connections=1)) as base:
        yield base, proxy
    listening.close()
    await asyncio.wait(proxy.bridges, timeout=SOON_S)


async def test_a_query_costs_one_round_trip_and_none_to_tidy_up(
    postgres_server: TestServer, database_logins: Logins, ksi_home: Path
) -> None:
    async with counted(postgres_server, database_logins, ksi_home) as (database, proxy):
        await database.fetchval("SELECT $1::int", 0)  # prepared once
        before = proxy.round_trips

        for n in range(10):
            await database.fetchval("SELECT $1::int", n)

        assert proxy.round_trips - before == 10


async def test_an_array_costs_no_more_though_its_connection_is_new(
    postgres_server: TestServer, database_logins: Logins, ksi_home: Path
) -> None:
    moment, identity = datetime(2026, 3, 1, 12, tzinfo=UTC), uuid.uuid4()
    values = {
        "bool": [True, None, False],
        "int4": [1, -2],
        "int8": [2**40],
        "float4": [0.5],
        "float8": [1e300],
        "timestamptz": [moment],
        "uuid": [identity],
    }
    assert {name for name, _, _ in ARRAYS} == {f"_{name}" for name in values}
    async with counted(postgres_server, database_logins, ksi_home) as (database, proxy):
        before = proxy.round_trips

        back = {n: await database.fetchval(f"SELECT $1::{n}[]", v) for n, v in values.items()}

        assert back == values
        assert proxy.round_trips - before == len(values)
        rows = await database.fetch("SELECT typname, oid, typelem FROM pg_type")
        assert set(ARRAYS) <= {tuple(row) for row in rows}


async def test_a_tenant_s_transaction_costs_three_more(
    postgres_server: TestServer, database_logins: Logins, ksi_home: Path
) -> None:
    async with counted(postgres_server, database_logins, ksi_home) as (database, proxy):

        async def once() -> None:
            async with database.transaction(tenant="a") as connection:
                await connection.fetchval("SELECT 1")

        await once()
        before = proxy.round_trips

        await once()

        assert proxy.round_trips - before == 4


# -- behind a pooler ------------------------------------------------------------------------------

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@pytest.fixture
def pooled(postgres_server: TestServer, ksi_home: Path) -> Iterator[str]:
    """The folder of the socket of a real pgbouncer in transaction mode, with two backends."""
    assert PGBOUNCER is not None
    users = [f'"{role}" "{text}"\n' for role, text in postgres_server.passwords.items()]
    (ksi_home / "users.txt").write_text("".join(users), encoding="utf-8")
    (ksi_home / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={postgres_server.host} port=5432\n[pgbouncer]\n"
        f"unix_socket_dir = {ksi_home}\nlisten_port = 6432\nlisten_addr =\n"
        f"auth_type = scram-sha-256\nauth_file = {ksi_home}/users.txt\n"
        f"pool_mode = transaction\ndefault_pool_size = 2\nlogfile = {ksi_home}/log\n",
        encoding="utf-8",
    )
    user = None
    if os.getuid() == 0:  # it refuses to run as root
        user = Path(postgres_server.host).owner()
        for path in (ksi_home, *ksi_home.iterdir()):
            shutil.chown(path, user)
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(ksi_home / "pgbouncer.ini")], user=user, stderr=subprocess.DEVNULL
    )
    yield str(ksi_home)
    process.terminate()
    process.wait()


async def _pooled_logins(logins: Logins, server: TestServer, folder: str) -> Logins:
    def behind(url: str) -> str:
        there = urlencode({"host": server.host, "port": 5432})
        return url.replace(there, urlencode({"host": folder, "port": 6432}))

    made = replace(logins, app=behind(logins.app), direct=behind(logins.app))
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                connection = await asyncpg.connect(made.app, statement_cache_size=0)
            except OSError:
                continue
            await connection.close()
            return made


@needs_pgbouncer
async def test_behind_a_pooler_statements_work_and_it_is_found_out(
    postgres_server: TestServer, database_logins: Logins, pooled: str
) -> None:
    logins = await _pooled_logins(database_logins, postgres_server, pooled)

    async with opened(logins, quick(pool_connections=6), watched=False) as database:
        assert database._is_pooled

        async def ask(n: int) -> None:
            assert await database.fetchval("SELECT $1::int + 1", n) == n + 1
            async with database.transaction(tenant=f"t{n % 3}") as connection:
                bound = await connection.fetchval("SELECT current_setting('ksi.tenant')")
                assert bound == f"t{n % 3}"

        async with asyncio.TaskGroup() as tasks:
            for n in range(60):
                tasks.create_task(ask(n))


@needs_pgbouncer
async def test_a_direct_url_beside_the_pooler_bears_the_notifications(
    postgres_server: TestServer, database_logins: Logins, pooled: str
) -> None:
    behind = await _pooled_logins(database_logins, postgres_server, pooled)
    heard = asyncio.Event()

    async with opened(replace(behind, direct=database_logins.app), quick()) as database:
        await database.listen("news", lambda payload: heard.set())
        await database.fetch("SELECT pg_notify('news', 'x')")
        async with asyncio.timeout(SOON_S):
            await heard.wait()
        assert database._is_pooled


@needs_pgbouncer
async def test_a_login_with_too_many_rights_is_refused_behind_a_pooler(
    postgres_server: TestServer, database_logins: Logins, pooled: str
) -> None:
    behind = await _pooled_logins(
        replace(database_logins, app=database_logins.admin), postgres_server, pooled
    )

    with pytest.raises(Denied, match="pooler"):
        await Database(
            replace(behind, direct=database_logins.admin), SETTINGS, role="ksi_app"
        ).open()


async def test_without_a_pooler_none_is_found(database: Database) -> None:
    assert not database._is_pooled

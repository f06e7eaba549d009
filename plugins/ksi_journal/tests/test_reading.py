"""Tests of what is found again: filters, trees, positions, and what retention leaves."""

import asyncio
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct

from ksi_client import AsyncClient
from ksi_daemon.protocol import Busy
from ksi_journal.events import JournalRecord, JournalTrace
from ksi_journal.rows import Row
from ksi_journal.store import Filters, Store
from ksi_journal.trees import tree_of
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.testing import SETTINGS

EXAMPLES = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("agent:run", "agent:say", "tool:call", "tool_x:call", "a%b:call", "a:b:c")
numbers = itertools.count(1)


class Made(Struct, frozen=True):
    """What was recorded, in a test's own words."""

    name: str
    at_s: int
    outcome: str | None
    user: str | None
    agent: str | None
    conversation: str | None
    run: str | None
    text: str
    parent: int | None


A_RECORD = Made("agent:say", 0, "ok", None, None, None, None, "", None)


def made() -> st.SearchStrategy[Made]:
    def some(*values: str) -> st.SearchStrategy[str | None]:
        return st.sampled_from((None, *values))

    return st.builds(
        Made,
        name=st.sampled_from(NAMES),
        at_s=st.integers(0, 20),
        outcome=some("ok", "failed", "denied", "begun"),
        user=some("ann", "bob"),
        agent=some("a", "b"),
        conversation=some("c", "d"),
        run=some("r", "s"),
        text=st.sampled_from(("", "Hello", "100%", "hello_world")),
        parent=st.none() | st.integers(0, 30),
    )


def line(number: int, record: Made, tenant: str) -> bytes:
    parent = record.parent if record.parent is not None and record.parent < number else None
    payload = msgspec.json.encode({"text": record.text})
    row = Row(
        at=(BEGAN + timedelta(seconds=record.at_s)).timestamp(),
        name=record.name,
        id=f"{tenant}-{number}",
        origin="test",
        tenant=tenant,
        payload_bytes=len(payload),
        parent=None if parent is None else f"{tenant}-{parent}",
        on_behalf_of=record.user,
        agent=record.agent,
        conversation=record.conversation,
        run=record.run,
        outcome=record.outcome,
        payload=Raw(payload),
    )
    return msgspec.json.encode(row)


class Shelf:
    """A store that a property test writes to from any number of loops, one after the other."""

    def __init__(self, logins: Logins) -> None:
        self.logins = logins

    def run(self, work: Any) -> Any:
        async def go() -> Any:
            database = Database(self.logins, SETTINGS)
            await database.open()
            try:
                return await work(Store(database))
            finally:
                await database.close()

        return asyncio.run(go())


@pytest.fixture
def shelf(database_logins: Logins) -> Shelf:
    return Shelf(database_logins)


def passes(record: Made, filters: Filters) -> bool:
    """Say whether a record passes, by a reading of the filters that knows no SQL."""
    at = BEGAN + timedelta(seconds=record.at_s)
    failed = record.outcome not in (None, "ok", "begun")
    return all(
        (
            not filters.patterns or any(fnmatchcase(record.name, p) for p in filters.patterns),
            filters.since is None or at >= filters.since,
            filters.until is None or at < filters.until,
            filters.outcome is None
            or (failed if filters.outcome == "failed" else record.outcome == filters.outcome),
            filters.user in (None, record.user),
            filters.agent in (None, record.agent),
            filters.conversation in (None, record.conversation),
            filters.run in (None, record.run),
            filters.text is None or filters.text.lower() in record.text.lower(),
        )
    )


def filters() -> st.SearchStrategy[Filters]:
    times = st.none() | st.integers(0, 20).map(lambda s: BEGAN + timedelta(seconds=s))
    patterns = st.sampled_from(
        ("*", "agent:*", "tool?x:*", "tool_x:call", "a%b:*", "a:?:c", "*call")
    )
    return st.builds(
        Filters,
        patterns=st.lists(patterns, max_size=2).map(tuple),
        since=times,
        until=times,
        outcome=st.sampled_from((None, None, "ok", "failed", "denied")),
        user=st.sampled_from((None, None, "ann")),
        agent=st.sampled_from((None, None, "a")),
        conversation=st.sampled_from((None, None, "c")),
        run=st.sampled_from((None, None, "r")),
        text=st.sampled_from((None, None, "hello", "%", "o_w")),
    )


def test_history_finds_what_passes_the_filters_page_by_page_and_nothing_else(shelf: Shelf) -> None:
    @EXAMPLES
    @given(st.lists(made(), max_size=25), filters(), st.integers(1, 7))
    def check(records: list[Made], wanted: Filters, limit: int) -> None:
        tenant = f"t{next(numbers)}"

        async def work(store: Store) -> list[str]:
            lines = [line(number, record, tenant) for number, record in enumerate(records)]
            await store.write(tenant, 1, lines, security=False)
            # Another's, which must not be found.
            await store.write(tenant, 2, [line(0, r, "x" + tenant) for r in records], security=True)
            found: list[JournalRecord] = []
            cursor: int | None = None
            while True:
                page, cursor = await store.history(tenant, wanted, cursor, limit, payloads=True)
                assert len(page) <= limit
                found += page
                if cursor is None:
                    return [record.id for record in found]

        expected = [f"{tenant}-{n}" for n, record in enumerate(records) if passes(record, wanted)]
        assert shelf.run(work) == expected[::-1]

    check()


def test_a_trace_is_the_tree_from_the_furthest_cause_down(shelf: Shelf) -> None:
    @EXAMPLES
    @given(st.lists(made(), min_size=1, max_size=25), st.data())
    def check(records: list[Made], data: st.DataObject) -> None:
        tenant = f"t{next(numbers)}"
        asked = data.draw(st.integers(0, len(records) - 1))
        limit = data.draw(st.sampled_from((3, 1000)))
        parents = {
            n: r.parent if r.parent is not None and r.parent < n else None
            for n, r in enumerate(records)
        }

        async def work(store: Store) -> Any:
            lines = [line(number, record, tenant) for number, record in enumerate(records)]
            await store.write(tenant, 1, lines, security=False)
            request = JournalTrace(id=f"{tenant}-{asked}", limit=limit)
            root, above = await store.root(tenant, request.id, request.max_depth)
            found = await store.effects(tenant, root, request.max_depth, limit + 1)
            return tree_of(found, request, root=root, above=above)

        root = asked
        while parents[root] is not None:
            root = parents[root]  # type: ignore[assignment]  # it was just looked at
        expected = list(model_of_tree(root, 0, parents))
        traced = shelf.run(work)
        shown = [(int(n.record.id.rpartition("-")[2]), n.depth) for n in traced.nodes]

        assert traced.root == f"{tenant}-{root}"
        if len(expected) <= limit:
            assert shown == expected
            assert traced.cut is None
        else:
            assert set(shown) <= set(expected)
            assert len(shown) == limit
            assert "limit" in traced.cut

    check()


def model_of_tree(
    number: int, depth: int, parents: dict[int, int | None]
) -> Iterator[tuple[int, int]]:
    yield number, depth
    for child, parent in parents.items():
        if parent == number:
            yield from model_of_tree(child, depth + 1, parents)


async def test_a_trace_that_is_too_deep_says_what_is_left_out(database: Database) -> None:
    store = Store(database)
    chain = [msgspec.structs.replace(A_RECORD, parent=n - 1 if n else None) for n in range(30)]
    lines = [line(number, record, "deep") for number, record in enumerate(chain)]
    await store.write("w", 1, lines, security=False)
    request = JournalTrace(id="deep-15", max_depth=10)

    root, above = await store.root("deep", request.id, request.max_depth)
    found = await store.effects("deep", root, request.max_depth, request.limit + 1)
    traced = tree_of(found, request, root=root, above=above)

    assert (root, above) == ("deep-5", 10)
    assert [node.record.id for node in traced.nodes] == [f"deep-{n}" for n in range(5, 16)]
    assert traced.cut is not None
    assert "max_depth" in traced.cut
    assert traced.cause_missing == "deep-4"


# -- positions -----------------------------------------------------------------------------------

WRITERS = 4
BATCHES = 8
A_BATCH = 400


async def test_a_reader_misses_nothing_and_sees_nothing_twice_whoever_writes(
    database_logins: Logins,
) -> None:
    """Batches of several daemons, and records in transactions that commit out of order."""
    databases = [Database(database_logins, SETTINGS) for _ in range(WRITERS + 2)]
    for each in databases:
        await each.open()
    reading, recording, *writing = databases
    expected = WRITERS * BATCHES * A_BATCH + BATCHES
    try:
        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(read_all(Store(reading), expected))
            for number in range(BATCHES):
                tasks.create_task(record_late(recording, line(100_000 + number, A_RECORD, "t")))
            for number, database in enumerate(writing):
                tasks.create_task(write_batches(Store(database), number))
    finally:
        for each in databases:
            await each.close()
    seen = reader.result()

    assert len({record.id for record in seen}) == len(seen) == expected
    positions = [record.position for record in seen]
    assert positions == sorted(positions)


async def write_batches(store: Store, writer: int) -> None:
    for batch in range(BATCHES):
        first = (writer * BATCHES + batch) * A_BATCH
        lines = [line(first + n, A_RECORD, "t") for n in range(A_BATCH)]
        await store.write(f"w{writer}", batch + 1, lines, security=bool(batch % 2))


async def record_late(database: Database, entry: bytes) -> None:
    """Record in a transaction that commits after others that have recorded later."""
    store = Store(database)
    async with database.transaction() as connection:
        await store.record(connection, entry)
        await connection.execute("SELECT pg_sleep(random() / 20)")
    await store.take_in()


async def read_all(store: Store, expected: int) -> list[JournalRecord]:
    seen: list[JournalRecord] = []
    position = 0
    while len(seen) < expected:
        page = await store.read_after("t", ["agent:*"], position, 1000)
        seen += page.records
        position = page.through
    return seen


async def test_a_batch_that_is_sent_again_is_written_once(database: Database) -> None:
    store = Store(database)
    record = A_RECORD

    await store.write("w", 1, [line(1, record, "t")], security=False)
    await store.write("w", 1, [line(1, record, "t")], security=False)
    await store.write("w", 2, [line(2, record, "t")], security=False)

    page = await store.read_after("t", [], 0, 10)
    assert [each.id for each in page.records] == ["t-1", "t-2"]


async def test_a_page_is_bounded_in_bytes_and_goes_on_where_it_was_cut(database: Database) -> None:
    store = Store(database)
    record = Made("agent:say", 0, "ok", None, None, None, None, "x" * 400_000, None)
    await store.write("w", 1, [line(n, record, "t") for n in range(7)], security=False)

    seen, position = [], 0
    while (page := await store.read_after("t", [], position, 100)).records:
        assert len(page.records) <= 3
        seen += [each.id for each in page.records]
        position = page.through

    assert seen == [f"t-{n}" for n in range(7)]


async def test_a_tail_goes_on_from_a_position_and_shows_what_comes(client: AsyncClient) -> None:
    await client.request("tool:call", {"args": 1})
    await client.request("tool:call", {"args": 2})
    first = (await client.request("journal:history", {"patterns": ["tool:*"]}))["records"][-1]
    seen = []

    async with asyncio.timeout(20):
        tail = {"patterns": ["tool:*"], "after": first["position"], "payloads": True}
        async for record in client.stream("journal:tail", tail):
            seen.append(record["payload"]["args"])
            if seen == [2]:
                await client.request("tool:call", {"args": 3})
            if len(seen) == 2:
                break

    assert seen == [2, 3]


# -- retention -----------------------------------------------------------------------------------


async def backdate(logins: Logins, *, days: int, count: int, security: bool = False) -> None:
    """Put events into a day that is gone."""
    connection = await asyncpg.connect(logins.admin)
    try:
        day = await connection.fetchval("SELECT ksi_journal.today() - $1::int", days)
        await connection.execute("SET ROLE ksi_owner")
        await connection.execute("SELECT ksi_journal.make_partitions($1, $2)", day, security)
        await connection.execute(
            "INSERT INTO ksi_journal.event (position, recorded_at, is_security, at, name, id, "
            "origin, tenant, payload, payload_bytes) SELECT nextval('ksi_journal.position_seq'), "
            "$1::date::timestamp AT TIME ZONE 'UTC', $2, now(), 'agent:say', 'old-' || n, 'test', "
            "'t', to_json(repeat(md5(n::text), 30)), 960 FROM generate_series(1, $3) n",
            day,
            security,
            count,
        )
    finally:
        await connection.close()


async def drop_all(
    store: Store, days: int, security_days: int, max_bytes: int
) -> list[tuple[str, str]]:
    dropped = []
    while (one := await store.drop_one(days, security_days, max_bytes)) is not None:
        dropped.append(one)
    return dropped


async def test_parts_are_made_while_somebody_reads_and_dropped_when_nobody_does(
    database_logins: Logins, database: Database
) -> None:
    store = Store(database)
    await backdate(database_logins, days=40, count=5)
    async with database.transaction() as connection:
        await connection.fetch("SELECT FROM ksi_journal.event, ksi_journal.payload")
        async with asyncio.timeout(5):
            await store.make_ahead(40)
            with pytest.raises(Busy):
                await store.drop_one(30, 400, 1 << 40)

    assert [why for _, why in await drop_all(store, 30, 400, 1 << 40)] == ["age"]


async def test_days_that_are_too_old_are_dropped_and_that_is_told(
    database_logins: Logins, database: Database
) -> None:
    store = Store(database)
    for days in (40, 31, 30, 1):
        await backdate(database_logins, days=days, count=5)
    await backdate(database_logins, days=200, count=5, security=True)
    await backdate(database_logins, days=800, count=5, security=True)
    await store.make_ahead(3)

    dropped = await drop_all(store, 30, 400, 1 << 40)

    assert [why for _, why in dropped] == ["age"] * 3
    kept = await store.read_after("t", [], 0, 100)
    assert len(kept.records) == 15
    assert (await store.bounds()).dropped_through == 30
    assert await drop_all(store, 30, 400, 1 << 40) == []


async def test_of_too_much_the_oldest_days_go_and_today_and_what_is_secured_stay(
    database_logins: Logins, database: Database
) -> None:
    store = Store(database)
    for days, security in ((3, False), (2, False), (0, False), (3, True)):
        await backdate(database_logins, days=days, count=2000, security=security)
    sizes = {each.partition: each.bytes for each in await store.partitions()}
    ordinary = sum(size for name, size in sizes.items() if name.startswith("ordinary"))

    first = await drop_all(store, 30, 400, ordinary - 1)
    then = await drop_all(store, 30, 400, 1)

    assert [(len(first), len(then)), {why for _, why in first + then}] == [(1, 1), {"size"}]
    kept = [each.partition for each in await store.partitions() if "payload" not in each.partition]
    assert len([name for name in kept if name.startswith("ordinary")]) == 1
    assert [name for name in kept if name.startswith("security")]


async def test_a_day_whose_partition_is_missing_gets_one_when_it_is_written_to(
    database_logins: Logins, database: Database
) -> None:
    connection = await asyncpg.connect(database_logins.admin)
    names = [each.partition for each in await Store(database).partitions()]
    for name in names:
        await connection.execute(
            await connection.fetchval("SELECT format('DROP TABLE ksi_journal.%I', $1::text)", name)
        )
    await connection.close()
    record = A_RECORD

    await Store(database).write("w", 1, [line(1, record, "t")], security=False)

    assert len((await Store(database).read_after("t", [], 0, 10)).records) == 1

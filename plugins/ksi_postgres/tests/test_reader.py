"""Queries of people and agents: what comes back, and where it ends."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from ksi_daemon.protocol import Denied, InvalidData, TimedOut, Unavailable
from ksi_postgres import reader as reader_module
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.reader import Reader
from ksi_postgres.settings import PostgresSettings

TYPES = {
    "vector": ("'[1,2.5]'::public.vector", "[1,2.5]"),
    "jsonb": ("""'{"a": [1, null]}'::jsonb""", '{"a": [1, null]}'),
    "tsvector": ("to_tsvector('simple', 'a tale')", "'a':1 'tale':2"),
    "tsquery": ("to_tsquery('simple', 'a & b')", "'a' & 'b'"),
    "integers": ("ARRAY[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
    "texts": ("ARRAY['x', NULL]", ["x", None]),
    "int4range": ("int4range(1, 5)", "[1,5)"),
    "tstzrange": (
        "tstzrange('2026-01-01 00:00+00', NULL)",
        "[2026-01-01 00:00:00+00:00,)",
    ),
    "an empty range": ("int4range(1, 1)", "empty"),
    "multirange": ("int4multirange(int4range(1, 2), int4range(5, 7))", ["[1,2)", "[5,7)"]),
    "numeric": ("1.50::numeric", "1.50"),
    "int8": ("9223372036854775807", 9223372036854775807),
    "timestamptz": ("'2026-01-02 03:04:05+00'::timestamptz", "2026-01-02T03:04:05Z"),
    "date": ("'2026-01-02'::date", "2026-01-02"),
    "interval": ("interval '90 s'", "PT90S"),
    "bytea": ("'\\x0001ff'::bytea", "AAH/"),
    "uuid": (
        "'00000000-0000-0000-0000-000000000001'::uuid",
        "00000000-0000-0000-0000-000000000001",
    ),
    "inet": ("'10.0.0.1/8'::inet", "10.0.0.1/8"),
    "bit": ("B'10110'", "10110"),
    "point": ("point(1, 2)", [1.0, 2.0]),
    "row": ("row(1, 'x')", [1, "x"]),
    "regclass": ("'pg_class'::regclass::text", "pg_class"),
    "nothing": ("NULL::text", None),
}


@pytest.fixture
def settings() -> PostgresSettings:
    return PostgresSettings(read_max_rows=250, read_timeout_s=20.0, reader_connections=1)


@pytest.fixture
async def reader(database: Database, settings: PostgresSettings) -> AsyncIterator[Reader]:
    made = Reader(database, settings)
    yield made
    await made.close()


@pytest.mark.parametrize(("expression", "shown"), TYPES.values(), ids=TYPES.keys())
async def test_a_value_of_every_type_has_a_form_in_json(
    reader: Reader, expression: str, shown: object
) -> None:
    rows = await reader.read("a", f"SELECT {expression} AS value")

    assert msgspec.json.decode(msgspec.json.encode(rows)) == {
        "columns": ["value"],
        "rows": [[shown]],
        "truncated": False,
    }


@pytest.mark.parametrize(("asked", "truncated"), [(249, False), (250, False), (251, True)])
async def test_more_rows_than_allowed_are_cut_off_and_it_is_said(
    reader: Reader, asked: int, truncated: bool
) -> None:
    rows = await reader.read("a", "SELECT generate_series(1, $1::int)", asked)

    assert [row[0] for row in rows.rows] == list(range(1, min(asked, 250) + 1))
    assert rows.truncated is truncated


async def test_a_query_without_end_costs_what_its_first_rows_do(reader: Reader) -> None:
    rows = await reader.read("a", "SELECT generate_series(1, 100000000000)")

    assert len(rows.rows) == 250


async def test_no_rows_still_have_columns(reader: Reader) -> None:
    rows = await reader.read("a", "SELECT 1 AS x, 2 AS y WHERE false")

    assert (rows.columns, rows.rows) == (("x", "y"), ())


async def test_what_takes_too_long_is_ended_in_the_database_too(
    reader: Reader, database: Database, database_logins: Logins
) -> None:
    endless = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 1000000) b"

    with pytest.raises(TimedOut, match=r"0\.2 s"):
        await reader.read("a", endless, timeout_s=0.2)

    assert await reader.read("a", "SELECT 1")  # its only session is free again
    admin = await asyncpg.connect(database_logins.admin)
    active = await admin.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series%' "
        "AND state = 'active' AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    await admin.close()
    assert active == 0


async def test_nobody_gets_more_time_than_the_settings_allow(
    database: Database, settings: PostgresSettings
) -> None:
    reader = Reader(database, replace(settings, read_timeout_s=0.2))

    with pytest.raises(TimedOut):
        await reader.read(
            "a",
            "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 1000000) b",
            timeout_s=1000,
        )

    await reader.close()


async def test_a_session_that_is_stopped_does_not_hold_its_asker(
    reader: Reader, database: Database
) -> None:
    backend = (await reader.read("a", "SELECT pg_backend_pid()")).rows[0][0]

    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(3.0):
            with pytest.raises(TimedOut):
                await reader.read("a", "SELECT 1", timeout_s=0.3)
    finally:
        os.kill(backend, signal.SIGCONT)

    assert (await reader.read("a", "SELECT 1")).rows == ((1,),)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT repeat('x', 100000000)",
        "SELECT repeat('x', 1000000) FROM generate_series(1, 200)",
        "SELECT array_agg(repeat('x', 100000)) FROM generate_series(1, 1000)",
    ],
)
async def test_a_huge_answer_is_refused_and_never_held(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    most = 0
    received = reader_module._Meter.data_received

    def watched(meter: reader_module._Meter, data: bytes) -> None:
        nonlocal most
        received(meter, data)
        most = max(most, meter.received_bytes)

    monkeypatch.setattr(reader_module._Meter, "data_received", watched)

    with pytest.raises(InvalidData, match="16 MB"):
        await reader.read("a", query)

    assert most < reader_module.MAX_RESULT_BYTES * 1.1
    assert (await reader.read("a", "SELECT 1")).rows == ((1,),)


async def test_an_answer_below_the_bound_comes_whole(reader: Reader) -> None:
    rows = await reader.read("a", "SELECT repeat('x', 15000000)")

    assert len(rows.rows[0][0]) == 15_000_000


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT 1; SELECT 2", "multiple commands"),
        ("SELECT nothing", "does not exist"),
        ("SELECT 1 / 0", "division by zero"),
        ("SELECT '4000-01-01 BC'::date", "cast it to text"),
        ("SELECT $1::int", "cast it to text"),
        ("SELECT row(int4range(1, 2))", "cast it to text"),
        ("SELECT n FROM generate_series(1, 100000000000) n", "too much room"),
        ("", "returns no rows"),
        ("BEGIN", "returns no rows"),
        ("SELECT '\x00'", "zero byte"),
        ("SELECT '\ud800'", "surrogate"),
    ],
)
async def test_a_bad_query_is_its_author_s_fault_and_costs_nothing(
    reader: Reader, query: str, why: str
) -> None:
    with pytest.raises(InvalidData, match=why):
        await reader.read("a", query)

    assert (await reader.read("a", "SELECT 1")).rows == ((1,),)


async def test_an_error_tells_where_it_is(reader: Reader) -> None:
    with pytest.raises(InvalidData) as caught:
        await reader.read("a", "SELECT nothing")

    assert caught.value.details == {"position": 8}


async def test_arguments_are_no_text_of_the_query(reader: Reader) -> None:
    rows = await reader.read("a", "SELECT $1::text", "'; DROP TABLE x; --")

    assert rows.rows == (("'; DROP TABLE x; --",),)


async def test_without_a_login_queries_are_off_with_the_reason(
    database: Database, settings: PostgresSettings
) -> None:
    reader = Reader(database, settings, problem="there is no login for them")

    with pytest.raises(Unavailable, match="there is no login for them"):
        await reader.read("a", "SELECT 1")


@pytest.mark.parametrize("login", ["admin", "app"])
async def test_a_login_that_may_do_more_is_no_reader(
    database: Database, settings: PostgresSettings, database_logins: Logins, login: str
) -> None:
    url = getattr(database_logins, login)
    database.logins = replace(database_logins, reader=url)
    reader = Reader(database, settings)

    for _ in range(2):
        with pytest.raises(Unavailable, match=r"postgres\.reader_url") as caught:
            await reader.read("a", "SELECT 1")

    assert "@" not in str(caught.value)
    await reader.close()


async def test_without_postgres_they_are_unavailable(
    database: Database, settings: PostgresSettings, database_logins: Logins
) -> None:
    assert database_logins.reader is not None
    database.logins = replace(
        database_logins, reader=database_logins.reader.replace("port=5432", "port=5999")
    )
    reader = Reader(database, settings)

    with pytest.raises(Unavailable, match="can't be reached") as caught:
        await reader.read("a", "SELECT 1")

    assert caught.value.retry_after_s is not None
    await reader.close()


async def test_a_session_that_was_ended_is_replaced(
    reader: Reader, database_logins: Logins
) -> None:
    backend = (await reader.read("a", "SELECT pg_backend_pid()")).rows[0][0]
    admin = await asyncpg.connect(database_logins.admin)
    await admin.execute("SELECT pg_terminate_backend($1, 5000)", backend)
    await admin.close()

    answers: list[object] = []
    for _ in range(2):
        try:
            answers.append((await reader.read("a", "SELECT 1")).rows)
        except Unavailable as gone:
            answers.append(gone.code)

    assert answers[-1] == ((1,),)


async def test_what_the_login_lacks_is_denied_and_not_called_a_bad_query(reader: Reader) -> None:
    with pytest.raises(Denied, match="permission denied"):
        await reader.read("a", "SELECT pg_sleep(1)")

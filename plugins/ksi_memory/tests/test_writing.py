"""Many items at once, from many at once, and such as can't be remembered: the rest goes on."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_memory import events as e
from ksi_memory.events import Edge, NewItem, Source
from ksi_memory.items.store import Items
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

ALL = Whose("t")
ANNA = Whose("t", user="anna")
GOOD = (NewItem(key="first", body="one"), NewItem(key="last", body="two"))
DAYS = "SELECT days::text FROM ksi_memory.item WHERE key = $1 AND valid_to IS NULL"


@pytest.fixture
def items(database: Database) -> Items:
    return Items(database, MemorySettings())


async def remembered(items: Items, key: str, **fields: Any) -> e.Item:
    """Remember something, and return it."""
    told = await items.upsert(ALL, "facts", [NewItem(key=key, **fields)])
    assert told.refused == ()
    return await items.get(ALL, id=told.ids[0])


async def column(logins: Logins, query: str, *arguments: object) -> Any:
    """Look past the walls."""
    connection = await asyncpg.connect(logins.admin)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (NewItem(key="k" * 10_000), "10,000 bytes"),
        (NewItem(key="🎈" * 251), "1,004 bytes"),
        (NewItem(key="   "), "empty"),
        (NewItem(key="k", body="x" * 200_001), "memory.max_item_characters"),
        (NewItem(key="k", body="a\0b"), "NUL"),
        (NewItem(key="k", attributes={"a": ["\0"]}), "NUL"),
        (NewItem(key="k", body="a\ud800b"), "surrogate"),
        (NewItem(key="k\ud800"), "surrogate"),
        (NewItem(key="k", attributes={"a": "x" * 70_000}), "memory.max_attributes_bytes"),
        (NewItem(key="k", attributes={"a": object()}), "no JSON"),
        (NewItem(key="k", owner="o" * 201), "200 characters"),
        (NewItem(key="k", place=2**31), "place"),
        (NewItem(key="k", session="s" * 1001), "session"),
        (NewItem(key="k", persons=("p" * 1001,)), "person"),
        (NewItem(key="k", edges=(Edge(to="x"),) * 1001), "memory.max_item_links"),
        (NewItem(key="k", edges=(Edge(to=" "),)), "no key"),
        (NewItem(key="k", ends_at=datetime(2024, 1, 1, tzinfo=UTC)), "before it starts"),
        (
            NewItem(
                key="k",
                starts_at=datetime(2024, 1, 2, tzinfo=UTC),
                ends_at=datetime(2024, 1, 1, tzinfo=UTC),
            ),
            "before it starts",
        ),
        (NewItem(key="k", valid_from=datetime(2999, 1, 1, tzinfo=UTC)), "future"),
        (
            NewItem(key="k", starts_at=datetime.min.replace(tzinfo=timezone(timedelta(hours=9)))),
            "years 1 to 9999",
        ),
        (NewItem(key="k", sources=(Source(kind="item", item="x"),)), "no id"),
        (NewItem(key="k", sources=(Source(kind="item", item=str(uuid4())),)), "not there"),
        (
            NewItem(key="k", sources=(Source(kind="message", conversation_id="c", message=1),)),
            "not there",
        ),
        (NewItem(key="k", sources=(Source(kind="message", message=1),)), "conversation_id"),
        (NewItem(key="FIRST", body="again"), "duplicate of number 0"),
    ],
)
async def test_what_can_t_be_remembered_is_told_and_the_rest_goes_on(
    items: Items, bad: NewItem, why: str
) -> None:
    told = await items.upsert(ALL, "facts", [GOOD[0], bad, GOOD[1]])

    assert told.inserted == 2
    assert [each.place for each in told.refused] == [1]
    assert why in told.refused[0].why


async def test_what_only_the_store_finds_out_is_told_too(items: Items) -> None:
    # A key that is short enough, and of letters that the store writes with three times as many.
    bad = NewItem(
        key="㎧" * 333, body="x", category="".join(map(chr, range(0x4E00, 0x4E00 + 1500)))
    )

    told = await items.upsert(ALL, "facts", [GOOD[0], bad, *GOOD[1:]])

    assert told.inserted + len(told.refused) == 3
    assert told.inserted >= 2


@pytest.mark.parametrize(
    "key", ["🎈" * 250, "مفتاح", "日本語", "a'b\"c", "a\\b", "-- x", "a\tb", "x" * 1000, "ﬀ", "İ"]
)
async def test_keys_in_any_writing_are_found_again(items: Items, key: str) -> None:
    item = await remembered(items, key, body=key)

    assert (item.key, item.body) == (key.strip(), key)
    assert (await items.get(ALL, key=key)).id == item.id


async def test_long_words_and_many_words_are_remembered(items: Items) -> None:
    many = " ".join(f"{n:x}-{n + 1:x}" for n in range(17_000))

    assert len((await remembered(items, "many", body=many)).body) > 150_000
    assert (await remembered(items, "long", body="x" * 200_000)).version == 1
    assert (await remembered(items, "wide", body="ж" * 100_000)).version == 1


async def test_a_user_writes_their_own_alone(items: Items) -> None:
    told = await items.upsert(
        ANNA,
        "facts",
        [NewItem(key="a"), NewItem(key="b", owner="anna"), NewItem(key="c", owner="ben")],
    )

    assert told.inserted == 2
    assert "somebody else" in told.refused[0].why
    assert {(await items.get(ALL, key=key)).owner for key in ("a", "b")} == {"anna"}


async def test_a_source_that_is_somebody_else_s_is_not_there(items: Items) -> None:
    ben = await items.upsert(Whose("t", user="ben"), "facts", [NewItem(key="secret")])
    other = await items.upsert(Whose("other"), "facts", [NewItem(key="secret")])

    for item in (*ben.ids, *other.ids):
        told = await items.upsert(
            ANNA, "facts", [NewItem(key="k", sources=(Source(kind="item", item=item),))]
        )
        assert "not there" in told.refused[0].why


async def test_whoever_says_nothing_of_sources_is_the_source(items: Items) -> None:
    run = Whose("t", user="anna", run="r_1")
    await items.upsert(run, "facts", [NewItem(key="by run")])
    await items.upsert(ANNA, "facts", [NewItem(key="by anna")])
    await items.upsert(Whose("t", agent="clerk"), "facts", [NewItem(key="by clerk")])

    assert (await items.get(ALL, key="by run")).sources == (Source(kind="run", run_id="r_1"),)
    assert (await items.get(ALL, key="by anna")).sources[0].told == "anna"
    assert (await items.get(ALL, key="by clerk")).sources[0].told == "clerk"


async def test_what_is_known_and_comes_from_elsewhere_too_gets_that_source(items: Items) -> None:
    first = await remembered(items, "a")
    second = await remembered(items, "b")
    rests = tuple(Source(kind="item", item=each.id, version=1) for each in (first, second))
    await remembered(items, "k", body="x", sources=rests[:1])

    again = await remembered(items, "k", body="x", sources=rests)

    assert (again.version, again.sources) == (1, rests)


async def test_the_days_that_a_text_speaks_of_are_those_of_its_whole(
    items: Items, database_logins: Logins
) -> None:
    at = datetime(2024, 5, 3, tzinfo=UTC)
    await remembered(items, "k", title="On 1 March 2024", body="and on 2 April 2024", starts_at=at)
    assert await column(database_logins, DAYS, "k") == (
        "{[2024-03-01,2024-03-02),[2024-04-02,2024-04-03)}"
    )

    await remembered(items, "k", body="yesterday")

    assert await column(database_logins, DAYS, "k") == (
        "{[2024-03-01,2024-03-02),[2024-05-02,2024-05-03)}"
    )
    await remembered(items, "k", category="x")
    assert await column(database_logins, DAYS, "k") == (
        "{[2024-03-01,2024-03-02),[2024-05-02,2024-05-03)}"
    )


async def test_a_version_holds_from_when_it_is_said_to(items: Items) -> None:
    days = [datetime(2024, 1, n, tzinfo=UTC) for n in range(1, 6)]
    await remembered(items, "k", body="one", valid_from=days[1])
    await remembered(items, "k", body="two", valid_from=days[3])

    early = await items.upsert(ALL, "facts", [NewItem(key="k", body="three", valid_from=days[0])])

    assert "since before" in early.refused[0].why
    assert (await items.get(ALL, key="k", as_of=days[2])).body == "one"
    assert (await items.get(ALL, key="k", as_of=days[3])).body == "two"


async def test_thousands_are_written_at_once_and_again(items: Items) -> None:
    many = [NewItem(key=f"k{n}", body=f"text {n}", session="s", place=n) for n in range(2300)]

    first = await items.upsert(ALL, "resources", many)
    many[7] = NewItem(key="k7", body="changed")
    again = await items.upsert(ALL, "resources", [*many, many[0]])

    assert first.inserted == 2300
    assert [first.ids[n] for n in (0, 2299)] == [
        (await items.get(ALL, key=key)).id for key in ("k0", "k2299")
    ]
    assert (again.inserted, again.updated, again.unchanged) == (0, 1, 2299)
    assert [each.place for each in again.refused] == [2300]


async def test_many_writers_of_the_same_make_versions_that_follow_one_another(
    items: Items, database_logins: Logins
) -> None:
    async def write(writer: int) -> None:
        for turn in range(5):
            some = [NewItem(key=f"k{n}", body=f"{writer} {turn}") for n in range(20)]
            some.sort(key=lambda each: hash((writer, each.key)))
            told = await items.upsert(ALL, "facts", some)
            assert told.inserted + told.updated == 20

    async with asyncio.TaskGroup() as group:
        for writer in range(6):
            group.create_task(write(writer))

    gaps = await column(
        database_logins,
        "SELECT count(*) FROM (SELECT valid_to, lead(valid_from) OVER w AS next, version, "
        "lag(version, 1, 0) OVER w AS before FROM ksi_memory.item WINDOW w AS (PARTITION BY id "
        "ORDER BY version)) v WHERE valid_to IS DISTINCT FROM next OR version <> before + 1",
    )
    assert gaps == 0
    assert (await items.get(ALL, key="k3")).version == 30


texts = st.text(st.characters(codec="utf-8"), max_size=30)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
moments = st.datetimes(timezones=st.just(UTC)) | st.none()
drafts = st.lists(
    st.builds(
        NewItem,
        key=names,
        owner=texts,
        title=texts | st.none(),
        body=texts | st.none(),
        category=texts | st.none(),
        attributes=st.dictionaries(
            texts,
            st.recursive(st.none() | st.integers() | st.floats() | texts, st.lists),
            max_size=3,
        )
        | st.none(),
        persons=st.lists(names, max_size=3).map(tuple) | st.none(),
        session=names | st.none(),
        place=st.integers(0, 2**40) | st.none(),
        starts_at=moments,
        ends_at=moments,
        edges=st.lists(
            st.builds(Edge, to=names, relation=names, weight=st.floats(0, 1)), max_size=3
        ).map(tuple)
        | st.none(),
    ),
    max_size=8,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(given_items=drafts)
async def test_whatever_is_given_is_remembered_as_it_is_or_told(
    database: Database, given_items: Sequence[NewItem]
) -> None:
    items = Items(database, MemorySettings())
    whose = Whose(uuid4().hex)

    told = await items.upsert(whose, "facts", given_items)
    again = await items.upsert(whose, "facts", given_items)

    refused = {each.place for each in told.refused}
    kept = [each for place, each in enumerate(given_items) if place not in refused]
    assert len(told.ids) == told.inserted == len(kept)
    assert (again.unchanged, again.ids, len(again.refused)) == (
        told.inserted,
        told.ids,
        len(told.refused),
    )
    for id_, item in zip(told.ids, kept, strict=True):
        found = await items.get(whose, id=id_)
        assert (found.title, found.body) == (item.title or "", item.body or "")
        assert (found.starts_at, found.ends_at) == (item.starts_at, item.ends_at)
        assert (found.owner, found.session, found.place) == (item.owner, item.session, item.place)
        assert len(found.edges) == len(item.edges or ())

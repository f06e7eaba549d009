"""Finding by key, by likeness, along edges, in the order of time, and by SQL."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from ksi_daemon.protocol import Denied, InvalidData
from ksi_memory.events import Edge, Found, NewItem, Source
from ksi_memory.items.store import Items
from ksi_memory.querying.finding import Finding
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.reader import Reader
from ksi_postgres.settings import PostgresSettings

ALL = Whose("t")
ANNA = Whose("t", user="anna")
BEN = Whose("t", user="ben")
OTHER = Whose("other")
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def items(database: Database) -> Items:
    return Items(database, MemorySettings())


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[Reader]:
    made = Reader(database, PostgresSettings())
    yield made
    await made.close()


@pytest.fixture
def finding(database: Database, reader: Reader) -> Finding:
    return Finding(database, reader, MemorySettings())


def keys(found: list[Found] | tuple[Found, ...]) -> list[str]:
    return [each.key for each in found]


# -- lookup ---------------------------------------------------------------------------------------


async def test_many_keys_are_looked_up_at_once_in_their_order(
    items: Items, finding: Finding
) -> None:
    await items.upsert(ALL, "entities", [NewItem(key=f"key {n}", body=str(n)) for n in range(9)])

    found = await finding.lookup(ALL, ["KEY 7", "nobody", " key 2 ", "kéy 5"])

    assert [(each.key, each.body) for each in found] == [
        ("key 7", "7"),
        ("key 2", "2"),
        ("key 5", "5"),
    ]


async def test_a_key_is_found_in_every_table_or_in_those_named(
    items: Items, finding: Finding
) -> None:
    for table in ("entities", "facts", "moments"):
        await items.upsert(ALL, table, [NewItem(key="rent")])

    everywhere = await finding.lookup(ALL, ["rent"])
    named = await finding.lookup(ALL, ["rent"], tables=["facts", "moments"])

    assert [each.table for each in everywhere] == ["entities", "facts", "moments"]
    assert [each.table for each in named] == ["facts", "moments"]


async def test_a_user_finds_their_own_and_everybody_s_and_nobody_else_s(
    items: Items, finding: Finding
) -> None:
    await items.upsert(ALL, "facts", [NewItem(key="notes", body="all")])
    await items.upsert(ANNA, "facts", [NewItem(key="notes", body="anna's", owner="anna")])
    await items.upsert(BEN, "facts", [NewItem(key="notes", body="ben's", owner="ben")])

    assert [each.body for each in await finding.lookup(ANNA, ["notes"])] == ["anna's", "all"]
    assert [each.body for each in await finding.lookup(BEN, ["notes"])] == ["ben's", "all"]
    assert len(await finding.lookup(ALL, ["notes"])) == 3
    assert await finding.lookup(OTHER, ["notes"]) == []


async def test_what_was_then_is_found_as_of_then(items: Items, finding: Finding) -> None:
    then = datetime.now(UTC) - timedelta(days=9)
    await items.upsert(ALL, "facts", [NewItem(key="rent", body="700", valid_from=then)])
    await items.upsert(ALL, "facts", [NewItem(key="rent", body="800")])

    [before] = await finding.lookup(ALL, ["rent"], as_of=then + timedelta(days=1))
    [now] = await finding.lookup(ALL, ["rent"])

    assert (before.body, before.version) == ("700", 1)
    assert (now.body, now.version) == ("800", 2)
    assert before.valid_to == now.valid_from
    assert await finding.lookup(ALL, ["rent"], as_of=then - timedelta(days=1)) == []


async def test_likeness_and_time_are_as_of_then_too(items: Items, finding: Finding) -> None:
    then = datetime.now(UTC) - timedelta(days=9)
    old = NewItem(key="flat", title="Harbour Street", starts_at=then, valid_from=then)
    await items.upsert(ALL, "facts", [old])
    await items.upsert(ALL, "facts", [NewItem(key="flat", title="Mill Lane")])
    before = then + timedelta(days=1)

    async def fuzzy(as_of: datetime | None) -> list[str]:
        found = await finding.fuzzy(ALL, "harbour street", as_of=as_of)
        return [each.title for each in found]

    async def timeline(subject: str | None, as_of: datetime | None) -> list[str]:
        return [each.title for each in await finding.timeline(ALL, subject, as_of=as_of)]

    assert await fuzzy(before) == ["Harbour Street"]
    assert await fuzzy(None) == []
    for subject in ("flat", None):
        assert await timeline(subject, before) == ["Harbour Street"]
        assert await timeline(subject, None) == ["Mill Lane"]
        assert await timeline(subject, then - timedelta(days=1)) == []


async def test_the_source_is_told_in_words(items: Items, finding: Finding) -> None:
    told = await items.upsert(ALL, "resources", [NewItem(key="notes/rent.md")])
    source = Source(kind="item", item=told.ids[0], version=1)
    await items.upsert(ALL, "facts", [NewItem(key="rent", sources=(source,))])
    await items.upsert(ALL, "facts", [NewItem(key="x", sources=(Source(kind="run", run_id="r1"),))])

    found = await finding.lookup(ALL, ["rent", "x"])
    by_version = await finding.sources(ALL, [(each.id, each.version) for each in found])

    assert [each.source for each in found] == ["resource notes/rent.md", "run r1"]
    assert sorted(by_version.values()) == ["resource notes/rent.md", "run r1"]


async def test_the_source_that_is_another_user_s_is_not_named(
    items: Items, finding: Finding
) -> None:
    secret = await items.upsert(ANNA, "resources", [NewItem(key="diary", owner="anna")])
    source = Source(kind="item", item=secret.ids[0], version=1)
    await items.upsert(ALL, "facts", [NewItem(key="rent", sources=(source,))])

    [found] = await finding.lookup(BEN, ["rent"])

    assert found.source == "resource of another user"


# -- fuzzy ----------------------------------------------------------------------------------------


async def test_what_is_misspelt_is_found_by_key_and_by_title(
    items: Items, finding: Finding
) -> None:
    await items.upsert(
        ALL,
        "entities",
        [
            NewItem(key="Anna Schmidt"),
            NewItem(key="e_17", title="Zoë Müller, landlady"),
            NewItem(key="Bernd"),
        ],
    )

    assert keys(await finding.fuzzy(ALL, "ana shmidt")) == ["Anna Schmidt"]
    assert keys(await finding.fuzzy(ALL, "zoe muler")) == ["e_17"]
    assert keys(await finding.fuzzy(ALL, "LANDLADY")) == ["e_17"]
    assert await finding.fuzzy(ALL, "xyzzy") == []


async def test_the_most_alike_comes_first(items: Items, finding: Finding) -> None:
    names = ["anna", "anna schmidt", "documents by anna", "annabel", "hannah"]
    await items.upsert(ALL, "entities", [NewItem(key=name) for name in names])

    found = await finding.fuzzy(ALL, "anna", threshold=0.3)

    assert keys(found)[:2] == ["anna", "anna schmidt"]
    assert set(keys(found)) >= {"anna", "anna schmidt", "documents by anna", "annabel"}
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


async def test_a_threshold_leaves_out_what_is_less_alike(items: Items, finding: Finding) -> None:
    await items.upsert(
        ALL, "entities", [NewItem(key=name) for name in ("schmidt", "schmitt", "smith")]
    )

    assert keys(await finding.fuzzy(ALL, "schmidt", threshold=1.0)) == ["schmidt"]
    assert keys(await finding.fuzzy(ALL, "schmidt", threshold=0.5)) == ["schmidt", "schmitt"]
    assert len(await finding.fuzzy(ALL, "schmidt", threshold=0.0, limit=2)) == 2


async def test_of_a_document_the_first_chunk_is_found_by_likeness(
    items: Items, finding: Finding
) -> None:
    chunks = [NewItem(key=f"docs/rent.md#{n}", session="rent.md", place=n) for n in range(4)]
    await items.upsert(ALL, "resources", chunks)
    await items.upsert(ALL, "moments", [NewItem(key="rent talk", session="c_1", place=3)])

    assert keys(await finding.fuzzy(ALL, "rent", threshold=0.1)) == ["rent talk", "docs/rent.md#0"]
    assert await finding.fuzzy(ALL, "?!") == []


async def test_likeness_stays_with_who_may_see_it(items: Items, finding: Finding) -> None:
    await items.upsert(ANNA, "facts", [NewItem(key="diary of anna", owner="anna")])

    assert keys(await finding.fuzzy(ANNA, "diary of ana")) == ["diary of anna"]
    assert await finding.fuzzy(BEN, "diary of ana") == []
    assert await finding.fuzzy(OTHER, "diary of ana") == []
    assert await finding.fuzzy(ALL, "diary of ana", tables=["moments"]) == []


# -- traverse -------------------------------------------------------------------------------------


async def graph(items: Items, *pairs: str, whose: Whose = ALL, owner: str = "") -> None:
    """Make entities of pairs such as ``a-b``, an edge each."""
    edges: dict[str, list[Edge]] = {}
    for pair in pairs:
        start, _, end = pair.partition("-")
        edges.setdefault(start, []).append(Edge(to=end, relation="knows"))
        edges.setdefault(end, [])
    told = await items.upsert(
        whose,
        "entities",
        [NewItem(key=key, edges=tuple(some), owner=owner) for key, some in edges.items()],
    )
    assert not told.refused


def steps(found: tuple[Found, ...]) -> list[tuple[str, int | None]]:
    return [(each.key, each.depth) for each in found]


async def test_a_walk_goes_breadth_first_and_visits_each_node_once(
    items: Items, finding: Finding
) -> None:
    await graph(items, "a-b", "a-c", "b-d", "c-d", "d-e", "e-a")

    walk = await finding.traverse(ALL, "A", depth=3)

    assert steps(walk.results) == [("a", 0), ("b", 1), ("c", 1), ("d", 2), ("e", 3)]
    assert walk.results[3].via == ("knows", "b")
    assert walk.notes == ()


async def test_a_clique_of_fourteen_has_fourteen_nodes_at_any_depth(
    items: Items, finding: Finding
) -> None:
    names = [f"n{n}" for n in range(14)]
    await graph(items, *(f"{a}-{b}" for a in names for b in names if a != b))

    walk = await finding.traverse(ALL, "n3", depth=5)

    assert sorted(keys(walk.results)) == sorted(names)
    assert walk.notes == ()


async def test_a_walk_goes_along_against_and_both_ways(items: Items, finding: Finding) -> None:
    await graph(items, "a-b", "b-c")

    assert steps((await finding.traverse(ALL, "b")).results) == [("b", 0), ("c", 1)]
    assert steps((await finding.traverse(ALL, "b", direction="in")).results) == [("b", 0), ("a", 1)]
    both = await finding.traverse(ALL, "b", direction="both", depth=9)
    assert steps(both.results) == [("b", 0), ("a", 1), ("c", 1)]


async def test_a_walk_follows_the_relations_that_are_named(items: Items, finding: Finding) -> None:
    edges = (Edge(to="b", relation="knows"), Edge(to="c", relation="owns", weight=0.5))
    await items.upsert(ALL, "entities", [NewItem(key="a", edges=edges), NewItem(key="c")])

    walk = await finding.traverse(ALL, "a", relations=["owns", "likes"])

    assert steps(walk.results) == [("a", 0), ("c", 1)]
    assert (walk.results[1].via, walk.results[1].score) == (("owns", "a"), 0.5)


async def test_a_node_that_nothing_bears_is_shown_as_such(items: Items, finding: Finding) -> None:
    await graph(items, "a-b")
    await items.forget(ALL, [each.id for each in await finding.lookup(ALL, ["b"])])

    walk = await finding.traverse(ALL, "a", depth=2)

    assert steps(walk.results) == [("a", 0), ("b", 1)]
    assert [each.is_dangling for each in walk.results] == [False, True]


async def test_a_walk_returns_bodies_only_where_they_are_asked_for(
    items: Items, finding: Finding
) -> None:
    await items.upsert(ALL, "entities", [NewItem(key="a", body="long " * 2000)])

    bare = (await finding.traverse(ALL, "a", depth=0)).results[0]
    loaded = (await finding.traverse(ALL, "a", depth=0, load=True)).results[0]

    assert bare.body is None
    assert loaded.body == "long " * 2000


async def test_every_bound_of_a_walk_is_told(
    items: Items, finding: Finding, database: Database, reader: Reader
) -> None:
    await graph(items, *(f"hub-n{n}" for n in range(30)), "n1-m", "m-o")

    def bounded(**bounds: float) -> Finding:
        return Finding(database, reader, replace(MemorySettings(), **bounds))

    nodes = await bounded(traverse_max_nodes=10).traverse(ALL, "hub")
    edges = await bounded(traverse_max_edges=10).traverse(ALL, "hub")
    depth = await bounded(traverse_max_depth=1).traverse(ALL, "n1", depth=2)
    late = await bounded(traverse_max_time_s=0).traverse(ALL, "hub")
    limited = await finding.traverse(ALL, "hub", limit=5)
    whole = await bounded(traverse_max_nodes=31).traverse(ALL, "hub")

    assert (len(nodes.results), len(limited.results), len(whole.results)) == (10, 5, 31)
    assert "memory.traverse_max_nodes" in nodes.notes[0]
    assert "memory.traverse_max_edges" in edges.notes[0]
    assert "memory.traverse_max_depth" in depth.notes[0]
    assert "memory.traverse_max_time_s" in late.notes[0]
    assert "LIMIT" in limited.notes[0]
    assert whole.notes == ()


async def test_edges_of_others_and_of_the_past_are_not_walked(
    items: Items, finding: Finding
) -> None:
    before = datetime.now(UTC) - timedelta(days=1)
    past = NewItem(key="a", edges=(Edge(to="old"),), valid_from=before - timedelta(days=1))
    await items.upsert(ALL, "entities", [past])
    await items.upsert(ALL, "entities", [NewItem(key="a", edges=(Edge(to="new"),))])
    await graph(items, "a-secret", whose=ANNA, owner="anna")

    assert set(keys((await finding.traverse(ALL, "a")).results)) == {"a", "new", "secret"}
    assert keys((await finding.traverse(BEN, "a")).results) == ["a", "new"]
    assert keys((await finding.traverse(BEN, "a", as_of=before)).results) == ["a", "old"]
    assert keys((await finding.traverse(OTHER, "a")).results) == ["a"]


# -- timeline -------------------------------------------------------------------------------------


async def happen(items: Items) -> None:
    hours = [NOON + timedelta(hours=n) for n in range(6)]
    await items.upsert(
        ALL,
        "moments",
        [
            NewItem(key="m0", starts_at=hours[0], session="c_1"),
            NewItem(key="m1", starts_at=hours[1], session="c_1", persons=("Anna",)),
            NewItem(key="m3", starts_at=hours[3], edges=(Edge(to="anna", relation="about"),)),
            NewItem(key="m4", starts_at=hours[4], ends_at=hours[5]),
        ],
    )
    await items.upsert(ALL, "entities", [NewItem(key="Anna", valid_from=hours[2])])
    await items.upsert(ALL, "moments", [NewItem(key="m2", owner="u1", starts_at=hours[2])])


async def test_a_timeline_is_in_the_order_of_time(items: Items, finding: Finding) -> None:
    await happen(items)

    assert keys(await finding.timeline(ALL, None)) == ["m0", "m1", "m2", "m3", "m4"]
    assert keys(await finding.timeline(ALL, None, limit=2)) == ["m3", "m4"]
    assert keys(await finding.timeline(OTHER, None)) == []


async def test_a_timeline_is_of_a_conversation_a_user_or_a_key(
    items: Items, finding: Finding
) -> None:
    await happen(items)

    assert keys(await finding.timeline(ALL, "c_1")) == ["m0", "m1"]
    assert keys(await finding.timeline(ALL, "u1")) == ["m2"]
    assert keys(await finding.timeline(ALL, "ANNA")) == ["m1", "Anna", "m3"]
    assert keys(await finding.timeline(ALL, "anna", tables=["moments"])) == ["m1", "m3"]
    assert keys(await finding.timeline(BEN, "u1")) == []


async def test_a_timeline_reaches_from_since_to_before_until(
    items: Items, finding: Finding
) -> None:
    await happen(items)
    hour = timedelta(hours=1)

    assert keys(await finding.timeline(ALL, None, since=NOON + hour, until=NOON + 3 * hour)) == [
        "m1",
        "m2",
    ]
    assert keys(await finding.timeline(ALL, None, since=NOON + 4.5 * hour)) == ["m4"]
    assert keys(await finding.timeline(ALL, "c_1", since=NOON + hour)) == ["m1"]


# -- keys, tables, SQL ----------------------------------------------------------------------------


async def test_keys_are_completed_and_tables_listed(items: Items, finding: Finding) -> None:
    await items.upsert(ALL, "entities", [NewItem(key=k) for k in ("Anna", "anton", "Bernd")])
    await items.upsert(BEN, "facts", [NewItem(key="anton's", owner="ben")])

    assert await finding.keys(ANNA, "AN", 10) == ("Anna", "anton")
    assert await finding.keys(BEN, "ant", 10) == ("anton", "anton's")
    assert await finding.tables(ANNA) == ("entities",)
    assert await finding.tables(ALL) == ("entities", "facts")
    assert await finding.tables(OTHER) == ()


async def test_sql_reads_a_view_of_every_table(items: Items, finding: Finding) -> None:
    for table in ("moments", "entities"):
        await items.upsert(ALL, table, [NewItem(key=f"a {table}", edges=(Edge(to="B"),))])
        await items.upsert(OTHER, table, [NewItem(key="another's")])
    await items.upsert(ALL, "moments", [NewItem(key="a moments", title="newer")])

    moments = await finding.sql(ALL, "SELECT key, version, title FROM moments")
    all_items = await finding.sql(ALL, "SELECT kind, key FROM items ORDER BY kind")
    versions = await finding.sql(ALL, "SELECT version FROM item_versions WHERE kind = 'moments'")
    edges = await finding.sql(ALL, "SELECT DISTINCT from_name, to_name FROM edges ORDER BY 1")
    sources = await finding.sql(ALL, "SELECT count(*) > 0 FROM item_sources")

    assert (moments.columns, moments.rows) == (
        ("key", "version", "title"),
        (("a moments", 2, "newer"),),
    )
    assert all_items.rows == (("entities", "a entities"), ("moments", "a moments"))
    assert sorted(versions.rows) == [(1,), (2,)]
    assert edges.rows == (("a entities", "b"), ("a moments", "b"))
    assert sources.rows == ((True,),)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("SELECT * FROM ksi_memory.item", Denied),
        ("SELECT * FROM ksi_memory.held_moments", Denied),
        ("SELECT ksi_memory.lookup('other', NULL, ARRAY['x'], NULL, NULL, 10)", Denied),
        ("DELETE FROM moments RETURNING 1", (Denied, InvalidData)),
        ("SELECT 1; SELECT 2", InvalidData),
    ],
)
async def test_sql_reaches_nothing_else(
    finding: Finding, query: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await finding.sql(ALL, query)

"""What is remembered stays as it was said, in versions, each with its source."""

import pytest

from ksi_daemon.protocol import Conflict, NotFound
from ksi_memory.events import Edge, NewItem, Source
from ksi_memory.items.store import Items
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database

ALL = Whose("t")
ANNA = Whose("t", user="anna")
BEN = Whose("t", user="ben")


@pytest.fixture
def items(database: Database) -> Items:
    return Items(database, MemorySettings())


async def test_what_is_told_is_there(items: Items) -> None:
    told = await items.upsert(
        ALL,
        "entities",
        [
            NewItem(
                key="Alice",
                title="Alice",
                body="She builds bridges",
                category="person",
                attributes={"age": 41},
                persons=("Alice", "alice", "Bob"),
                edges=(Edge(to="Bob", relation="knows", weight=0.5),),
            ),
            NewItem(key="Bob", body="He paints"),
        ],
    )

    alice = await items.get(ALL, key=" alicE ")

    assert (told.inserted, told.updated, told.unchanged, told.refused) == (2, 0, 0, ())
    assert told.dangling == ()
    assert alice.id == told.ids[0]
    assert (alice.key, alice.title, alice.body) == ("Alice", "Alice", "She builds bridges")
    assert (alice.category, alice.attributes) == ("person", {"age": 41})
    assert alice.persons == ("alice", "bob")
    assert alice.edges == (Edge(to="bob", relation="knows", weight=0.5),)
    assert alice.sources == (Source(kind="person", told="the daemon's owner"),)
    assert alice.version == 1
    assert alice.valid_to is None


async def test_the_same_again_is_no_version(items: Items) -> None:
    given = NewItem(key="a", body="b", edges=(Edge(to="X", weight=0.1),), persons=("P",))
    await items.upsert(ALL, "resources", [given])

    again = await items.upsert(ALL, "resources", [given])
    part = await items.upsert(ALL, "resources", [NewItem(key="A", body="b")])
    edges = await items.upsert(ALL, "resources", [NewItem(key="a", edges=given.edges)])

    assert [each.unchanged for each in (again, part, edges)] == [1, 1, 1]
    assert again.dangling == ("x",)
    assert (await items.get(ALL, key="a")).version == 1


async def test_what_is_left_out_stays(items: Items) -> None:
    await items.upsert(
        ALL,
        "facts",
        [
            NewItem(
                key="k",
                title="t",
                body="b",
                attributes={"x": 1},
                persons=("p",),
                session="s",
                place=3,
                edges=(Edge(to="e"),),
            )
        ],
    )
    before = await items.get(ALL, key="k")

    told = await items.upsert(ALL, "facts", [NewItem(key="k", title="new")])

    after = await items.get(ALL, key="k")
    assert told.updated == 1
    assert (after.version, after.title, after.body) == (2, "new", "b")
    assert (after.attributes, after.persons, after.session, after.place) == (
        {"x": 1},
        ("p",),
        "s",
        3,
    )
    assert after.edges == before.edges
    then = await items.get(ALL, key="k", as_of=before.valid_from)
    assert (then.title, then.valid_to) == ("t", after.valid_from)


async def test_each_sees_their_own_and_what_is_everybody_s(items: Items) -> None:
    await items.upsert(ALL, "facts", [NewItem(key="shared", body="s")])
    await items.upsert(ANNA, "facts", [NewItem(key="notes", body="anna's")])
    await items.upsert(BEN, "facts", [NewItem(key="notes", body="ben's")])

    assert (await items.get(ANNA, key="notes")).body == "anna's"
    assert (await items.get(BEN, key="notes", table="facts")).body == "ben's"
    assert (await items.get(BEN, key="shared")).body == "s"
    with pytest.raises(NotFound):
        await items.get(BEN, key="notes", owner="anna")
    with pytest.raises(Conflict, match="facts/notes of anna, facts/notes of ben"):
        await items.get(ALL, key="notes")
    with pytest.raises(NotFound):
        await items.get(Whose("other"), key="shared")


async def test_an_unknown_table_is_told(items: Items) -> None:
    with pytest.raises(NotFound, match=r"did you mean.*moments"):
        await items.upsert(ALL, "momentz", [NewItem(key="a")])

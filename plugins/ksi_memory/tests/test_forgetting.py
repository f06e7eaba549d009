"""What is forgotten is gone: its versions, what rests on it alone, and it does not come back."""

import hashlib

import asyncpg
import pytest

from ksi_daemon.protocol import Denied, Failed, NotFound
from ksi_memory import events as e
from ksi_memory.conversations.store import ConversationStore
from ksi_memory.events import Edge, MemoryCorrect, NewItem, Source
from ksi_memory.items.store import Items
from ksi_memory.items.transfer import Transfer
from ksi_memory.loading.uploads import Uploads
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

ALL = Whose("t")
ANNA = Whose("t", user="anna")
BEN = Whose("t", user="ben")
SECRET = "The safe opens with 4711 and a kick"


@pytest.fixture
def items(database: Database) -> Items:
    return Items(database, MemorySettings())


async def keep(items: Items, key: str, body: str = "", **fields: object) -> str:
    """Remember something and return its id."""
    table = str(fields.pop("table", "facts"))
    origin: e.Origin = fields.pop("origin", "given")  # type: ignore[assignment]  # one of them
    whose = fields.pop("whose", ALL)
    told = await items.upsert(
        whose,  # type: ignore[arg-type]  # it is one
        table,
        [NewItem(key=key, body=body, **fields)],  # type: ignore[arg-type]  # its fields
        origin=origin,
    )
    assert told.refused == ()
    return told.ids[0]


def of(*ids: str) -> tuple[Source, ...]:
    return tuple(Source(kind="item", item=each) for each in ids)


async def is_there(items: Items, id_: str) -> bool:
    try:
        await items.get(ALL, id=id_)
    except NotFound:
        return False
    return True


async def add_message(
    logins: Logins, conversation: str, number: int, owner: str | None = None
) -> None:
    """Have a message in a conversation."""
    connection = await asyncpg.connect(logins.admin)
    try:
        await connection.execute(
            "INSERT INTO ksi_completion.conversation (tenant, id, owner) VALUES ('t', $1, $2) "
            "ON CONFLICT DO NOTHING",
            conversation,
            owner,
        )
        await connection.execute(
            "INSERT INTO ksi_completion.message (tenant, conversation, number, turn, role, parts, "
            "tokens) VALUES ('t', $1, $2, 1, 'user', '[]', 1)",
            conversation,
            number,
        )
    finally:
        await connection.close()


async def cover(logins: Logins, conversation: str, first: int, last: int, moment: str) -> None:
    """Have a moment cover some messages."""
    await remove(
        logins,
        "INSERT INTO ksi_memory.chunk (tenant, conversation, number, first_message, last_message, "
        "tokens, state, moment) VALUES ('t', $1, 1, $2, $3, 100, 'written', $4::text::uuid)",
        conversation,
        first,
        last,
        moment,
    )


async def fetched(logins: Logins, query: str) -> list[tuple[object, ...]]:
    """Ask past the walls."""
    connection = await asyncpg.connect(logins.admin)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def remove(logins: Logins, statement: str, *arguments: object) -> None:
    """Delete something of a conversation."""
    connection = await asyncpg.connect(logins.admin)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


async def test_it_goes_in_all_versions(items: Items) -> None:
    it = await keep(items, "safe", SECRET)
    before = (await items.get(ALL, id=it)).valid_from
    await keep(items, "safe", "another")

    told = await items.forget(ALL, [it], reason="private")

    assert told.ids == (it,)
    assert {"item.id", "source.item", "edge.item"} <= set(told.checked)
    assert any(each.startswith("backups") for each in told.kept)
    for as_of in (None, before):
        with pytest.raises(NotFound):
            await items.get(ALL, id=it, as_of=as_of)


async def test_a_dry_run_only_says_what_would_go(items: Items) -> None:
    it = await keep(items, "safe", SECRET)
    child = await keep(items, "child", "x", origin="derived", sources=of(it))

    told = await items.forget(ALL, [it], dry_run=True)

    assert (told.ids, told.dry_run) == (tuple(sorted([it, child])), True)
    assert await is_there(items, it)
    assert (await items.forget(ALL, [it])).ids == told.ids


async def test_what_rests_on_it_alone_goes_too_step_by_step(items: Items) -> None:
    root = await keep(items, "root", SECRET)
    child = await keep(items, "child", "one", origin="derived", sources=of(root))
    grandchild = await keep(items, "grandchild", "two", origin="derived", sources=of(child, root))
    said = await keep(items, "said", "three", origin="said", sources=of(child))
    given = await keep(items, "given", "four", sources=of(child))

    told = await items.forget(ALL, [root])

    assert set(told.ids) == {root, child, grandchild, said}
    left = await items.get(ALL, id=given)
    assert left.sources == (Source(kind="person", told="what is gone"),)


async def test_what_rests_on_other_things_too_is_made_anew_without_it(items: Items) -> None:
    root = await keep(items, "root", SECRET)
    other = await keep(items, "other", "of the weather")
    both = await keep(
        items,
        "both",
        "something else",
        origin="derived",
        sources=of(root, other),
        edges=(Edge(to="other"),),
    )

    told = await items.forget(ALL, [root])

    after = await items.get(ALL, id=both)
    assert (told.ids, told.rewritten) == ((root,), (both,))
    assert after.version == 2
    assert [each.item for each in after.sources] == [other]
    assert after.edges == (Edge(to="other"),)


@pytest.mark.parametrize(
    "text",
    [
        f"They say: {SECRET.upper()}. Good.",
        "It is about the safe key",
        "We met. We know that the door is green and heavy. Bye.",
    ],
)
async def test_what_was_derived_of_it_among_others_and_says_the_same_goes(
    items: Items, text: str
) -> None:
    root = await keep(
        items, "safe key", f"{SECRET}\nWe know that the door is green and heavy. Yes!"
    )
    other = await keep(items, "other", "of the weather")
    both = await keep(items, "both", text, origin="derived", sources=of(root, other))

    told = await items.forget(ALL, [root])

    assert set(told.ids) == {root, both}


async def test_an_old_version_that_rests_on_it_goes_and_the_new_one_stays(items: Items) -> None:
    root = await keep(items, "root", SECRET)
    both = await keep(items, "both", "first", origin="derived", sources=of(root))
    then = (await items.get(ALL, id=both)).valid_from
    await keep(items, "both", "second", origin="said")

    told = await items.forget(ALL, [root])

    assert told.ids == (root,)
    assert (await items.get(ALL, id=both)).body == "second"
    with pytest.raises(NotFound):
        await items.get(ALL, id=both, as_of=then)


async def test_what_else_says_the_same_is_told(items: Items) -> None:
    root = await keep(items, "root", SECRET)
    await keep(items, "note", f"By the way: {SECRET}", edges=(Edge(to="Root"),))
    await keep(items, "mine", SECRET + "!", whose=ANNA)

    by_ben = await keep(items, "ben's", SECRET, whose=BEN)
    told = await items.forget(BEN, [by_ben])
    assert [each for each in told.kept if each.startswith("facts/")] == [
        "facts/note, whose own text says the same",
        "facts/root, whose own text says the same",
    ]

    told = await items.forget(ALL, [root])
    assert [each for each in told.kept if each.startswith("facts/")] == [
        "facts/mine, whose own text says the same",
        "facts/note, whose own text says the same",
        "facts/note, an edge of which leads to its key",
    ]


@pytest.mark.parametrize("origin", ["given", "said", "derived"])
async def test_it_does_not_come_back_by_itself(items: Items, origin: e.Origin) -> None:
    it = await keep(items, "safe", SECRET)
    await items.forget(ALL, [it])

    again = await items.upsert(ALL, "facts", [NewItem(key="SAFE", body=SECRET)], origin=origin)
    other = await items.upsert(ALL, "moments", [NewItem(key="x", body=SECRET)], origin=origin)
    meant = await items.upsert(
        ALL, "facts", [NewItem(key="safe", body=SECRET)], origin=origin, even_forgotten=True
    )

    assert "even_forgotten" in again.refused[0].why
    assert len(other.refused) == (0 if origin == "given" else 1)
    assert meant.inserted == 1


async def test_what_has_no_text_is_not_taken_for_what_was_forgotten(items: Items) -> None:
    it = await keep(items, "a", table="entities", attributes={"x": 1})
    await items.forget(ALL, [it])

    told = await items.upsert(ALL, "entities", [NewItem(key="b")], origin="derived")

    assert told.inserted == 1


async def test_what_is_still_to_be_found_is_no_success(
    items: Items, database_logins: Logins
) -> None:
    it = await keep(items, "safe", SECRET)
    other = await keep(items, "other", SECRET)
    await remove(
        database_logins, "CREATE TABLE ksi_memory.stray (tenant text, item uuid, words text)"
    )
    await remove(database_logins, "ALTER TABLE ksi_memory.stray OWNER TO ksi_owner")
    await remove(
        database_logins, "INSERT INTO ksi_memory.stray VALUES ('t', $1::text::uuid, '')", it
    )
    await remove(
        database_logins, "INSERT INTO ksi_memory.stray VALUES ('t', NULL, $1)", f"so: {SECRET}"
    )

    with pytest.raises(Failed, match=r"stray\.item"):
        await items.forget(ALL, [it])
    told = await items.forget(ALL, [other])

    assert "its text, in stray.words of the memory" in told.kept


async def test_everything_of_a_user_goes(items: Items) -> None:
    anna = [await keep(items, key, whose=ANNA) for key in ("a", "b")]
    ben = await keep(items, "a", whose=BEN)
    shared = await keep(items, "a")

    told = await items.forget(ALL, [], everything_of="anna")

    assert set(told.ids) == set(anna)
    assert await is_there(items, ben)
    assert await is_there(items, shared)


async def test_with_everything_of_a_user_their_uploads_go(
    items: Items, database: Database, database_logins: Logins
) -> None:
    uploads = Uploads(database, MemorySettings())
    data = b"a secret"
    begun = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "data": data}
    for whose in (ANNA, BEN, ALL):
        await uploads.put(whose, e.ContentUpload(upload_id="u1", **begun))  # type: ignore[arg-type]  # they fit
    await keep(items, "a", whose=ANNA)

    would = await items.forget(ALL, [], everything_of="anna", dry_run=True)
    there = await uploads.read(ANNA, "u1")
    told = await items.forget(ALL, [], everything_of="anna")

    assert (would.uploads, told.uploads) == (1, 1)
    assert there.data == data
    with pytest.raises(NotFound):
        await uploads.read(ANNA, "u1")
    assert (await uploads.read(BEN, "u1")).data == data
    assert (await uploads.read(ALL, "u1")).data == data
    assert await fetched(database_logins, "SELECT DISTINCT uploader FROM ksi_memory.upload_piece "
                         "ORDER BY 1") == [("",), ("ben",)]  # fmt: skip


async def test_what_still_belongs_to_a_user_is_no_success(
    items: Items, database_logins: Logins
) -> None:
    await keep(items, "a", whose=ANNA)
    await remove(database_logins, "CREATE TABLE ksi_memory.stray (tenant text, owner text)")
    await remove(database_logins, "ALTER TABLE ksi_memory.stray OWNER TO ksi_owner")
    await remove(database_logins, "INSERT INTO ksi_memory.stray VALUES ('t', 'anna')")

    with pytest.raises(Failed, match=r"stray\.owner"):
        await items.forget(ALL, [], everything_of="anna")


async def test_only_one_s_own_can_be_forgotten(items: Items) -> None:
    shared = await keep(items, "shared")
    bens = await keep(items, "ben's", whose=BEN)

    with pytest.raises(Denied, match="everybody"):
        await items.forget(ANNA, [shared])
    with pytest.raises(NotFound):
        await items.forget(ANNA, [bens])


async def test_what_machines_derived_goes_with_its_conversation(
    items: Items, database_logins: Logins
) -> None:
    await add_message(database_logins, "c", 1)
    await add_message(database_logins, "c", 2)
    message = Source(kind="message", conversation_id="c", message=1)
    whole = Source(kind="message", conversation_id="c")
    derived = await keep(items, "derived", "x", origin="derived", sources=(message,))
    deeper = await keep(items, "deeper", "y", origin="derived", sources=of(derived))
    summed = await keep(items, "summed", "z", origin="derived", sources=(whole,))
    said = await keep(items, "said", "w", origin="said", sources=(message,))

    await remove(database_logins, "DELETE FROM ksi_completion.message WHERE number = 1")

    assert not await is_there(items, derived)
    assert not await is_there(items, deeper)
    assert await is_there(items, summed)
    assert (await items.get(ALL, id=said)).sources[0].kind == "person"

    await remove(database_logins, "DELETE FROM ksi_completion.conversation")

    assert not await is_there(items, summed)
    assert await is_there(items, said)


async def test_an_import_brings_nothing_back_that_went_with_its_conversation(
    items: Items, database: Database, database_logins: Logins
) -> None:
    transfer = Transfer(database, MemorySettings())
    await add_message(database_logins, "c", 1)
    message = Source(kind="message", conversation_id="c", message=1)
    derived = await keep(items, "derived", SECRET, origin="derived", sources=(message,))
    moment = await keep(
        items, "c#1", "and a kick", table="moments", origin="derived", category="session_chunk",
        sources=(Source(kind="person", told="a test"),),
    )  # fmt: skip
    await cover(database_logins, "c", 1, 1, moment)
    said = await keep(items, "said", "w", origin="said", sources=(message,))
    lines = [line async for some in transfer.export(ALL, None, None) for line in some]

    await remove(database_logins, "DELETE FROM ksi_completion.conversation")
    back = await transfer.take_in(ALL, lines)

    assert [(each.key, each.why) for each in back.refused] == [
        ("derived", "it went with what it came from, which was deleted here"),
        ("c#1", "it went with what it came from, which was deleted here"),
    ]
    assert back.unchanged == 1
    assert [await is_there(items, each) for each in (derived, moment, said)] == [False, False, True]
    anew = await items.upsert(ALL, "facts", [NewItem(key="derived", body=SECRET)], origin="derived")
    assert anew.inserted == 1
    assert (await items.forget(ALL, [derived])).ids == (derived,)


async def test_moments_that_said_it_are_told_and_written_anew(
    items: Items, database_logins: Logins
) -> None:
    await add_message(database_logins, "c", 1)
    message = Source(kind="message", conversation_id="c", message=1)
    fact = await keep(items, "fact", "x", origin="said", sources=(message,))
    moment = await keep(
        items, "c#1", "it says x", table="moments", origin="derived", category="session_chunk",
        sources=(message,),
    )  # fmt: skip
    await cover(database_logins, "c", 1, 1, moment)
    day = await keep(
        items, "day", "it says x, too", table="moments", origin="derived",
        sources=(*of(moment), Source(kind="person", told="a test")),
    )  # fmt: skip

    would = await items.forget(ALL, [fact], dry_run=True)
    there = [await is_there(items, each) for each in (fact, moment, day)]
    told = await items.forget(ALL, [fact])

    assert set(would.ids) == set(told.ids) == {fact, moment, day}
    assert there == [True, True, True]
    assert not any([await is_there(items, each) for each in (fact, moment, day)])
    assert await fetched(database_logins, "SELECT state FROM ksi_memory.chunk") == [("planned",)]
    again = [NewItem(key="c#1", body="it says x", category="session_chunk")]
    assert (await items.upsert(ALL, "moments", again, origin="derived")).inserted == 1


async def test_what_was_merged_with_it_goes_and_stays_gone(
    items: Items, database: Database, database_logins: Logins
) -> None:
    store = ConversationStore(database)
    kept = await keep(items, "kept", SECRET, origin="said")
    ended = await keep(items, "ended", f"{SECRET}!", origin="said")
    await store.end_items("t", "", [ended], kept)
    transfer = Transfer(database, MemorySettings())
    lines = [line async for some in transfer.export(ALL, None, None) for line in some]

    told = await items.forget(ALL, [kept])
    back = await transfer.take_in(ALL, lines)

    assert set(told.ids) == {kept, ended}
    assert {each.why for each in back.refused} == {"it was forgotten here"}
    assert (back.inserted, back.unchanged) == (0, 0)


@pytest.mark.parametrize("first", ["fact", "moment"])
async def test_of_a_user_no_moment_is_written_anew(
    items: Items, database_logins: Logins, first: str
) -> None:
    await add_message(database_logins, "c", 1, owner="anna")
    await add_message(database_logins, "c", 2)
    message = Source(kind="message", conversation_id="c", message=1)
    for what in (first, "moment" if first == "fact" else "fact"):
        if what == "fact":
            await keep(items, "fact", "x", origin="said", sources=(message,), whose=ANNA)
        else:
            moment = await keep(
                items, "c#1", "it says x", table="moments", origin="derived",
                category="session_chunk", sources=(message,), whose=ANNA,
            )  # fmt: skip
    await cover(database_logins, "c", 1, 1, moment)
    await remove(
        database_logins,
        "INSERT INTO ksi_memory.reading (tenant, conversation, turn, message, covered, "
        "uncovered_tokens, chunks) VALUES ('t', 'c', 1, 2, 1, 50, 1)",
    )

    await items.forget(ALL, [], everything_of="anna")

    assert await fetched(database_logins, "SELECT state, moment FROM ksi_memory.chunk") == [
        ("forgotten", None)
    ]
    assert await fetched(
        database_logins, "SELECT covered, uncovered_tokens FROM ksi_memory.reading"
    ) == [(2, 0)]


async def test_the_message_that_it_came_from_is_told(items: Items, database_logins: Logins) -> None:
    await add_message(database_logins, "c", 12)
    message = Source(kind="message", conversation_id="c", message=12)
    it = await keep(items, "it", SECRET, origin="said", sources=(message,))

    told = await items.forget(ALL, [it])

    assert told.kept[0].startswith("message 12 of c")


async def test_what_a_person_corrected_no_machine_changes(items: Items) -> None:
    it = await keep(items, "k", "wrong", origin="derived")
    item = await items.get(ALL, id=it)

    right = await items.correct(ANNA_ALL, item, MemoryCorrect(id=it, body="right", reason="I know"))
    again = await items.upsert(ALL, "facts", [NewItem(key="k", body="wrong")], origin="derived")
    said = await items.upsert(ALL, "facts", [NewItem(key="k", body="newer")], origin="said")

    assert (right.version, right.body, right.origin) == (2, "right", "given")
    assert right.sources == (Source(kind="person", told="cli: I know"),)
    assert again.refused[0].why == "a person said otherwise"
    assert said.updated == 1


ANNA_ALL = Whose("t", origin="cli")


async def test_what_is_pinned_no_machine_changes(items: Items) -> None:
    it = await keep(items, "k", "one", origin="derived")

    await items.pin(ALL, await items.get(ALL, id=it), pinned=True)
    refused = await items.upsert(ALL, "facts", [NewItem(key="k", body="two")], origin="derived")
    same = await items.upsert(ALL, "facts", [NewItem(key="k", body="one")], origin="derived")
    free = await items.pin(ALL, await items.get(ALL, id=it), pinned=False)
    taken = await items.upsert(ALL, "facts", [NewItem(key="k", body="two")], origin="derived")

    assert refused.refused[0].why == "a person said otherwise"
    assert same.unchanged == 1
    assert not free.is_pinned
    assert taken.updated == 1


@pytest.mark.parametrize("origin", ["said", "derived"])
async def test_what_one_user_has_forgotten_another_may_say(
    items: Items, database: Database, origin: e.Origin
) -> None:
    shared = "The house rules hang by the door"
    await items.forget(ALL, [await keep(items, "a", SECRET, whose=ANNA)])
    await items.forget(ALL, [await keep(items, "b", shared)])
    transfer = Transfer(database, MemorySettings())
    lines = [line async for some in transfer.export(ALL, None, None) for line in some]
    other = Whose("elsewhere")
    await transfer.take_in(other, lines)

    async def remembers(tenant: str, owner: str, text: str) -> bool:
        item = NewItem(key=f"{owner} {text}", body=text, owner=owner)
        told = await items.upsert(Whose(tenant), "facts", [item], origin=origin)
        return told.inserted == 1

    for tenant in ("t", "elsewhere"):
        assert not await remembers(tenant, "anna", SECRET)
        assert not await remembers(tenant, "", SECRET)
        assert await remembers(tenant, "ben", SECRET)
        assert not await remembers(tenant, "ben", shared)

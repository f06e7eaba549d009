"""The events of the memory, as a client sends them."""

from typing import Any

import asyncpg
import pytest

from ksi_client import AsyncClient, Conflict, Denied, InvalidData, NotFound
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_postgres.logins import Logins

ELSEWHERE = {"tenant": "elsewhere"}
NEEDED = {"postgres", "workflows", "tools", "models", "completion", "memory"}


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_settings() -> list[str]:
    """Fetch no model."""
    return ["memory.embedder=none"]


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The memory, and what it needs."""
    return installed_plugins(*NEEDED)


async def upsert(client: AsyncClient, table: str, *items: dict[str, Any]) -> Any:
    return await client.request("memory:upsert", {"table": table, "items": list(items)})


async def exported(
    client: AsyncClient, context: dict[str, str] | None = None, **which: str
) -> list[str]:
    lines: list[str] = []
    async for chunk in client.stream("memory:export", which, context=context):
        lines += chunk.get("lines", ())
    return lines


async def test_an_item_is_remembered_read_corrected_and_forgotten(client: AsyncClient) -> None:
    told = await upsert(client, "facts", {"key": "Tea", "body": "with milk"})
    item = await client.request("memory:get", {"key": "tea"})
    right = await client.request("memory:correct", {"key": "tea", "body": "without milk"})
    listed = await client.request("memory:list", {"table": "facts"})
    pinned = await client.request("memory:pin", {"key": "tea"})
    stats = await client.request("memory:stats")
    gone = await client.request("memory:forget", {"key": "tea", "reason": "no tea"})

    assert told["ids"] == [item["id"]]
    assert (right["version"], right["body"]) == (2, "without milk")
    assert [each["key"] for each in listed["items"]] == ["Tea"]
    assert "body" not in listed["items"][0]
    assert pinned["is_pinned"]
    assert stats["tables"] == [{"table": "facts", "items": 1, "versions": 2, "words": 2}]
    assert gone["ids"] == told["ids"]
    with pytest.raises(NotFound):
        await client.request("memory:get", {"key": "tea"})


@pytest.mark.parametrize(
    "bad",
    [
        {"key": "k" * 10_000},
        {"key": ""},
        {"key": "k", "edges": [{"to": "x" * 10_000}]},
        {"key": "k", "persons": ["p" * 10_000]},
        {"key": "k", "session": "s" * 10_000},
    ],
)
async def test_an_item_that_is_refused_takes_no_other_along(
    client: AsyncClient, bad: dict[str, Any]
) -> None:
    told = await upsert(client, "facts", {"key": "a"}, bad, {"key": "b"})

    assert told["inserted"] == 2
    assert [each["place"] for each in told["refused"]] == [1]


async def test_what_changes_is_told_of(client: AsyncClient) -> None:
    changes = await client.subscribe("memory:changed")
    losses = await client.subscribe("memory:forgot")

    told = await upsert(client, "facts", {"key": "a"})
    await client.request("memory:forget", {"key": "a"})

    assert (await anext(aiter(changes))).data == {"table": "facts", "inserted": 1, "updated": 0}
    assert (await anext(aiter(losses))).data == {"ids": told["ids"]}


async def test_what_is_remembered_in_a_run_is_no_person_s_word(client: AsyncClient) -> None:
    await upsert(client, "facts", {"key": "tea", "body": "with milk"})
    other = {"table": "facts", "items": [{"key": "tea", "body": "without"}]}

    for context in ({"run": "r_1"}, {"agent": "clerk"}):
        told = await client.request("memory:upsert", other, context=context)
        assert told["refused"][0]["why"] == "a person said otherwise"


async def test_users_see_and_forget_their_own_alone(client: AsyncClient) -> None:
    anna, ben = {"user": "anna"}, {"user": "ben"}
    notes = {"table": "facts", "items": [{"key": "notes", "body": "hers"}]}
    await client.request("memory:upsert", notes, context=anna)
    await upsert(client, "facts", {"key": "shared"})

    listed = await client.request("memory:list", {}, context=ben)
    lines = await exported(client, context=ben)
    for event in ("get", "why", "forget", "pin"):
        with pytest.raises(NotFound):
            await client.request(f"memory:{event}", {"key": "notes"}, context=ben)
    with pytest.raises(NotFound):
        await client.request("memory:forget", {"everything_of": "anna"}, context=ben)
    with pytest.raises(Denied):
        await client.request("memory:correct", {"key": "shared", "body": "x"}, context=ben)
    gone = await client.request("memory:forget", {"everything_of": "anna"}, context=anna)

    assert [each["key"] for each in listed["items"]] == ["shared"]
    assert len(lines) == 2
    assert len(gone["ids"]) == 1


async def test_a_list_has_pages(client: AsyncClient) -> None:
    await upsert(client, "facts", *({"key": f"k{n}"} for n in range(7)))
    await upsert(client, "entities", {"key": "k1", "category": "person"})

    keys, cursor = [], None
    while True:
        page = await client.request("memory:list", {"cursor": cursor, "limit": 3})
        keys += [f"{each['table']}/{each['key']}" for each in page["items"]]
        cursor = page.get("next")
        if cursor is None:
            break

    assert keys == ["entities/k1", *(f"facts/k{n}" for n in range(7))]
    narrow = await client.request("memory:list", {"category": "person"})
    assert len(narrow["items"]) == 1
    with pytest.raises(InvalidData, match="cursor"):
        await client.request("memory:list", {"cursor": "nonsense"})


async def test_it_is_told_why_something_is_known(
    client: AsyncClient, database_logins: Logins
) -> None:
    await client.request("conversation:create", {"conversation_id": "c_9"})
    connection = await asyncpg.connect(database_logins.admin)
    await connection.execute(
        "INSERT INTO ksi_completion.message (tenant, conversation, number, turn, role, parts, body,"
        " tokens) VALUES ('default', 'c_9', 1, 1, 'user', "
        """'[{"kind":"text","text":"I moved to Oslo"}]', 'I moved to Oslo', 4)"""
    )
    await connection.execute("UPDATE ksi_completion.conversation SET last_message = 1")
    await connection.close()
    said = {"kind": "message", "conversation_id": "c_9", "message": 1}
    moved = await upsert(client, "moments", {"key": "move", "body": "moved", "sources": [said]})
    rests = {"kind": "item", "item": moved["ids"][0]}
    await upsert(client, "facts", {"key": "home", "body": "Rome"})
    home = await upsert(client, "facts", {"key": "home", "body": "Oslo", "sources": [rests]})

    told = await client.request("memory:why", {"key": "home"})
    of_move = await client.request("memory:why", {"key": "move"})

    newest, oldest = told["versions"]
    assert (newest["what"], newest["text"]) == ("version 2 of facts/home", "Oslo")
    (moment,) = newest["rests_on"]
    assert moment["what"] == "version 1 of moments/move"
    (message,) = moment["rests_on"]
    assert message["what"] == "message 1 of c_9, by the user"
    assert message["text"] == "I moved to Oslo"
    assert oldest["text"] == "Rome"
    assert of_move["derived"] == home["ids"]


async def test_what_is_exported_comes_back_whole(client: AsyncClient) -> None:
    schema = {"type": "object", "required": ["size"]}
    await client.request("schema:register", {"name": "shoes", "schema": schema})
    await upsert(client, "shoes", {"key": "left", "attributes": {"size": 1.5, "n": None}})
    first = await upsert(
        client,
        "moments",
        {
            "key": "Walk",
            "title": "A walk",
            "body": "We walked on 3 May 2024 ✓ العربية",
            "category": "note",
            "persons": ["Ánna", "Ben"],
            "session": "s",
            "place": 4,
            "starts_at": "2024-05-03T10:00:00Z",
            "ends_at": "2024-05-03T11:00:00Z",
            "edges": [{"to": "Left", "relation": "wore", "weight": 0.3}],
            "attributes": {"mood": "joy", "deep": [1, {"x": "\\u0000"}]},
        },
    )
    await upsert(client, "moments", {"key": "walk", "title": "The walk"})
    rests = [
        {"kind": "item", "item": first["ids"][0], "version": 1},
        {"kind": "run", "run_id": "r"},
    ]
    await upsert(client, "facts", {"key": "walks", "body": "yes", "sources": rests})
    await upsert(client, "facts", {"key": "gone", "body": "a secret text"})
    forgotten = await exported(client, table="facts")
    await client.request("memory:forget", {"key": "gone"})
    lines = await exported(client)

    again = await client.request("memory:import", {"lines": lines})
    back = await client.request("memory:import", {"lines": forgotten})
    taken = await client.request("memory:import", {"lines": lines}, context=ELSEWHERE)
    copied = await exported(client, context=ELSEWHERE)

    assert again == {"inserted": 0, "unchanged": len(lines) - 1}
    assert [each["why"] for each in back["refused"]] == ["it was forgotten here"]
    assert taken == {"inserted": len(lines) - 1, "unchanged": 0}
    assert copied == lines


async def test_lines_that_are_none_are_told_and_the_others_taken(client: AsyncClient) -> None:
    await upsert(client, "facts", {"key": "a", "body": "b"})
    head, line = await exported(client)
    await client.request("memory:forget", {"key": "a"})

    told = await client.request(
        "memory:import",
        {
            "lines": [
                head,
                "{",
                "[]",
                line.replace('"key": "a"', '"key": "z"'),
                line.replace('"days": "{}"', '"days": "{x}"'),
                line.replace('"body": "b"', '"body": "other"'),
            ]
        },
    )

    assert [each["place"] for each in told["refused"]] == [1, 2, 3, 4]
    assert told["inserted"] == 1


async def test_a_table_is_made_by_its_schema_and_checked(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="schema register"):
        await upsert(client, "recipes", {"key": "soup"})
    schema = {
        "type": "object",
        "properties": {"minutes": {"type": "integer"}},
        "required": ["minutes"],
    }
    made = await client.request(
        "schema:register", {"name": "recipes", "schema": schema, "description": "What to cook"}
    )

    told = await upsert(
        client,
        "recipes",
        {"key": "soup", "attributes": {"minutes": 20}},
        {"key": "stew", "attributes": {"minutes": "long"}},
        {"key": "salad"},
    )

    assert (made["kind"], made["version"], made["description"]) == ("table", 1, "What to cook")
    assert told["inserted"] == 1
    assert [each["place"] for each in told["refused"]] == [1, 2]
    assert "minutes" in told["refused"][0]["why"]
    checked = await client.request("schema:verify", {"name": "recipes"})
    assert checked == {"checked": 1, "problems": []}
    stricter = {**schema, "required": ["minutes", "serves"]}
    await client.request("schema:register", {"name": "recipes", "schema": stricter})
    checked = await client.request("schema:verify", {"name": "recipes"})
    assert [each["key"] for each in checked["problems"]] == ["soup"]
    with pytest.raises(Conflict, match="has items"):
        await client.request("schema:delete", {"name": "recipes"})
    await client.request("memory:forget", {"key": "soup"})
    await client.request("schema:delete", {"name": "recipes"})
    with pytest.raises(NotFound):
        await upsert(client, "recipes", {"key": "soup", "attributes": {"minutes": 20}})
    await client.request("schema:register", {"name": "recipes", "schema": schema})


async def test_schemas_are_listed_read_and_held_to_objects(client: AsyncClient) -> None:
    schema = {"type": "object", "required": ["name"]}
    await client.request("schema:register", {"name": "clerk", "kind": "agent", "schema": schema})

    listed = await client.request("schema:list")
    of_kind = await client.request("schema:list", {"kind": "agent"})
    found = await client.request("schema:get", {"name": "clerk", "kind": "agent"})
    own = await client.request("schema:get", {"name": "resources"})
    verified = await client.request(
        "schema:verify", {"name": "clerk", "kind": "agent", "object": {}}
    )

    assert [each["name"] for each in listed["schemas"]] == ["clerk"]
    assert "moments" in listed["tables"]
    assert of_kind["tables"] == []
    assert found["schema"] == schema
    assert "chunks" in own["description"]
    assert len(verified["problems"]) == 1


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "nonsense"}, "not sound"),
        ({"$ref": "https://example.org/x.json"}, "not sound"),
        ({"properties": {"x": {"pattern": "(a)\\1"}}}, "not sound"),
    ],
)
async def test_an_unsound_schema_is_refused(
    client: AsyncClient, schema: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidData, match=why):
        await client.request("schema:register", {"name": "x", "schema": schema})


async def test_the_memory_s_own_tables_take_no_schema(client: AsyncClient) -> None:
    with pytest.raises(Conflict, match="own"):
        await client.request("schema:register", {"name": "facts", "schema": {}})
    with pytest.raises(InvalidData, match="schema:register"):
        await upsert(client, "schemas", {"key": "table:facts"})

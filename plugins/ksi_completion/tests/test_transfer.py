"""Tests of conversations that are written down and read in again."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_client import AsyncClient, Conflict, InvalidData
from ksi_completion.conversations import Found
from ksi_completion.messages import encode_parts
from ksi_completion.settings import CompletionSettings
from ksi_completion.tests.conversing import (
    Started,
    calls,
    conversing,
    postgres,
    results,
    run_sql,
    say,
)
from ksi_completion.tests.test_tokens import PARTS
from ksi_completion.transfer import JsonWriter, MarkdownWriter, read_document, rows_of
from ksi_daemon.loader import EntryPoint
from ksi_models.events import FilePart, ModelSettings, Part, TextPart, ThinkingPart
from ksi_postgres.logins import Logins


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    settings = CompletionSettings(max_import_messages=600, max_import_bytes=1_000_000)
    return [postgres(), conversing(Started(), settings)]


async def export(client: AsyncClient, form: str = "json", conversation: str = "c") -> str:
    request = {"conversation_id": conversation, "format": form}
    pieces = [piece["text"] async for piece in client.stream("conversation:export", request)]
    assert all(len(piece) <= 64 * 1024 for piece in pieces)
    return "".join(pieces)


async def test_a_conversation_is_read_in_as_it_was_written_down(
    client: AsyncClient, database_logins: Logins
) -> None:
    await client.request(
        "conversation:create",
        {
            "conversation_id": "c",
            "title": "Trip",
            "model": "m",
            "agent": "guide",
            "system": "Be kind.",
            "settings": {"temperature": 0.5},
        },
    )
    parts: tuple[Part, ...] = (
        ThinkingPart("hm", "s"),
        TextPart("ok \0 ü"),
        FilePart("image/png", b"\x89"),
    )
    await say(
        database_logins,
        "c",
        ("user", "hello"),
        ("assistant", calls("1")),
        ("tool", results("1")),
        ("assistant", parts),
        ("user", "thanks"),
    )

    written = await export(client)
    made = await client.request(
        "conversation:import", {"document": json.loads(written), "new_id": "d"}
    )

    assert await export(client, conversation="d") == written
    assert (made["messages"], made["turns"], made["title"]) == (5, 2, "Trip")
    found = await client.request("conversation:search", {"text": "thanks"})
    assert {each["conversation_id"] for each in found["found"]} == {"c", "d"}


async def test_a_long_conversation_is_written_in_pieces_and_whole(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", *(("user", f"message {n} " * 100) for n in range(500)))

    document = json.loads(await export(client))
    again = await client.request("conversation:import", {"document": document})

    assert len(document["messages"]) == 500
    assert again["messages"] == 500
    assert document["messages"][499]["parts"][0]["text"].startswith("message 499 ")


async def test_markdown_is_for_people(client: AsyncClient, database_logins: Logins) -> None:
    await client.request(
        "conversation:create", {"conversation_id": "c", "title": "A\ntrip", "system": "Be\nkind."}
    )
    await say(
        database_logins,
        "c",
        ("user", "hello"),
        ("assistant", calls("1")),
        ("tool", results("1", content="```\ncode\n```")),
        ("assistant", (ThinkingPart("hm"), TextPart("so"), FilePart("image/png", b"x", name="a"))),
    )

    written = await export(client, "markdown")

    assert written.startswith("# A trip\n\n> Be\n> kind.\n\n## User, 2")
    assert "*Calls `look`:*\n\n```json\n{}\n```\n" in written
    assert "````\n```\ncode\n```\n````\n" in written
    assert "> hm\n\nso\n\n*File a, image/png, 1 bytes*\n" in written


GOOD: dict[str, Any] = {
    "format": "ksi-conversation",
    "version": 1,
    "conversation": {},
    "messages": [
        {
            "turn": 1,
            "role": "user",
            "parts": [{"kind": "text", "text": "x"}],
            "created_at": "2026-01-01T00:00:00Z",
        }
    ],
}


def changed(**fields: Any) -> dict[str, Any]:
    """Return the document with its message changed."""
    return {**GOOD, "messages": [{**GOOD["messages"][0], **fields}]}


NO_DOCUMENTS: list[tuple[dict[str, Any], str]] = [
    ({}, "$.document"),
    ({**GOOD, "format": "other"}, "$.document.format"),
    ({**GOOD, "version": 2}, "$.document.version"),
    ({**GOOD, "conversation": {"title": 1}}, "$.document.conversation.title"),
    ({**GOOD, "conversation": {"title": "x" * 300}}, "$.document.conversation.title"),
    ({**GOOD, "messages": {}}, "$.document.messages"),
    (changed(role="boss"), "$.document.messages[0].role"),
    (changed(turn=-1), "$.document.messages[0].turn"),
    (changed(turn=2**70), "$.document.messages[0].turn"),
    (changed(parts=[{"kind": "nothing"}]), "$.document.messages[0].parts[0].kind"),
    (changed(parts=[{"kind": "text"}]), "$.document.messages[0].parts[0]"),
    (changed(created_at="yesterday"), "$.document.messages[0].created_at"),
    (changed(created_at="2026-01-01T00:00:00"), "$.document.messages[0].created_at"),
]


async def test_what_is_no_document_is_refused_with_the_place(
    client: AsyncClient, database_logins: Logins
) -> None:
    for document, path in NO_DOCUMENTS:
        with pytest.raises(InvalidData) as told:
            await client.request("conversation:import", {"document": document})

        assert told.value.details is not None
        assert told.value.details["path"] == path
    assert not await run_sql(database_logins, "SELECT FROM ksi_completion.conversation")


async def test_turns_that_go_back_are_refused(client: AsyncClient) -> None:
    message = GOOD["messages"][0]
    document = {**GOOD, "messages": [{**message, "turn": 2}, message]}

    with pytest.raises(InvalidData, match="not in order"):
        await client.request("conversation:import", {"document": document})


async def test_what_is_too_much_is_refused_whole(
    client: AsyncClient, database_logins: Logins
) -> None:
    many = {**GOOD, "messages": GOOD["messages"] * 601}
    large = changed(parts=[{"kind": "text", "text": "x" * 1_000_001}])

    with pytest.raises(InvalidData, match="max_import_messages"):
        await client.request("conversation:import", {"document": many})
    with pytest.raises(InvalidData, match="max_import_bytes"):
        await client.request("conversation:import", {"document": large})

    assert not await run_sql(database_logins, "SELECT FROM ksi_completion.message")


async def test_nothing_is_brought_into_a_conversation_that_is_there(
    client: AsyncClient,
) -> None:
    await client.request("conversation:create", {"conversation_id": "c", "title": "mine"})

    with pytest.raises(Conflict, match="'c' already"):
        await client.request("conversation:import", {"document": GOOD, "new_id": "c"})

    kept = await client.request("conversation:get", {"conversation_id": "c"})
    assert (kept["title"], kept["messages"]) == ("mine", 0)


# -- whatever it holds ----------------------------------------------------------------------------


SETTINGS = st.none() | st.builds(
    lambda t, s: msgspec.json.encode(ModelSettings(temperature=t, stop=s)).decode(),
    st.floats(0, 2),
    st.lists(st.text(max_size=5)).map(tuple),
)


def found(**fields: Any) -> Found:
    everything: dict[str, Any] = dict.fromkeys(Found.__struct_fields__)
    return Found(**{**everything, "id": "c", "title": "", **fields})


@given(
    st.text(max_size=200),
    st.none() | st.text(max_size=50),
    SETTINGS,
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["user", "assistant", "tool", "system"]),
            st.lists(PARTS, max_size=3).map(tuple),
            st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001  its zone follows
            st.none() | st.text(max_size=20),
        ),
        max_size=8,
    ),
)
def test_what_is_written_reads_the_same_whatever_it_holds(
    title: str, system: str | None, settings: str | None, messages: list[Any]
) -> None:
    turn = 0
    document: dict[str, Any] = {
        **GOOD,
        "conversation": {"title": title},
        "messages": [],
    }
    if system is not None:
        document["conversation"]["system"] = system
    for step, role, parts, at, model in messages:
        turn += step
        document["messages"].append(
            {
                "turn": turn,
                "role": role,
                "parts": json.loads(encode_parts(parts)),
                "created_at": at.replace(tzinfo=UTC).isoformat(),
                **({} if model is None else {"model": model}),
            }
        )
    rows, bodies = rows_of(read_document(document))

    conversation = found(title=title, system=system, settings=settings)
    writer = JsonWriter(conversation)
    written = writer.begin() + "".join(map(writer.message, rows)) + writer.end()
    again, _ = rows_of(read_document(json.loads(written)))

    assert again == rows
    about = read_document(json.loads(written)).conversation
    assert (about.title, about.system) == (title, system)
    assert "\0" not in "".join(bodies)
    readable = MarkdownWriter(conversation)
    assert readable.begin() + "".join(map(readable.message, rows))

"""What servers want to know in the middle of calls: people answer it, or it is declined."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_client import AsyncClient, UnixTransport
from ksi_daemon.protocol.paths import socket_path
from ksi_mcp.client.asking.dialogues import Asking, Dialogue, Parked
from ksi_mcp.client.asking.forms import Answers, Form, MisfitError, answers_in, question_of
from ksi_mcp.client.errors import LostError
from ksi_mcp.tests.client.conftest import calls, faulty
from ksi_mcp.tests.client.test_servers import added

NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
AGE = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
FORM = Form("Who?", NAME)


def elicit(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make a request for an answer of a person."""
    params = {"message": "Obey me.", "requestedSchema": schema, **more}
    return {"method": "elicitation/create", "params": params}


@pytest.fixture
async def client(home: Path) -> AsyncIterator[AsyncClient]:
    """A client of a daemon that other tests use too."""
    async with AsyncClient(UnixTransport(socket_path(home))) as client:
        yield client


async def ask(client: AsyncClient, call_id: str, *requests: dict[str, Any], **more: Any) -> Any:
    """Call a tool that wants to know something; again, where it was called before."""
    arguments = {"text": json.dumps(requests)}
    request = {"name": "curious_ask", "arguments": arguments, "call_id": call_id}
    return await client.request("tool:call", request, **more)


async def until_replied(folder: Path, count: int) -> list[Any]:
    """Wait until a server has been told something, and return all that it was told."""
    file = folder / "replies"
    async with asyncio.timeout(20):
        while True:
            lines = await asyncio.to_thread(file.read_text) if file.exists() else ""
            if lines.count("\n") >= count:
                return [json.loads(line) for line in lines.splitlines()]
            await asyncio.to_thread(lambda: None)


async def test_a_person_answers_what_a_server_asks_and_the_call_goes_on(
    client: AsyncClient, tmp_path: Path
) -> None:
    await added(client, "curious", faulty(tmp_path / "far"))
    others = ({"method": "roots/list"}, {"method": "sampling/createMessage", "params": {}})

    first = await ask(client, "asks-1", *others, elicit(NAME), elicit(AGE))
    await client.request("tool:answer", {"call_id": "asks-1", "content": "Ann"})
    second = await ask(client, "asks-1", *others, elicit(NAME), elicit(AGE))
    await client.request("tool:answer", {"call_id": "asks-1", "content": "old"})
    again = await ask(client, "asks-1", *others, elicit(NAME), elicit(AGE))
    await client.request("tool:answer", {"call_id": "asks-1", "content": "42"})
    done = await ask(client, "asks-1", *others, elicit(NAME), elicit(AGE))

    assert [each["status"] for each in (first, second, again)] == ["waiting"] * 3
    mark = first["content"].splitlines()[1]
    assert first["content"].splitlines()[2:] == [
        "Obey me.",
        "- name: text",
        mark,
        "Answer with that alone, or drop the call.",
    ]
    assert again["content"].startswith("age is to be a whole number. The MCP server curious asks")
    assert done["status"] == "done"
    roots, refused, who, age = json.loads(done["content"].splitlines()[2])
    assert roots == {"roots": []}
    assert "cost money" in refused["message"]
    assert (who, age) == (
        {"action": "accept", "content": {"name": "Ann"}},
        {"action": "accept", "content": {"age": 42}},
    )
    assert calls(tmp_path / "far") == ["ask"]

    await ask(client, "asks-2", elicit(NAME))
    await client.request("tool:resolve", {"call_id": "asks-2", "verdict": "drop"})
    declined = (await until_replied(tmp_path / "far", 5))[-1]
    await client.request("tool:permit", {"subject": "agent:shy", "allow": ["curious_*"]})
    shy = await ask(client, "asks-3", elicit(NAME), context={"agent": "shy"})
    url = await ask(client, "asks-4", elicit(NAME, mode="url", url="http://x", elicitationId="1"))
    await client.request("mcp:remove", {"name": "curious"})

    assert declined["result"]["action"] == "decline"
    for each in (shy, url):
        assert json.loads(each["content"].splitlines()[2]) == [{"action": "decline"}]


async def test_who_answers_after_a_call_was_lost_leaves_it_in_doubt(
    client: AsyncClient, tmp_path: Path
) -> None:
    await added(client, "curious", faulty(tmp_path / "far"))
    await ask(client, "asks-5", elicit(NAME))
    await client.request("mcp:remove", {"name": "curious"})
    await added(client, "curious", faulty(tmp_path / "far"))

    await client.request("tool:answer", {"call_id": "asks-5", "content": "Ann"})
    lost = await ask(client, "asks-5", elicit(NAME))
    await client.request("mcp:remove", {"name": "curious"})

    assert lost["status"] == "in_doubt"
    assert calls(tmp_path / "far") == ["ask"]


# -- forms -----------------------------------------------------------------------------------------

MANY = Form(
    "Fill in.\u200b",
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "title": "Full name"},
            "size": {"type": "number", "minimum": 1},
            "is_new": {"type": "boolean"},
            "colour": {"type": "string", "enum": ["red", "blue"]},
            "days": {"type": "array", "items": {"anyOf": [{"const": "Mo"}, {"const": "Tu"}]}},
        },
        "required": ["name"],
    },
)


def test_a_form_is_told_with_what_may_stand_in_it() -> None:
    names = "name=… size=… is_new=… colour=… days=…"

    lines = question_of(MANY, "far", "-----1-----").splitlines()

    assert lines[1:] == [
        "-----1-----",
        "Fill in.",
        "- name: text; Full name",
        "- size: a number; may be left out",
        "- is_new: yes or no; may be left out",
        "- colour: one of red, blue; may be left out",
        "- days: some of Mo, Tu; may be left out",
        "-----1-----",
        f"Answer with a line for each ({names}) or with JSON, or drop the call.",
    ]


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (
            "name = Ann\n\nsize=2.5\nis_new=no\ncolour=red\ndays=Mo, Tu",
            {"name": "Ann", "size": 2.5, "is_new": False, "colour": "red", "days": ["Mo", "Tu"]},
        ),
        ('{"name": "Ann", "size": 3}', {"name": "Ann", "size": 3}),
    ],
)
def test_an_answer_is_read_by_the_form(text: str, answers: Answers) -> None:
    assert answers_in(MANY, text) == answers


def test_where_one_thing_or_nothing_is_asked_that_alone_is_the_answer() -> None:
    assert answers_in(FORM, " Ann=x ") == {"name": "Ann=x"}
    assert answers_in(Form("Go on?", {"type": "object", "properties": {}}), "yes") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Ann", "no name=value"),
        ("size=2", "name is wanted"),
        ("name=A\nsize=big", "size is to be a number"),
        ("name=A\nsize=0", "does not fit"),
        ("name=A\ncolour=green", "does not fit"),
        ("name=A\nx=1", "nothing is called 'x'"),
        ("{", "no JSON"),
    ],
)
def test_an_answer_that_does_not_fit_is_told_why(text: str, why: str) -> None:
    with pytest.raises(MisfitError, match=why):
        answers_in(MANY, text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
words = st.sampled_from(["type", "enum", "oneOf", "anyOf", "items", "title", "const"])
field = st.dictionaries(words, anything | st.sampled_from(["array", "integer", "boolean"]))
schemas = st.fixed_dictionaries(
    {},
    optional={
        "properties": st.dictionaries(st.text(max_size=3), field | anything) | anything,
        "required": st.lists(st.text(max_size=3)) | anything,
    },
)


@settings(max_examples=30)
@given(schemas, st.text())
def test_whatever_a_server_takes_for_a_form_is_asked_and_read_or_declined(
    schema: dict[str, Any], text: str
) -> None:
    form = Form("Who?", schema)
    if form.is_bearable:
        assert question_of(form, "far", "-").count("\n-\n") >= 1
        with suppress(MisfitError):
            answers_in(form, text)


def test_a_form_that_is_too_large_is_none() -> None:
    large = {f"f{number}": {"type": "string"} for number in range(21)}

    assert not Form("Who?", {"properties": large}).is_bearable
    assert not Form("Who?", {"properties": {"a": {"title": "x" * 70_000}}}).is_bearable
    assert MANY.is_bearable


# -- dialogues -------------------------------------------------------------------------------------


async def until_told(dialogue: Dialogue) -> None:
    """Wait for what comes of a call; whoever asks meanwhile gets an empty answer."""
    while await dialogue.told() == FORM:
        dialogue.answer({})


async def test_a_question_that_nobody_answers_is_declined_and_its_call_ended_in_the_end() -> None:
    asked: list[Answers | None] = []

    async def call(ask: Any) -> dict[str, Any]:
        asked.append(await ask(FORM))
        await asyncio.Event().wait()
        return {}

    async with asyncio.TaskGroup() as group:
        dialogue = Dialogue(0.0, 0.0)
        dialogue.start(group, call)
        with pytest.raises(LostError):
            await until_told(dialogue)

    assert asked == [None]


async def test_whoever_answers_too_late_gets_what_came_of_the_call() -> None:
    async def call(ask: Any) -> dict[str, Any]:
        return {"told": await ask(FORM)}

    async with asyncio.TaskGroup() as group:
        dialogue = Dialogue(0.0, 600.0)
        dialogue.start(group, call)
        assert await dialogue.told() == FORM
        result = await dialogue.told()
        dialogue.answer({"name": "Ann"})

    assert result == {"told": None}


async def test_a_connection_that_ends_waits_for_no_person() -> None:
    async def call(ask: Any) -> dict[str, Any]:
        return {"told": await ask(FORM)}

    async with asyncio.TaskGroup() as group:
        dialogue = Dialogue(600.0, 600.0)
        dialogue.start(group, call)
        assert await dialogue.told() == FORM
        dialogue.cut_off()
        with pytest.raises(LostError, match="ended"):
            await dialogue.told()


async def test_of_too_many_questions_the_rest_is_declined() -> None:
    asked: list[Answers | None] = []

    async def call(ask: Any) -> dict[str, Any]:
        asked.extend([await ask(FORM) for _ in range(10)])
        return {}

    async with asyncio.TaskGroup() as group:
        dialogue = Dialogue(60.0, 60.0)
        dialogue.start(group, call)
        await until_told(dialogue)

    assert asked == [{}] * 8 + [None] * 2


async def test_of_too_many_calls_that_wait_the_oldest_is_given_up() -> None:
    parked = Parked()
    dialogues = [Dialogue(60.0, 60.0) for _ in range(101)]

    for number, each in enumerate(dialogues):
        parked.park(("acme", str(number)), each)

    assert parked.take(("acme", "0")) is None
    assert parked.take(("acme", "1")) is dialogues[1]


async def test_with_two_calls_at_once_nobody_is_asked() -> None:
    asking = Asking()

    async def answer(form: Form) -> Answers | None:
        return {"name": "Ann"}

    assert not asking.take()
    with asking.during(answer):
        assert asking.take()
        assert not asking.take()
        assert await asking.ask(FORM) == {"name": "Ann"}
        with asking.during(answer):
            assert not asking.take()
            assert await asking.ask(FORM) is None
        assert asking.take()

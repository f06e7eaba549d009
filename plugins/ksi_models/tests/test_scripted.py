import json
from typing import Any

import pytest

from ksi_models.events import (
    Message,
    ModelSettings,
    TextDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSchema,
)
from ksi_models.providers.scripted import ScriptedProvider
from ksi_models.providers.scripts import pieces_of, read_script
from ksi_models.tests.questions import ask, assistant, failing, question, said, user


@pytest.fixture
def scripted() -> ScriptedProvider:
    return ScriptedProvider()


def result(text: str) -> Message:
    return Message("tool", (ToolResultPart("1", "f", text),))


async def test_echo_says_the_last_words(scripted: ScriptedProvider) -> None:
    deltas, end = await ask(scripted, question("a", assistant("b"), "c", model="echo"))

    assert deltas == [TextDelta("c")]
    assert said(end) == "c"
    assert end.usage is not None


async def test_lorem_comes_word_by_word(scripted: ScriptedProvider) -> None:
    deltas, end = await ask(scripted, question(model="lorem-20-1ms"))

    assert len(deltas) == 20
    assert len(said(end).split()) == 20


async def test_a_script_says_and_calls(scripted: ScriptedProvider) -> None:
    script = {"say": "Adding", "calls": [{"name": "add", "arguments": {"a": 1}, "id": "x"}]}

    _, end = await ask(scripted, question(json.dumps(script), model="script"))

    assert said(end) == "Adding"
    assert end.message.parts[1] == ToolCallPart("x", "add", '{"a": 1}')
    assert end.finish == "tool_calls"


async def test_after_a_script_of_one_step_the_result_is_said(scripted: ScriptedProvider) -> None:
    script = user('{"calls": [{"name": "add"}]}')

    _, end = await ask(scripted, question(script, assistant(""), result("3"), model="script"))

    assert said(end) == "3"


async def test_steps_are_taken_one_after_the_other(scripted: ScriptedProvider) -> None:
    script = user('{"steps": [{"say": "1"}, {"say": "2"}, {"say": "3"}]}')
    injected = user("by the way")
    conversations: list[tuple[Message, ...]] = [
        (script,),
        (script, assistant("1"), result("r")),
        (script, assistant("1"), injected, assistant("2")),
        (script, assistant("1"), assistant("2"), assistant("3")),
    ]

    texts = [said((await ask(scripted, question(*c, model="script")))[1]) for c in conversations]

    assert texts == ["1", "2", "3", "3"]


async def test_arguments_can_be_broken(scripted: ScriptedProvider) -> None:
    script = {"calls": [{"name": "add", "arguments": '{"a": '}]}

    _, end = await ask(scripted, question(json.dumps(script), model="script"))

    assert isinstance(end.message.parts[0], ToolCallPart)
    assert end.message.parts[0].arguments == '{"a": '


async def test_a_script_may_fail_some_times(scripted: ScriptedProvider) -> None:
    script = question('{"say": "ok", "fail": "server", "fail_times": 2}', model="script")

    kinds = [(await failing(scripted, script)).kind for _ in range(2)]
    _, end = await ask(scripted, script)

    assert kinds == ["server", "server"]
    assert said(end) == "ok"


@pytest.mark.parametrize("kind", ["rate_limited", "login", "cut_off"])
async def test_failures_have_their_kind(scripted: ScriptedProvider, kind: str) -> None:
    assert (await failing(scripted, question(model=f"fail-{kind}"))).kind == kind


async def test_failures_pass_by_conversation(scripted: ScriptedProvider) -> None:
    one = question(model="fail-server-1", conversation="one")
    other = question(model="fail-server-1", conversation="other")

    await failing(scripted, one)
    await failing(scripted, other)

    assert said((await ask(scripted, one))[1]) == "ok"


@pytest.mark.parametrize("model", ["nothing", "fail-nothing", "lorem-x", ""])
async def test_a_model_that_is_not_there_is_told(scripted: ScriptedProvider, model: str) -> None:
    assert (await failing(scripted, question(model=model))).kind == "not_found"


async def test_tools_are_called_once_each(scripted: ScriptedProvider) -> None:
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}, "c": {}},
        "required": ["a", "b"],
    }
    tools = (ToolSchema("f", "", parameters), ToolSchema("g", "", {}))

    _, first = await ask(scripted, question("go", model="tools", tools=tools))
    after = question("go", first.message, result("3"), model="tools", tools=tools)
    _, second = await ask(scripted, after)

    calls = [part for part in first.message.parts if isinstance(part, ToolCallPart)]
    assert [(c.name, c.arguments) for c in calls] == [("f", '{"a":1,"b":"x"}'), ("g", "{}")]
    assert said(second) == "3"


async def test_no_tool_is_called_where_none_may_be(scripted: ScriptedProvider) -> None:
    asked = question(
        model="tools",
        tools=(ToolSchema("f", "", {}),),
        settings=ModelSettings(tool_choice="none"),
    )

    _, end = await ask(scripted, asked)

    assert end.finish == "stop"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}x", '{"steps": []}', '{"sey": 1}', "hello"])
def test_what_is_no_script_is_none(text: str) -> None:
    assert read_script(text) is None


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_pieces_are_the_whole_text(count: int) -> None:
    pieces = pieces_of("some text", count)

    assert "".join(pieces) == "some text"
    assert len(pieces) == min(count, 9)

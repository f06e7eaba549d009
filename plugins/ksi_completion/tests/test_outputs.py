"""Answers that are to follow a schema: what fits, what is said of what does not, and how often."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_client import AsyncClient, InvalidData
from ksi_completion.events import CompletionContext, ContextAdded
from ksi_completion.outputs import check_schema, misfit_of
from ksi_completion.tests.doubles import Script, Toolbox, calling
from ksi_completion.tests.test_turns import ask, ended, followed, text_of, words_of
from ksi_daemon.event_system import event_contributor
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import InvalidData as Refused
from ksi_daemon.testing import module_plugin
from ksi_models.events import TextPart, ThinkingPart

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}
WORDS = st.sampled_from(["", "object", "array", "string", "integer", "#", "#/items", "(", "a+$"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=4,
)


async def test_an_answer_that_fits_is_put_out_as_a_value(
    client: AsyncClient, script: Script
) -> None:
    script.say('{"age": 7}')

    result = await ended(client, (await ask(client, output_schema=SCHEMA))["run_id"])

    assert result["status"] == "succeeded"
    assert result["output"] == {"age": 7}
    assert result["steps"] == 1
    assert script.calls[0].output_schema == SCHEMA


async def test_a_model_is_told_what_does_not_fit_and_asked_again(
    client: AsyncClient, script: Script
) -> None:
    script.say("seven", '{"age": -7}', '{"age": 7}')

    chunks = await followed(client, {"start": {"prompt": "how old?", "output_schema": SCHEMA}})

    result = chunks[-1]
    assert result["output"] == {"age": 7}
    assert result["text"] == '{"age": 7}'
    assert result["steps"] == 3
    assert result["usage"] == {"input_tokens": 30, "output_tokens": 15}
    assert text_of(chunks) == 'seven{"age": -7}{"age": 7}'
    roles = [message.role for message in script.calls[2].messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    said = words_of(script.calls[2].messages)
    assert "not JSON" in said[2]
    assert "$.age" in said[4]
    assert "minimum" in said[4]


@pytest.mark.parametrize("ksi_settings", [["completion.output_retries=1"]])
async def test_a_turn_whose_model_finds_no_answer_that_fits_fails_and_says_so(
    client: AsyncClient, script: Script
) -> None:
    script.say('{"age": "old"}', "{}", "hello")

    accepted = await ask(client, "how old?", output_schema=SCHEMA, conversation_id="c")
    result = await ended(client, accepted["run_id"])
    after = await ended(client, (await ask(client, "hi", conversation_id="c"))["run_id"])

    assert result["status"] == "failed"
    assert result["error"]["code"] == "failed"
    assert result["error"]["details"] == {
        "kind": "output",
        "setting": "completion.output_retries",
    }
    assert "asked 2 times" in result["error"]["message"]
    assert "age" in result["error"]["message"]
    assert "output" not in result
    assert after["text"] == "hello"
    assert words_of(script.calls[2].messages)[0] == "how old?"


class TestContributors:
    """What plugins that add to a prompt are asked about."""

    @pytest.fixture
    def asked(self) -> list[str]:
        """The questions that they were told."""
        return []

    @pytest.fixture
    def ksi_plugins(self, ksi_plugins: list[EntryPoint], asked: list[str]) -> list[EntryPoint]:
        """Load one more."""

        @event_contributor("completion:context")
        async def add(request: CompletionContext) -> ContextAdded:
            asked.append(request.prompt)
            return ContextAdded(title="t", text="x")

        return [*ksi_plugins, module_plugin("contributor", add=add)]

    async def test_they_are_told_the_users_question_and_not_what_does_not_fit(
        self, client: AsyncClient, script: Script, asked: list[str]
    ) -> None:
        script.say("seven", '{"age": 7}')

        await ended(client, (await ask(client, "how old?", output_schema=SCHEMA))["run_id"])

        assert asked == ["how old?", "how old?"]


async def test_answers_that_call_tools_are_not_held_to_the_schema(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("look", "read_only", lambda call: "seven")
    script.say(calling(("look", "{}"), text="let me see"), '{"age": 7}')

    result = await ended(client, (await ask(client, output_schema=SCHEMA))["run_id"])

    assert result["output"] == {"age": 7}
    assert result["steps"] == 2


async def test_what_is_streamed_of_an_answer_that_was_not_fit_can_be_read_later(
    client: AsyncClient, script: Script
) -> None:
    script.say("seven", '{"age": 7}')
    live = await followed(client, {"start": {"prompt": "how old?", "output_schema": SCHEMA}})

    data = {"run_id": live[-1]["run_id"], "offset": 2}
    later = await followed(client, data)

    assert text_of(later) == text_of(live)[2:]
    assert [chunk["kind"] for chunk in later].count("step") == 2


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"$ref": "https://example.org/schema.json"},
        {"pattern": "("},
        {"description": "x" * 300_000},
    ],
)
async def test_a_schema_that_no_answer_can_be_held_to_is_refused_at_once(
    schema: dict[str, Any], client: AsyncClient, script: Script
) -> None:
    with pytest.raises(InvalidData, match="output_schema"):
        await ask(client, output_schema=schema)

    assert script.calls == []
    listed = await client.request("completion:list", {})
    assert listed["turns"] == []


def test_what_a_model_thinks_is_no_part_of_its_answer() -> None:
    parts = (ThinkingPart("hm"), TextPart('{"age"'), TextPart(": 1}"))

    assert misfit_of(SCHEMA, parts) is None


def test_what_is_told_of_an_answer_is_short_however_large_it_is() -> None:
    misfit = misfit_of({"type": "object"}, (TextPart(json.dumps("x" * 100_000)),))

    assert misfit is not None
    assert len(misfit) < 2000


def test_an_answer_that_is_nested_too_deep_does_not_fit() -> None:
    schema = {"items": {"$ref": "#"}}

    assert misfit_of(schema, (TextPart("[" * 100_000 + "]" * 100_000),)) is not None


# However busy the machine is.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["type", "items", "enum", "$ref", "pattern"]), VALUES))
def test_any_object_is_a_schema_or_refused_and_holds_any_answer_without_breaking(
    schema: dict[str, Any],
) -> None:
    try:
        check_schema(schema)
    except Refused:
        return

    for text in ("", "null", "[1]", '{"a": "b"}', "\ud800", "1e999", "9" * 50):
        misfit = misfit_of(schema, (TextPart(text),))
        assert misfit is None or isinstance(misfit, str)

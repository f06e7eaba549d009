import inspect
import os
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Raw

from ksi_models.events import (
    FilePart,
    Message,
    ModelSettings,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSchema,
    Usage,
)
from ksi_models.fakes.openai_server import FakeOpenAI, Reply
from ksi_models.providers.pydantic import NAMES, PydanticAI
from ksi_models.providers.scripts import ScriptedCall
from ksi_models.settings import ModelsSettings, ProviderSettings
from ksi_models.tests.fake_anthropic import FakeAnthropic
from ksi_models.tests.questions import ask, failing, keys, question, said

KEY = "sk-ant-api03-abcdefgh-1234"


@pytest.fixture
async def anthropic_server() -> AsyncIterator[FakeAnthropic]:
    async with FakeAnthropic().serving() as fake:
        yield fake


@pytest.fixture
async def anthropic(anthropic_server: FakeAnthropic) -> AsyncIterator[PydanticAI]:
    made = PydanticAI("anthropic", keys(None, None, ANTHROPIC_API_KEY=KEY), anthropic_server.url)
    yield made
    await made.close()


@pytest.fixture
async def chat(fake_openai: FakeOpenAI) -> AsyncIterator[PydanticAI]:
    made = PydanticAI(
        "openai-chat", keys(None, None, OPENAI_API_KEY="sk-x1234567"), fake_openai.url
    )
    yield made
    await made.close()


# -- answers --------------------------------------------------------------------------------------


async def test_all_that_a_model_says_comes_through(anthropic: PydanticAI) -> None:
    deltas, end = await ask(anthropic, question("add", model="claude-opus-5-5"))

    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "Let me see"
    assert "".join(d.text for d in deltas if isinstance(d, ThinkingDelta)) == "Hm"
    calls = [d for d in deltas if isinstance(d, ToolCallDelta)]
    assert "".join(d.arguments for d in calls) == '{"a": 1}'
    assert end.message.parts[1:] == (
        TextPart("Let me see"),
        ToolCallPart("toolu_1", "add", '{"a": 1}'),
    )
    assert end.finish == "tool_calls"
    assert end.served == "claude-served"
    assert end.usage == Usage(input_tokens=10, output_tokens=5, cache_read_tokens=3)


async def test_thinking_goes_back_with_its_signature(
    anthropic: PydanticAI, anthropic_server: FakeAnthropic
) -> None:
    _, first = await ask(anthropic, question("add", model="claude-opus-5-5"))
    result = Message("tool", (ToolResultPart("toolu_1", "add", "2"),))
    await ask(anthropic, question("add", first.message, result, model="claude-opus-5-5"))

    assert isinstance(first.message.parts[0], ThinkingPart)
    _, assistant, tool = anthropic_server.requests[1]["messages"]
    assert assistant["content"][0] == {
        "type": "thinking",
        "thinking": "Hm",
        "signature": "c2lnbmVk",
    }
    assert assistant["content"][2]["input"] == {"a": 1}
    assert tool["content"][0]["tool_use_id"] == "toolu_1"


async def test_a_conversation_is_cached_and_a_lone_question_is_not(
    anthropic: PydanticAI, anthropic_server: FakeAnthropic
) -> None:
    await ask(anthropic, question("a", model="claude-opus-5-5", conversation="c", system="s"))
    await ask(anthropic, question("a", model="claude-opus-5-5", system="s"))

    cached, plain = map(str, anthropic_server.requests)
    assert "cache_control" in cached
    assert "cache_control" not in plain


async def test_thinking_of_others_does_not_go_back(
    anthropic: PydanticAI, anthropic_server: FakeAnthropic
) -> None:
    thoughts = (
        ThinkingPart("Well", "openai-wire:reasoning"),
        ThinkingPart("Odd", "pydantic-ai:{broken"),
        TextPart("Hi"),
    )

    await ask(anthropic, question("a", Message("assistant", thoughts), "b", model="claude"))

    content = anthropic_server.requests[0]["messages"][1]["content"]
    assert content == [{"type": "text", "text": "Hi"}]


async def test_a_conversation_is_handed_on_whole(chat: PydanticAI, fake_openai: FakeOpenAI) -> None:
    asked = question(
        Message("user", (TextPart("See"), FilePart("image/png", b"\x89P"))),
        Message("assistant", (TextPart("Well"), ToolCallPart("1", "add", '{"a": 1'))),
        Message("tool", (ToolResultPart("1", "add", "broken", is_error=True),)),
        model="gpt-4o",
        system="Be brief.",
        tools=(ToolSchema("add", "Adds.", {"type": "object", "properties": {}}),),
        settings=ModelSettings(temperature=0.5, max_tokens=9, tool_choice="none"),
    )

    await ask(chat, asked)

    body = fake_openai.calls[0].body
    system, user, assistant, tool = body["messages"]
    assert system["content"] == "Be brief."
    assert user["content"][1]["image_url"]["url"] == "data:image/png;base64,iVA="
    assert assistant["tool_calls"][0]["function"]["arguments"] == '{"invalid":"{\\"a\\": 1"}'
    assert (tool["tool_call_id"], tool["content"]) == ("1", '{"error":"broken"}')
    assert body["temperature"] == 0.5


async def test_a_schema_is_followed(chat: PydanticAI, fake_openai: FakeOpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}

    await ask(chat, question(model="gpt-4o", output_schema=schema))

    assert fake_openai.calls[0].body["response_format"]["type"] == "json_schema"


async def test_tool_calls_in_fragments_are_put_together(
    chat: PydanticAI, fake_openai: FakeOpenAI
) -> None:
    call = ScriptedCall("add", Raw(b'{"a": 1, "b": 2}'), "x")
    fake_openai.script(Reply(text="Adding", calls=(call,), call_fragments=5))

    _, end = await ask(chat, question(model="gpt-4o"))

    assert said(end) == "Adding"
    assert end.message.parts[1] == ToolCallPart("x", "add", '{"a": 1, "b": 2}')


# -- keys -----------------------------------------------------------------------------------------


async def test_its_key_is_handed_on_and_not_by_the_environment(
    anthropic: PydanticAI, anthropic_server: FakeAnthropic
) -> None:
    await ask(anthropic, question(model="claude"))

    assert anthropic_server.keys == [f"Bearer {KEY}"]
    assert KEY not in os.environ.values()


async def test_without_a_key_it_says_what_to_do() -> None:
    provider = PydanticAI("anthropic", keys())

    assert "ANTHROPIC_API_KEY" in str(await provider.why_not())
    assert (await failing(provider, question(model="claude"))).kind == "login"


async def test_names_for_one_account_share_its_key() -> None:
    provider = PydanticAI("openai-responses", keys(None, None, OPENAI_API_KEY="sk-x1234567"))

    assert await provider.why_not() is None


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "login"), (404, "not_found"), (429, "rate_limited"), (529, "overloaded")],
)
async def test_refusals_have_their_kind(
    anthropic: PydanticAI, anthropic_server: FakeAnthropic, status: int, kind: str
) -> None:
    anthropic_server.refusal = (status, {"Retry-After": "0", "x-should-retry": "false"})

    error = await failing(anthropic, question(model="claude"))

    assert error.kind == kind
    assert "it is refused" in error.message
    assert len(anthropic_server.requests) == 1


async def test_the_client_makes_no_retries_of_its_own(
    anthropic: PydanticAI, anthropic_server: FakeAnthropic
) -> None:
    anthropic_server.refusal = (529, {"Retry-After": "0"})

    await failing(anthropic, question(model="claude"))

    assert len(anthropic_server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(fault="cut", text="a b c", chunks=3), "cut_off"),
        (Reply(fault="reset", text="a b c", chunks=3), "cut_off"),
        (Reply(status=400, error="maximum context length is 5 tokens"), "too_long"),
        (Reply(status=500, error="x"), "server"),
    ],
)
async def test_each_fault_has_its_kind(
    chat: PydanticAI, fake_openai: FakeOpenAI, reply: Reply, kind: str
) -> None:
    fake_openai.script(reply)

    assert (await failing(chat, question(model="gpt-4o"))).kind == kind


async def test_an_answer_that_is_cut_is_none(
    anthropic: PydanticAI, anthropic_server: FakeAnthropic
) -> None:
    anthropic_server.is_cut = True

    assert (await failing(anthropic, question(model="claude"))).kind == "cut_off"


async def test_packages_that_are_missing_are_named() -> None:
    provider = PydanticAI("groq", keys(None, None, GROQ_API_KEY="gsk_x12345678"))

    error = await failing(provider, question(model="llama"))

    assert "pip install 'pydantic-ai-slim[groq]'" in error.message


async def test_a_provider_that_is_none_is_told() -> None:
    own = {"nothing": ProviderSettings(key="sk-x12345678")}
    provider = PydanticAI("nothing", keys(ModelsSettings(providers=own, keyring=False)))

    assert (await failing(provider, question(model="x"))).kind == "not_found"


def test_all_of_its_providers_are_known() -> None:
    from pydantic_ai import providers  # noqa: PLC0415  late: it takes a while

    cases: Any = re.findall(r"case (.*):", inspect.getsource(providers.infer_provider_class))
    theirs = set(re.findall(r"'([\w-]+)'", " ".join(cases)))

    assert theirs - {"openai", "ollama", "vllm"} == set(NAMES)

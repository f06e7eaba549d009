"""The official client of OpenAI's talks to agents and models."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script, calling
from ksi_daemon.protocol import Unavailable
from ksi_http.openai.room import AGAIN
from ksi_http.testing import HttpServer
from ksi_models.events import ModelCall, ModelChunk, TextDelta, ToolResultPart

if TYPE_CHECKING:  # a thousand modules, of which only who runs these tests has need
    import openai

MODEL = "test/script"
PICK: Any = {
    "type": "function",
    "function": {
        "name": "pick_colour",
        "description": "Have the person pick a colour.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def user(text: str) -> Any:
    """Return a message of the user's."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Any:
    """Return a message of the agent's."""
    return {"role": "assistant", "content": text}


async def conversations(client: AsyncClient) -> list[Any]:
    """Return all conversations."""
    found: list[Any] = (await client.request("conversation:list"))["conversations"]
    return found


def roles(script: Script) -> list[str]:
    """Return whose messages the model was shown last."""
    return [message.role for message in script.calls[-1].messages]


async def test_an_answer_comes_whole(chat: "openai.AsyncOpenAI", script: Script) -> None:
    script.say("Good day.")

    answer = await chat.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be kind."}, user("hello")],
        temperature=0.5,
        max_tokens=50,
        stop="END",
    )

    (choice,) = answer.choices
    assert choice.message.content == "Good day."
    assert choice.finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 5)
    assert answer.usage.total_tokens == 15
    (call,) = script.calls
    assert "Be kind." in (call.system or "")
    assert call.model == MODEL
    assert (call.settings.temperature, call.settings.max_tokens) == (0.5, 50)
    assert call.settings.stop == ("END",)
    assert call.tools == ()


async def test_an_answer_comes_in_pieces(chat: "openai.AsyncOpenAI", script: Script) -> None:
    script.say("Good day.")

    stream = await chat.chat.completions.create(
        model="agent:general",
        messages=[user("hello")],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    ends = [choice.finish_reason for choice in choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "Good day."
    assert choices[0].delta.role == "assistant"
    assert ends == [None] * (len(ends) - 1) + ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 15
    assert len({chunk.id for chunk in chunks}) == 1


async def test_an_agent_is_named_like_a_model(
    chat: "openai.AsyncOpenAI", script: Script, client: AsyncClient
) -> None:
    for name in ("agent:general", "general"):
        await chat.chat.completions.create(
            model=name, messages=[{"role": "system", "content": "Be kind."}, user("hello")]
        )

        system = script.calls[-1].system or ""
        assert system.endswith("Be kind.")
        assert system != "Be kind."  # the agent's own comes first
    assert {each["agent"] for each in await conversations(client)} == {"general"}


async def test_a_history_that_is_sent_again_is_not_said_again(
    chat: "openai.AsyncOpenAI", script: Script, client: AsyncClient
) -> None:
    script.say("First.", "Second.", "Third.")
    messages = [user("one")]
    for text in ("two", "three"):
        answer = await chat.chat.completions.create(model=MODEL, messages=messages)
        messages += [assistant(answer.choices[0].message.content or ""), user(text)]

    await chat.chat.completions.create(model=MODEL, messages=messages)

    assert roles(script) == ["user", "assistant", "user", "assistant", "user"]
    (conversation,) = await conversations(client)
    assert conversation["turns"] == 3


async def test_what_is_asked_once_more_is_answered_anew_with_its_own_history(
    chat: "openai.AsyncOpenAI", script: Script, client: AsyncClient
) -> None:
    script.say("First.", "Second.", "Other.")
    await chat.chat.completions.create(model=MODEL, messages=[user("one")])
    messages = [user("one"), assistant("First."), user("two")]

    answers = [
        (await chat.chat.completions.create(model=MODEL, messages=messages)).choices[0]
        for _ in range(2)
    ]

    assert [choice.message.content for choice in answers] == ["Second.", "Other."]
    assert roles(script) == ["user", "assistant", "user"]
    assert sorted(each["turns"] for each in await conversations(client)) == [1, 2]


async def test_a_conversation_that_went_on_elsewhere_is_not_the_client_s_any_more(
    chat: "openai.AsyncOpenAI", script: Script, client: AsyncClient
) -> None:
    script.say("First.", "Elsewhere.", "Second.")
    await chat.chat.completions.create(model=MODEL, messages=[user("one")])
    (conversation,) = await conversations(client)
    await client.create_completion("and?", conversation_id=conversation["conversation_id"])

    await chat.chat.completions.create(
        model=MODEL, messages=[user("one"), assistant("First."), user("two")]
    )

    assert roles(script) == ["user", "assistant", "user"]
    assert len(await conversations(client)) == 2


async def test_a_client_may_name_its_conversation(
    chat: "openai.AsyncOpenAI", script: Script, client: AsyncClient
) -> None:
    for text in ("one", "two"):
        await chat.chat.completions.create(
            model=MODEL, messages=[user(text)], metadata={"conversation_id": "mine"}
        )

    assert roles(script) == ["user", "assistant", "user"]
    assert [each["conversation_id"] for each in await conversations(client)] == ["mine"]


async def test_a_key_that_may_write_alone_is_enough(
    chat: "openai.AsyncOpenAI", script: Script, make_key: Callable[..., Any]
) -> None:
    script.say("First.", "Second.")
    writer = chat.with_options(api_key=await make_key("chat:write"))
    await writer.chat.completions.create(model=MODEL, messages=[user("one")])

    second = await writer.chat.completions.create(
        model=MODEL, messages=[user("one"), assistant("First."), user("two")]
    )

    assert second.choices[0].message.content == "Second."


@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_s_tools_are_called_and_answered(
    chat: "openai.AsyncOpenAI", script: Script, stream: bool
) -> None:
    script.say(calling(("pick_colour", "{}"), ("pick_colour", "{}"), text="Pick."), "Blue it is.")
    messages = [user("paint")]
    first = await having(chat, messages, stream=stream)
    called = first["tool_calls"]
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call["id"], "content": colour}
        for call, colour in zip(called, ("blue", "red"), strict=True)
    ]
    messages += [{"role": "assistant", "content": "Pick.", "tool_calls": called}, *results]

    second = await having(chat, messages, stream=stream)
    again = await having(chat, messages, stream=stream)

    assert (first["content"], first["finish_reason"]) == ("Pick.", "tool_calls")
    assert [call["function"]["name"] for call in called] == ["pick_colour", "pick_colour"]
    assert (second["content"], second["finish_reason"]) == ("Blue it is.", "stop")
    assert again == second
    assert len(script.calls) == 2
    shown = [part for m in script.calls[-1].messages for part in m.parts]
    results = [part.content for part in shown if isinstance(part, ToolResultPart)]
    assert results == ["blue", "red"]


async def having(
    chat: "openai.AsyncOpenAI", messages: list[Any], *, stream: bool
) -> dict[str, Any]:
    """Have an answer, in one way or the other; return what it comes to."""
    asked: Any = {"model": MODEL, "messages": list(messages), "tools": [PICK]}
    if not stream:
        choice = (await chat.chat.completions.create(**asked)).choices[0]
        return {**choice.message.model_dump(), "finish_reason": choice.finish_reason}
    async with chat.chat.completions.stream(**asked) as events:
        choice = (await events.get_final_completion()).choices[0]
        return {**choice.message.model_dump(), "finish_reason": choice.finish_reason}


async def test_what_an_agent_asks_a_person_is_answered_by_what_he_says_next(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    script.say(calling(("ask_user", '{"question": "Which?"}')), "The red one.")
    first = await chat.chat.completions.create(model="general", messages=[user("choose")])
    question = first.choices[0].message.content or ""

    second = await chat.chat.completions.create(
        model="general", messages=[user("choose"), assistant(question), user("red")]
    )

    assert question == "Which?"
    assert second.choices[0].message.content == "The red one."
    assert len(script.calls) == 2


async def test_what_the_daemon_s_own_tools_do_is_no_business_of_the_client_s(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    asked = json.dumps({"agent": "define", "prompt": "What is a heron?"})
    script.say(calling(("ask_agent", asked), text="Let me ask."), "A bird.", "It is a bird.")

    answer = await chat.chat.completions.create(model="router", messages=[user("Herons?")])

    assert answer.choices[0].message.content == "Let me ask.\n\nIt is a bird."
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


async def test_an_answer_fits_the_schema_that_is_sent(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    script.say('{"colour": "red"}')
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}

    answer = await chat.chat.completions.create(
        model=MODEL,
        messages=[user("which?")],
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
    )

    assert json.loads(answer.choices[0].message.content or "") == {"colour": "red"}
    assert script.calls[0].output_schema == schema


async def test_an_image_goes_to_the_model(chat: "openai.AsyncOpenAI", script: Script) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVyb24="}}
    content: Any = [{"type": "text", "text": "What is it?"}, image]

    await chat.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])

    text, file = script.calls[0].messages[0].parts
    assert getattr(text, "text", None) == "What is it?"
    assert getattr(file, "data", None) == b"heron"


async def test_agents_and_models_are_listed(
    chat: "openai.AsyncOpenAI", http: HttpServer, make_key: Callable[..., Any]
) -> None:
    names = [model.id async for model in chat.models.list()]
    one = await chat.models.retrieve("agent:general")
    status, _ = await http.get("/v1/models", key=await make_key("memory:*"))

    assert {"agent:general", "agent:router", MODEL, "fast"} <= set(names)
    assert one.id == "agent:general"
    assert status == 403


async def test_errors_are_the_client_s_own_kinds(
    chat: "openai.AsyncOpenAI", http: HttpServer, script: Script, make_key: Callable[..., Any]
) -> None:
    import openai  # noqa: PLC0415  late: it takes a while

    with pytest.raises(openai.NotFoundError, match="there is no model"):
        await chat.chat.completions.create(model="test/none", messages=[user("hello")])
    with pytest.raises(openai.NotFoundError):
        await chat.chat.completions.create(model="agent:nobody", messages=[user("hello")])
    with pytest.raises(openai.BadRequestError, match="nothing is new"):
        await chat.chat.completions.create(model=MODEL, messages=[assistant("hello")])
    with pytest.raises(openai.BadRequestError):
        await chat.chat.completions.create(model=MODEL, messages=[user("hello")], n=2)
    with pytest.raises(openai.AuthenticationError):
        await chat.with_options(api_key="wrong").models.list()
    reader = chat.with_options(api_key=await make_key("chat:read"))
    with pytest.raises(openai.PermissionDeniedError):
        await reader.chat.completions.create(model=MODEL, messages=[user("hello")])
    lost: Any = {"role": "tool", "tool_call_id": "call_7", "content": "blue"}
    with pytest.raises(openai.ConflictError):
        await chat.chat.completions.create(model=MODEL, messages=[user("paint"), lost])


async def test_a_turn_that_fails_is_an_error_without_what_is_inside(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    import openai  # noqa: PLC0415  late: it takes a while

    script.say(*[ValueError("secret inside")] * 9)

    with pytest.raises(openai.InternalServerError) as whole:
        await chat.chat.completions.create(model=MODEL, messages=[user("hello")])

    assert "secret" not in str(whole.value)


async def test_another_user_s_turn_takes_no_answers(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    import openai  # noqa: PLC0415  late: it takes a while

    script.say(calling(("pick_colour", "{}")))
    first = await chat.chat.completions.create(
        model=MODEL, messages=[user("paint")], tools=[PICK], extra_headers={"x-user-id": "anna"}
    )
    (call,) = first.choices[0].message.tool_calls or []
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "blue"}

    with pytest.raises(openai.NotFoundError):
        await chat.chat.completions.create(
            model=MODEL,
            messages=[user("paint"), result],
            tools=[PICK],
            extra_headers={"x-user-id": "ben"},
        )


async def test_a_request_that_is_sent_again_with_its_key_is_one_turn(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    headers = {"Idempotency-Key": "once"}

    answers = [
        await chat.chat.completions.create(
            model=MODEL, messages=[user("hello")], extra_headers=headers
        )
        for _ in range(2)
    ]

    assert answers[0].choices == answers[1].choices
    assert len(script.calls) == 1


async def test_an_answer_that_breaks_off_and_is_given_anew_says_so_in_pieces(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    seen = asyncio.Event()

    async def breaks(request: ModelCall) -> AsyncIterator[ModelChunk]:
        yield TextDelta("Good")
        await seen.wait()
        raise Unavailable("it is gone", retry_after_s=0.01)

    script.say(breaks, "Good day.")
    text = ""
    stream = await chat.chat.completions.create(model=MODEL, messages=[user("hello")], stream=True)
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        seen.set()

    assert text == f"Good{AGAIN}Good day."


async def test_an_answer_that_breaks_off_comes_whole_all_the_same(
    chat: "openai.AsyncOpenAI", script: Script
) -> None:
    async def breaks(request: ModelCall) -> AsyncIterator[ModelChunk]:
        yield TextDelta("Good")
        raise Unavailable("it is gone", retry_after_s=0.01)

    script.say(breaks, "Good day.")

    answer = await chat.chat.completions.create(model=MODEL, messages=[user("hello")])

    assert answer.choices[0].message.content == "Good day."

"""Turns: accepted, had, followed and ended, with a model and tools that do as they are told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from ksi_client import AsyncClient, Busy, Conflict, InvalidData, NotFound
from ksi_completion import turns
from ksi_completion.tests.doubles import Script, Toolbox, calling, response
from ksi_daemon.protocol import Denied, Unavailable
from ksi_models.events import (
    Message,
    ModelCall,
    ModelChunk,
    ModelWaiting,
    TextDelta,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from ksi_tools.events import ToolCall


async def ask(client: AsyncClient, prompt: str = "hello", **more: Any) -> Any:
    """Have a turn accepted."""
    return await client.request("completion:async", {"prompt": prompt, **more})


async def ended(client: AsyncClient, run: str, timeout_s: float = 20.0) -> Any:
    """Wait for a turn's end."""
    return await client.request("completion:wait", {"run_id": run, "timeout_s": timeout_s})


async def followed(client: AsyncClient, data: Any) -> list[Any]:
    """Return all chunks of a stream."""
    return [chunk async for chunk in client.stream("completion:stream", data)]


def text_of(chunks: Sequence[Any]) -> str:
    """Return the text of chunks."""
    return "".join(chunk["text"] for chunk in chunks if chunk["kind"] == "text")


def words_of(messages: Sequence[Message]) -> list[str]:
    """Return the text of each message."""
    return ["".join(p.text for p in m.parts if isinstance(p, TextPart)) for m in messages]


def results_of(messages: Sequence[Message]) -> list[ToolResultPart]:
    """Return what came of tool calls."""
    return [p for m in messages for p in m.parts if isinstance(p, ToolResultPart)]


def units_of(chunks: Sequence[Any]) -> list[Any]:
    """Return what chunks say, unit by unit, each with its offset."""
    units: list[Any] = []
    for chunk in chunks:
        if chunk["kind"] in ("text", "thinking"):
            units += [(chunk["offset"] + n, char) for n, char in enumerate(chunk["text"])]
        elif "offset" in chunk:
            units.append((chunk["offset"], chunk["kind"], chunk.get("call_id")))
    return units


async def paused(client: AsyncClient, run: str) -> Any:
    """Wait until a turn waits for a person."""
    async for chunk in client.stream("completion:stream", {"run_id": run}):
        if chunk["kind"] == "status" and chunk["waits_for"] in ("answer", "decision"):
            break
    return await client.request("completion:status", {"run_id": run})


def assert_sane(messages: Sequence[Message]) -> None:
    """Check that every call has one result, which comes after it and before anything else."""
    open_calls: list[str] = []
    for message in messages:
        if message.role != "tool":
            assert open_calls == []
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                open_calls.append(part.id)
            elif isinstance(part, ToolResultPart):
                open_calls.remove(part.id)
    assert open_calls == []


async def test_a_turn_is_accepted_had_and_told(client: AsyncClient, script: Script) -> None:
    script.say("Good morning")

    accepted = await ask(client)
    result = await ended(client, accepted["run_id"])

    assert result["status"] == "succeeded"
    assert result["text"] == "Good morning"
    assert result["usage"] == {"input_tokens": 10, "output_tokens": 5}
    assert result["cost_usd"] == 0.5
    assert result["steps"] == 1
    assert script.contexts[0].conversation == accepted["conversation_id"]
    assert script.contexts[0].run == accepted["run_id"]


async def test_a_stream_tells_each_word_and_the_end(client: AsyncClient, script: Script) -> None:
    script.say("Good morning")

    start = {"start": {"prompt": "hi"}}
    chunks = [chunk async for chunk in client.stream("completion:stream", start)]

    assert chunks[0]["kind"] == "accepted"
    texts = [chunk for chunk in chunks if chunk["kind"] == "text"]
    assert "".join(chunk["text"] for chunk in texts) == "Good morning"
    assert chunks[-1]["kind"] == "result"
    assert chunks[-1]["status"] == "succeeded"


async def test_a_turn_calls_tools_until_there_is_an_answer(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("look", "read_only", lambda call: f"seen {call.arguments}")
    toolbox.add("send", "effectful", lambda call: "sent")
    script.say(calling(("look", "{}"), ("send", '{"to": "x"}'), ("look", "{}")), "done")

    accepted = await ask(client)
    result = await ended(client, accepted["run_id"])

    run = accepted["run_id"]
    assert result["text"] == "done"
    assert result["tool_calls"] == 3
    assert [call.call_id for call in toolbox.calls] == [f"{run}:1:{n}" for n in range(3)]
    assert [message.role for message in script.calls[1].messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "tool",
    ]


# -- acceptance ---------------------------------------------------------------------------------


async def test_asking_twice_with_one_request_id_is_asking_once(
    client: AsyncClient, script: Script
) -> None:
    first = await ask(client, request_id="r1")
    await ended(client, first["run_id"])

    second = await ask(client, request_id="r1")

    assert second["run_id"] == first["run_id"]
    assert second["conversation_id"] == first["conversation_id"]
    assert second["status"] == "succeeded"
    assert len(script.calls) == 1


async def test_another_request_under_a_used_id_is_a_conflict(client: AsyncClient) -> None:
    await ask(client, request_id="r1")

    with pytest.raises(Conflict, match="r1"):
        await ask(client, "something else", request_id="r1")


async def test_a_turn_needs_something_to_answer(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="prompt"):
        await client.request("completion:async", {})
    message = {"role": "user", "parts": [{"kind": "text", "text": "x"}]}
    with pytest.raises(InvalidData, match="prompt"):
        await client.request("completion:async", {"prompt": "x", "messages": [message]})
    with pytest.raises(InvalidData, match="user"):
        await client.request("completion:async", {"messages": [{**message, "role": "assistant"}]})


async def test_an_archived_conversation_takes_no_turns(client: AsyncClient) -> None:
    accepted = await ask(client)
    await ended(client, accepted["run_id"])
    conversation = accepted["conversation_id"]
    await client.request("conversation:archive", {"conversation_id": conversation})

    with pytest.raises(Conflict, match="archived"):
        await ask(client, conversation_id=conversation)


async def test_turns_of_a_conversation_are_had_in_order_one_at_a_time(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one", "two", "three")
    accepted = [await ask(client, f"question {n}", conversation_id="c") for n in range(3)]
    await script.began.wait()

    assert [each["status"] for each in accepted] == ["running", "waiting", "waiting"]
    assert [each["turn"] for each in accepted] == [1, 2, 3]
    assert len(script.calls) == 1
    script.gate.set()
    results = [await ended(client, each["run_id"]) for each in accepted]

    assert [result["text"] for result in results] == ["one", "two", "three"]
    history = await client.request("conversation:history", {"conversation_id": "c"})
    said = [(m["role"], m["parts"][0]["text"]) for m in history["messages"]]
    assert said == [
        ("user", "question 0"),
        ("assistant", "one"),
        ("user", "question 1"),
        ("assistant", "two"),
        ("user", "question 2"),
        ("assistant", "three"),
    ]


async def test_two_clients_that_ask_at_once_are_answered_in_order_of_acceptance(
    client: AsyncClient, connect: Any, script: Script
) -> None:
    other = await connect()
    async with asyncio.TaskGroup() as together:
        tasks = [
            together.create_task(ask(who, f"{n}", conversation_id="c"))
            for n in range(10)
            for who in (client, other)
        ]
    accepted = sorted((task.result() for task in tasks), key=lambda each: each["turn"])
    for each in accepted:
        assert (await ended(client, each["run_id"]))["status"] == "succeeded"

    assert [each["turn"] for each in accepted] == list(range(1, 21))
    assert [len(call.messages) for call in script.calls] == list(range(1, 41, 2))


async def test_a_hundred_conversations_are_had_at_once(client: AsyncClient, script: Script) -> None:
    script.gate = asyncio.Event()
    script.say(*["answer"] * 100)
    accepted = [await ask(client, conversation_id=f"c{n}") for n in range(100)]
    async with asyncio.timeout(30):
        while len(script.calls) < 100:
            await script.called()
    script.gate.set()

    for each in accepted:
        assert (await ended(client, each["run_id"]))["text"] == "answer"


@pytest.mark.parametrize("ksi_settings", [["completion.max_waiting_turns=3"]])
async def test_a_conversation_takes_only_so_many_waiting_turns(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    for _ in range(4):
        await ask(client, conversation_id="c")

    with pytest.raises(Busy, match="max_waiting_turns"):
        await ask(client, conversation_id="c")
    script.gate.set()


async def test_the_priority_of_a_turn_is_that_of_its_model_calls(
    client: AsyncClient, script: Script
) -> None:
    await ended(client, (await ask(client, priority=7))["run_id"])
    await ended(client, (await ask(client))["run_id"])

    assert [call.priority for call in script.calls] == [7, ModelCall().priority]


# -- what goes wrong ----------------------------------------------------------------------------


async def test_a_failed_turn_keeps_what_the_user_said_and_says_what_failed(
    client: AsyncClient, script: Script
) -> None:
    script.say(Denied("the key is refused: set OPENAI_API_KEY"))
    accepted = await ask(client, "remember me", conversation_id="c")

    result = await ended(client, accepted["run_id"])
    after = await ask(client, "and now", conversation_id="c")
    await ended(client, after["run_id"])

    assert result["status"] == "failed"
    assert result["error"]["code"] == "denied"
    assert "OPENAI_API_KEY" in result["error"]["message"]
    assert words_of(script.calls[1].messages) == ["remember me", "and now"]


@pytest.mark.parametrize("ksi_settings", [["completion.retry_s=0.05"]])
async def test_a_model_that_is_away_is_tried_again_and_what_it_had_said_is_void(
    client: AsyncClient, script: Script
) -> None:
    async def breaks(request: ModelCall) -> AsyncIterator[ModelChunk]:
        yield TextDelta("Good eve")
        raise Unavailable("the provider is down")

    script.say(breaks, "Good morning")

    chunks = await followed(client, {"start": {"prompt": "hi"}})

    kinds = [chunk["kind"] for chunk in chunks]
    assert "restarted" in kinds
    again = chunks[kinds.index("restarted") :]
    assert again[0]["offset"] == 0
    assert again[0]["attempt"] == 2
    assert text_of(again) == "Good morning"
    assert chunks[-1]["text"] == "Good morning"


async def test_a_call_of_a_tool_that_is_not_there_is_told_to_the_model(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("look", "read_only", lambda call: "seen")
    script.say(calling(("destroy", "{}"), ("look", '{"broken'), ("look", "[1]")), "sorry")

    result = await ended(client, (await ask(client))["run_id"])

    told = results_of(script.calls[1].messages)
    assert result["text"] == "sorry"
    assert [part.is_error for part in told] == [True, True, True]
    assert "look" in told[0].content
    assert "JSON" in told[1].content
    assert "object" in told[2].content
    assert toolbox.calls == []


async def test_a_turn_may_be_bound_to_some_of_the_tools(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("mail:read", "read_only", lambda call: "read")
    toolbox.add("mail:send", "effectful", lambda call: "sent")
    script.say(calling(("mail:send", "{}")), "no")

    await ended(client, (await ask(client, tools=["mail:r*"], conversation_id="c"))["run_id"])

    assert [tool.name for tool in script.calls[0].tools] == ["mail:read"]
    assert toolbox.calls == []
    assert toolbox.permits[0].subject == "conversation:c"
    assert toolbox.permits[0].allow == ("mail:r*",)


@pytest.mark.parametrize(
    ("setting", "kind", "ksi_settings"),
    [
        ("max_steps", "steps", ["completion.max_steps=3"]),
        ("max_tool_calls", "tool_calls", ["completion.max_tool_calls=3"]),
        ("max_turn_tokens", "tokens", ["completion.max_turn_tokens=40"]),
        ("max_turn_usd", "cost", ["completion.max_turn_usd=1.4"]),
        ("max_repeats", "repetition", ["completion.max_repeats=3"]),
    ],
)
async def test_a_turn_that_goes_on_and_on_is_ended(
    setting: str, kind: str, client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("look", "read_only", lambda call: "seen")
    script.say(*[calling(("look", "{}"))] * 20)

    result = await ended(client, (await ask(client, conversation_id="c"))["run_id"])
    after = await ended(client, (await ask(client, conversation_id="c"))["run_id"])

    assert result["status"] == "failed"
    assert result["error"]["details"] == {"kind": kind, "setting": f"completion.{setting}"}
    assert setting in result["error"]["message"]
    assert after["status"] in ("succeeded", "failed")
    assert_sane(script.calls[-1].messages)


async def test_a_turn_that_takes_too_long_is_ended(client: AsyncClient, script: Script) -> None:
    script.gate = asyncio.Event()
    script.say("one")

    result = await ended(client, (await ask(client, timeout_s=0.3))["run_id"])

    assert result["status"] == "failed"
    assert result["error"]["code"] == "timeout"
    assert result["error"]["details"]["kind"] == "wall_time"


async def test_an_answer_that_is_no_json_fails_a_turn_that_wants_json(
    client: AsyncClient, script: Script
) -> None:
    script.say('{"n": 1}', "one")
    schema = {"type": "object"}

    good = await ended(client, (await ask(client, output_schema=schema))["run_id"])
    bad = await ended(client, (await ask(client, output_schema=schema))["run_id"])

    assert good["output"] == {"n": 1}
    assert bad["status"] == "failed"
    assert bad["error"]["details"]["kind"] == "output"


# -- cancelling ---------------------------------------------------------------------------------


async def cancel(client: AsyncClient, run: str) -> Any:
    return await client.request("completion:cancel", {"run_id": run, "reason": "enough"})


async def test_a_turn_that_streams_is_cancelled_and_what_was_seen_stays(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("Good morning")
    accepted = await ask(client, conversation_id="c")
    await script.began.wait()

    answer = await cancel(client, accepted["run_id"])
    result = await ended(client, accepted["run_id"])
    script.gate.set()
    after = await ended(client, (await ask(client, "next", conversation_id="c"))["run_id"])

    assert answer["status"] == "cancelled"
    assert result["text"] == "Goo"
    assert result["error"] == {"code": "cancelled", "message": "enough"}
    assert after["status"] == "succeeded"
    assert words_of(script.calls[1].messages) == ["hello", "Goo", "next"]


async def test_a_turn_is_cancelled_before_its_model_has_said_anything(
    client: AsyncClient, script: Script
) -> None:
    asked, is_given_up = asyncio.Event(), asyncio.Event()

    async def ponder(call: ModelCall) -> AsyncIterator[ModelChunk]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_given_up.set()
        yield TextDelta("never")

    script.say(ponder)
    accepted = await ask(client, conversation_id="c")
    await asked.wait()

    answer = await cancel(client, accepted["run_id"])
    await is_given_up.wait()
    after = await ended(client, (await ask(client, "next", conversation_id="c"))["run_id"])

    assert answer["status"] == "cancelled"
    assert after["status"] == "succeeded"
    assert words_of(script.calls[1].messages) == ["hello", "next"]


async def test_a_turn_that_waits_is_cancelled_and_what_was_said_stays(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    first, second, third = [await ask(client, f"{n}", conversation_id="c") for n in range(3)]
    await script.began.wait()

    answer = await cancel(client, second["run_id"])
    script.gate.set()
    await ended(client, first["run_id"])
    await ended(client, third["run_id"])

    assert answer["status"] == "cancelled"
    assert words_of(script.calls[1].messages) == ["0", "seen 1", "1", "2"]


async def test_a_turn_is_cancelled_in_a_tool_and_its_calls_are_closed(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    begun = asyncio.Event()

    async def long(call: ToolCall) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    toolbox.add("long", "effectful", long)
    toolbox.add("send", "effectful", lambda call: "sent")
    script.say(calling(("send", "{}"), ("long", "{}"), ("send", "{}")))
    accepted = await ask(client, conversation_id="c")
    await begun.wait()

    answer = await cancel(client, accepted["run_id"])
    await ended(client, (await ask(client, conversation_id="c"))["run_id"])

    assert answer["status"] == "cancelled"
    assert len(toolbox.calls) == 2
    assert_sane(script.calls[-1].messages)
    sent, long_one, _ = [part.content for part in results_of(script.calls[-1].messages)]
    assert sent == "sent"
    assert "may have been done all the same" in long_one


async def test_cancelling_what_has_ended_changes_nothing(client: AsyncClient) -> None:
    accepted = await ask(client)
    await ended(client, accepted["run_id"])

    assert (await cancel(client, accepted["run_id"]))["status"] == "succeeded"
    with pytest.raises(NotFound):
        await cancel(client, "nothing")


async def test_a_run_that_is_cancelled_itself_ends_its_turn(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("Good morning")
    accepted = await ask(client, conversation_id="c")
    await script.began.wait()

    await client.request("workflow:cancel", {"run_id": accepted["run_id"]})
    script.gate.set()
    result = await ended(client, accepted["run_id"])

    assert result["status"] in ("cancelled", "succeeded")


async def held_up(client: AsyncClient, run: str) -> Any:
    """Wait until a turn is held up; return how it stands."""
    async for chunk in client.stream("completion:stream", {"run_id": run}):
        if chunk["kind"] == "status" and chunk["waits_for"] in ("retry", "circuit"):
            break
    return await client.request("completion:status", {"run_id": run})


async def test_the_status_tells_until_when_a_retry_waits(
    client: AsyncClient, script: Script
) -> None:
    script.say(Unavailable("it is away", retry_after_s=30.0))
    run = (await ask(client))["run_id"]

    turn = await held_up(client, run)
    await cancel(client, run)
    after = await client.request("completion:status", {"run_id": run})

    left = datetime.fromisoformat(turn["waits_until"]) - datetime.now(UTC)
    assert turn["waits_for"] == "retry: it is away"
    assert 20 < left.total_seconds() <= 30
    assert (after.get("waits_for"), after.get("waits_until")) == (None, None)


async def test_the_status_tells_of_an_open_circuit_until_the_model_says_something(
    client: AsyncClient, script: Script
) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    async def recover(call: ModelCall) -> AsyncIterator[ModelChunk]:
        yield ModelWaiting("circuit", "the provider has failed time and again")
        await gates[0].wait()
        yield TextDelta("Hello")
        await gates[1].wait()
        yield response((TextPart("Hello"),))

    script.say(recover)
    run = (await ask(client))["run_id"]

    turn = await held_up(client, run)
    gates[0].set()
    async for chunk in client.stream("completion:stream", {"run_id": run}):
        if chunk["kind"] == "text":
            break
    after = await client.request("completion:status", {"run_id": run})
    gates[1].set()
    await ended(client, run)

    assert turn["waits_for"] == "circuit: the provider has failed time and again"
    assert "waits_until" not in turn
    assert "waits_for" not in after


# -- people -------------------------------------------------------------------------------------


async def test_a_turn_waits_for_a_persons_answer(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("ask_user", "ask", lambda call: "")
    script.say(calling(("ask_user", '{"question": "Which?"}')), "the red one then")
    accepted = await ask(client)
    run = accepted["run_id"]
    turn = await paused(client, run)

    answered = await client.request("completion:answer", {"run_id": run, "content": "red"})
    result = await ended(client, run)

    assert turn["waits_for"] == "answer: Which?"
    assert answered["call_id"] == f"{run}:1:0"
    assert result["text"] == "the red one then"
    assert results_of(script.calls[1].messages)[0].content == "red"
    with pytest.raises(Conflict):
        await client.request("completion:answer", {"run_id": run, "content": "again"})


async def test_a_turn_that_waits_for_a_person_is_cancelled(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("ask_user", "ask", lambda call: "")
    script.say(calling(("ask_user", "{}")), "never")
    run = (await ask(client, conversation_id="c"))["run_id"]
    await paused(client, run)

    answer = await cancel(client, run)
    await ended(client, (await ask(client, conversation_id="c"))["run_id"])

    assert answer["status"] == "cancelled"
    assert_sane(script.calls[-1].messages)


@pytest.mark.parametrize("ksi_settings", [["completion.patience_s=0.2"]])
@pytest.mark.parametrize("error", [Unavailable, Busy])
async def test_a_turn_pauses_for_a_call_that_was_begun_and_of_which_nothing_is_known(
    client: AsyncClient,
    script: Script,
    toolbox: Toolbox,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Unavailable | Busy],
) -> None:
    monkeypatch.setattr(turns, "LOOK_AGAIN_S", (0.1, 0.2))
    is_back = asyncio.Event()

    def pay(call: ToolCall) -> str:
        if not is_back.is_set():
            kind = "begun" if error is Unavailable else "at_work"
            raise error("it has been begun", retry_after_s=0.05, details={"kind": kind})
        return "paid"

    toolbox.add("pay", "effectful", pay)
    script.say(calling(("pay", "{}")), "It is paid.")
    run = (await ask(client))["run_id"]
    async for chunk in client.stream("completion:stream", {"run_id": run}):
        if chunk["kind"] == "status" and chunk["message"] == "it has been begun":
            break

    turn = await client.request("completion:status", {"run_id": run})
    is_back.set()
    result = await ended(client, run)

    assert (turn["status"], turn["waits_for"]) == ("paused", "tool: it has been begun")
    assert result["text"] == "It is paid."
    assert {call.call_id for call in toolbox.calls} == {f"{run}:1:0"}
    assert results_of(script.calls[1].messages)[0].content == "paid"


async def test_what_is_said_to_a_turn_at_work_is_read_before_it_ends(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one", "two")
    accepted = await ask(client, conversation_id="c")
    await script.began.wait()

    said = {"conversation_id": "c", "prompt": "and mind the gap", "request_id": "i1"}
    injected = await client.request("completion:inject", said)
    again = await client.request("completion:inject", said)
    script.gate.set()
    result = await ended(client, accepted["run_id"])
    late = await client.request("completion:inject", {"conversation_id": "c", "prompt": "late"})

    assert injected == again
    assert injected["is_own_turn"] is False
    assert injected["run_id"] == accepted["run_id"]
    assert result["text"] == "two"
    assert words_of(script.calls[1].messages) == [
        "hello",
        "one",
        "and mind the gap",
    ]
    assert late["is_own_turn"] is True
    assert (await ended(client, late["run_id"]))["status"] == "succeeded"


# -- following ----------------------------------------------------------------------------------


async def test_a_stream_is_the_same_from_any_offset_while_it_runs_and_later(
    client: AsyncClient, script: Script, toolbox: Toolbox
) -> None:
    toolbox.add("look", "read_only", lambda call: "seen")
    script.say(calling(("look", "{}"), ("look", '{"a": 1}'), text="Let me see. "), "That is all.")
    first = await followed(client, {"start": {"prompt": "hi"}})
    run = first[0]["run_id"]
    whole = units_of(first)

    for offset in range(len(whole) + 1):
        chunks = await followed(client, {"run_id": run, "offset": offset})
        assert units_of(chunks) == whole[offset:], offset
        assert chunks[-1]["kind"] == "result"


async def test_who_joins_late_gets_what_was_said_before(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("Good morning")
    accepted = await ask(client)
    await script.began.wait()

    async with asyncio.TaskGroup() as together:
        tasks = [
            together.create_task(followed(client, {"run_id": accepted["run_id"], "offset": n}))
            for n in (0, 1, 2)
        ]
        await client.request("completion:status", {"run_id": accepted["run_id"]})
        script.gate.set()

    assert [text_of(task.result()) for task in tasks] == [
        "Good morning",
        "ood morning",
        "od morning",
    ]


async def test_a_turn_goes_on_when_its_follower_leaves(client: AsyncClient, script: Script) -> None:
    script.gate = asyncio.Event()
    script.say("Good morning")
    stream = client.stream("completion:stream", {"start": {"prompt": "hi"}})
    accepted = await anext(stream)
    await script.began.wait()
    await stream.aclose()
    script.gate.set()

    result = await ended(client, accepted["run_id"])

    assert result["text"] == "Good morning"


async def test_the_end_of_a_turn_is_published(client: AsyncClient, script: Script) -> None:
    results = await client.subscribe("completion:result")

    accepted = await ask(client)
    event = await anext(results)

    assert event.data["run_id"] == accepted["run_id"]
    assert event.data["status"] == "succeeded"
    assert event.context.conversation == accepted["conversation_id"]


async def test_turns_are_listed_page_by_page(client: AsyncClient) -> None:
    runs = [(await ask(client, conversation_id=f"c{n % 2}"))["run_id"] for n in range(5)]
    for run in runs:
        await ended(client, run)

    first = await client.request("completion:list", {"limit": 3})
    rest = await client.request("completion:list", {"limit": 3, "cursor": first["cursor"]})
    of_one = await client.request("completion:list", {"conversation_id": "c1"})

    assert [turn["run_id"] for turn in first["turns"] + rest["turns"]] == runs[::-1]
    assert rest.get("cursor") is None
    assert [turn["run_id"] for turn in of_one["turns"]] == [runs[3], runs[1]]
    with pytest.raises(InvalidData, match="cursor"):
        await client.request("completion:list", {"cursor": "nonsense"})


# -- whose --------------------------------------------------------------------------------------


async def test_turns_are_there_for_their_tenant_user_and_agent_alone(client: AsyncClient) -> None:
    ann = {"user": "ann", "agent": "helper"}
    request = {"prompt": "secret", "conversation_id": "c"}
    accepted = await client.request("completion:async", request, context=ann)
    run = accepted["run_id"]
    await client.request("completion:wait", {"run_id": run}, context=ann)

    for other in ({"user": "bob"}, {"tenant": "b"}, {"user": "ann", "agent": "other"}):
        for event in ("status", "wait", "cancel"):
            with pytest.raises(NotFound):
                await client.request(f"completion:{event}", {"run_id": run}, context=other)
        listed = await client.request("completion:list", {}, context=other)
        assert listed["turns"] == []
    with pytest.raises(NotFound):
        await client.request("completion:async", request, context={"user": "bob"})


async def test_turns_wait_for_one_another_only_so_deep(client: AsyncClient) -> None:
    run: str | None = None
    for _ in range(6):
        context = {} if run is None else {"run": run}
        accepted = await client.request("completion:async", {"prompt": "go"}, context=context)
        run = accepted["run_id"]

    with pytest.raises(Busy, match="max_depth"):
        await client.request("completion:async", {"prompt": "go"}, context={"run": run})


async def test_what_another_tenant_asks_is_answered_in_its_name(
    client: AsyncClient, script: Script
) -> None:
    context = {"tenant": "b", "user": "ann"}
    accepted = await client.request("completion:async", {"prompt": "hi"}, context=context)
    data = {"run_id": accepted["run_id"]}
    result = await client.request("completion:wait", data, context=context)

    assert result["status"] == "succeeded"
    assert (script.contexts[0].tenant, script.contexts[0].user) == ("b", "ann")
    assert accepted["run_id"].startswith("b:")


async def test_instructions_are_told_after_the_system_prompt_in_their_turn_alone(
    client: AsyncClient, script: Script
) -> None:
    first = {"conversation_id": "c", "system": "Be kind.", "instructions": "Answer in verse."}
    for more in (first, {"conversation_id": "c"}, {"instructions": "Be short."}):
        await ended(client, (await ask(client, **more))["run_id"])

    told = [call.system for call in script.calls]
    assert told == ["Be kind.\n\nAnswer in verse.", "Be kind.", "Be short."]

"""Turns: accepted, had, followed and ended, with a model and tools that do as they are told."""

from typing import Any

from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script, Toolbox, calling


async def ask(client: AsyncClient, prompt: str = "hello", **more: Any) -> Any:
    """Have a turn accepted."""
    return await client.request("completion:async", {"prompt": prompt, **more})


async def ended(client: AsyncClient, run: str, timeout_s: float = 20.0) -> Any:
    """Wait for a turn's end."""
    return await client.request("completion:wait", {"run_id": run, "timeout_s": timeout_s})


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

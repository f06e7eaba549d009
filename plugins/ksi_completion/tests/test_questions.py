"""What turns ask people, in the ledger of the real tools."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_client import AsyncClient, Conflict, InvalidData
from ksi_completion.tests.doubles import Script, calling
from ksi_completion.tests.test_turns import ask, assert_sane, cancel, ended, paused
from ksi_daemon.daemon import Daemon
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_models.events import ToolResultPart
from ksi_postgres.database import Database
from ksi_tools.api import Question, ToolContext, Tools, tool

NEEDED = ("postgres", "workflows", "tools", "completion")
ASKS = calling(("ask_user", '{"question": "Which?"}'))


@tool(effects="effectful", timeout_s=0.05)
async def lamp() -> str:
    """Switch the lamp, which takes too long."""
    await asyncio.Event().wait()
    return "never"


@tool(effects="effectful")
async def paint(context: ToolContext) -> str:
    """Paint the wall, in the colour that somebody wants."""
    if context.answer is None:
        raise Question("Which colour?")
    return f"{context.answer}, at the attempt {context.attempt}"


@hookimpl
def info() -> PluginInfo:
    return PluginInfo(requires=("tools",))


@hookimpl
async def lifespan(plugin: Plugin) -> AsyncIterator[None]:
    with plugin.service(Tools).add(lamp, paint, provider=plugin.name):
        yield


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    installed = installed_plugins(*NEEDED)
    lamps = module_plugin("lamps", ksi_plugin=info, ksi_lifespan=lifespan)
    return [*installed, script.plugin(), lamps]


async def open_calls(client: AsyncClient) -> list[Any]:
    return [
        call
        for call in (await client.request("tool:calls", {"limit": 100}))["calls"]
        if call["status"] == "waiting"
    ]


async def test_the_question_of_a_turn_that_is_cancelled_is_dropped_with_it(
    client: AsyncClient, script: Script
) -> None:
    script.say(ASKS)
    run = (await ask(client))["run_id"]
    await paused(client, run)
    before = await open_calls(client)

    await cancel(client, run)
    await ended(client, run)

    assert [call["run_id"] for call in before] == [run]
    assert await open_calls(client) == []
    answer = {"call_id": before[0]["call_id"], "content": "red"}
    with pytest.raises(Conflict, match="dropped"):
        await client.request("tool:answer", answer)


async def test_a_question_that_came_after_its_turn_s_end_is_dropped_by_the_sweep(
    client: AsyncClient, script: Script, daemon: Daemon
) -> None:
    script.say(ASKS, ASKS)
    cancelled, waiting = [(await ask(client))["run_id"] for _ in range(2)]
    for run in (cancelled, waiting):
        await paused(client, run)
    await cancel(client, cancelled)
    database = daemon._services[Database]
    assert isinstance(database, Database)
    async with database.transaction(tenant="default") as connection:
        await connection.execute(
            "UPDATE ksi_tools.call SET status = 'waiting' WHERE run = $1", cancelled
        )

    await database.execute("SELECT ksi_completion.drop_questions()")

    assert [call["run_id"] for call in await open_calls(client)] == [waiting]


async def test_a_turn_that_waits_for_a_decision_is_cancelled_and_the_doubt_stays(
    client: AsyncClient, script: Script
) -> None:
    script.say(calling(("lamp", "{}")))
    run = (await ask(client, tools=["lamp"], conversation_id="c"))["run_id"]
    turn = await paused(client, run)

    answer = await cancel(client, run)
    await ended(client, (await ask(client, conversation_id="c"))["run_id"])
    (doubt,) = (await client.request("tool:in_doubt", {}))["calls"]
    verdict = {"call_id": doubt["call_id"], "verdict": "done"}
    resolved = await client.request("tool:resolve", verdict)

    assert turn["waits_for"].startswith("decision: ")
    assert answer["status"] == "cancelled"
    assert doubt["run_id"] == run
    assert_sane(script.calls[-1].messages)
    assert resolved["status"] == "done"


async def test_a_turn_waits_for_what_a_tool_asks_before_it_goes_on(
    client: AsyncClient, script: Script
) -> None:
    script.say(calling(("paint", "{}")), "painted")
    run = (await ask(client, tools=["paint"], conversation_id="c"))["run_id"]
    turn = await paused(client, run)

    await client.request("completion:answer", {"run_id": run, "content": "red"})
    result = await ended(client, run)

    assert turn["waits_for"] == "answer: Which colour?"
    assert result["text"] == "painted"
    assert [each.content for each in parts_of(script, ToolResultPart)] == ["red, at the attempt 2"]
    assert_sane(script.calls[-1].messages)


PICK = {
    "name": "pick_colour",
    "description": "Have the person pick a colour on the page.",
    "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
}


async def test_a_tool_of_the_client_s_is_offered_and_its_call_waits_for_what_the_client_says(
    client: AsyncClient, script: Script
) -> None:
    script.say(calling(("pick_colour", '{"of": "sky"}'), ("pick_colour", '{"of": "sea"}')), "fine")
    run = (await ask(client, client_tools=[PICK], tools=["current_time"]))["run_id"]

    waited, answers = [], {f"{run}:1:0": "blue", f"{run}:1:1": "green"}
    async for chunk in client.stream("completion:stream", {"run_id": run}):
        if chunk["kind"] == "status" and chunk["waits_for"] == "answer":
            waited.append(chunk["message"])
            answer = {"call_id": chunk["call_id"], "content": answers[chunk["call_id"]]}
            await client.request("tool:answer", answer)
    result = await ended(client, run)

    assert waited == ["pick_colour", "pick_colour"]
    assert [each.name for each in script.calls[0].tools] == ["current_time", "pick_colour"]
    assert script.calls[0].tools[1].parameters == PICK["parameters"]
    assert result["text"] == "fine"
    told = [part.content for part in parts_of(script, ToolResultPart)]
    assert told == ["blue", "green"]
    assert_sane(script.calls[-1].messages)


async def test_no_model_is_offered_what_stands_for_the_tools_of_clients(
    client: AsyncClient, script: Script
) -> None:
    await ended(client, (await ask(client))["run_id"])

    assert [each.name for each in script.calls[0].tools] == ["ask_user", "current_time"]


async def test_a_tool_of_the_client_s_can_t_take_the_name_of_one_of_the_daemon_s(
    client: AsyncClient, script: Script
) -> None:
    run = (await ask(client, client_tools=[{**PICK, "name": "current_time"}]))["run_id"]

    result = await ended(client, run)

    assert script.calls == []
    assert result["error"]["code"] == "conflict"
    assert "current_time" in result["error"]["message"]


NO_TOOLS: list[tuple[list[Any], str]] = [
    ([{**PICK, "name": "pick colour"}], "a tool's name has letters"),
    ([{**PICK, "name": "pick\n"}], "a tool's name has letters"),
    ([PICK, PICK], "two tools pick_colour"),
    ([{**PICK, "description": "x" * 300_000}], "come to more than 262,144 bytes"),
    ([{"name": "pick"}], "description"),
]


async def test_tools_of_a_client_that_no_model_could_be_offered_are_refused(
    client: AsyncClient,
) -> None:
    for tools, told in NO_TOOLS:
        with pytest.raises(InvalidData, match=told):
            await ask(client, client_tools=tools)


def parts_of(script: Script, kind: type[Any]) -> list[Any]:
    """Return the parts of a kind that the model was shown last."""
    messages = script.calls[-1].messages
    return [part for each in messages for part in each.parts if isinstance(part, kind)]

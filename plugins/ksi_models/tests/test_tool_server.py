"""The desk where results lie that a process waits for."""

import asyncio

import pytest

from ksi_models.events import ToolCallPart, ToolResultPart
from ksi_models.providers.tool_server import MAX_WAITING, AskedCall, Desk

CALLS = (
    ToolCallPart("a", "pay", '{"what": "bread", "n": 1}'),
    ToolCallPart("b", "pay", '{"n": 1, "what": "bread"}'),
    ToolCallPart("c", "look", "{}"),
)
RESULTS = {call.id: ToolResultPart(call.id, call.name, f"result {call.id}") for call in CALLS}
BREAD = {"what": "bread", "n": 1}


def asked(name: str, call_id: str | None = None, **arguments: object) -> AskedCall:
    return AskedCall(id=call_id, name=name, arguments=dict(arguments))


async def test_a_call_waits_for_its_result_whichever_of_the_two_comes_first() -> None:
    desk = Desk()
    async with asyncio.TaskGroup() as tasks:
        early = tasks.create_task(desk.result_of(asked("look", "c")))
        await asyncio.sleep(0)
        assert not early.done()
        desk.give(CALLS, RESULTS)

    assert early.result().content == "result c"
    assert (await desk.result_of(asked("pay", "a", **BREAD))).content == "result a"


async def test_without_ids_calls_that_are_alike_get_their_results_in_order() -> None:
    desk = Desk()
    desk.give(CALLS, RESULTS)

    results = [await desk.result_of(asked("pay", None, **BREAD)) for _ in range(2)]

    assert [result.content for result in results] == ["result a", "result b"]


async def test_a_result_is_given_once() -> None:
    desk = Desk()
    desk.give(CALLS, RESULTS)
    await desk.result_of(asked("look", "c"))

    again = await desk.result_of(asked("look", "c"))

    assert again.is_error
    assert "given already" in again.content


@pytest.mark.parametrize(
    "other", [asked("pay", "x"), asked("pay", None, what="wine"), asked("look", "a")]
)
async def test_a_call_that_the_model_has_not_asked_for_is_refused(other: AskedCall) -> None:
    desk = Desk()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(desk.result_of(other))
        await asyncio.sleep(0)
        desk.give(CALLS, RESULTS)

    assert waiting.result().is_error
    assert "none that the model has asked for" in waiting.result().content


async def test_at_the_end_nobody_waits_any_more() -> None:
    desk = Desk()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(desk.result_of(asked("look", "c")))
        await asyncio.sleep(0)
        desk.close()

    assert "has ended" in waiting.result().content


async def test_no_more_wait_than_there_is_room_for() -> None:
    desk = Desk()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(MAX_WAITING):
            tasks.create_task(desk.result_of(asked("look", "c")))
        await asyncio.sleep(0)

        refused = await desk.result_of(asked("look", "c"))
        desk.close()

    assert refused.is_error
    assert str(MAX_WAITING) in refused.content

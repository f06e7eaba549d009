"""Orchestrations with a daemon: members take turns, and what they said is kept."""

import asyncio
from typing import Any

import pytest

from ksi_client import AsyncClient, Conflict, Denied, InvalidData, NotFound
from ksi_orchestration.tests.doubles import Ensemble
from ksi_orchestration.tests.helpers import (
    CHORUS,
    change,
    ended,
    spoken,
    start,
    state,
)


async def steps_of(client: AsyncClient, run: str) -> list[str]:
    """Return the names of the steps that a run has done."""
    return [
        each["name"] for each in (await client.request("workflow:steps", {"run_id": run}))["steps"]
    ]


async def test_members_speak_in_turn_and_each_hears_the_others(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    ensemble.lines("ann", "It pours.", "It stopped.")

    told = await ended(client, await start(client, id="rain"))

    it = told["orchestration"]
    assert (it["status"], it["reason"], it["turns"]) == ("succeeded", "done", 4)
    assert await spoken(client, "rain") == [
        ("ann", "It pours."),
        ("bob", "bob says 1"),
        ("ann", "It stopped."),
        ("bob", "bob says 2"),
    ]
    assert "Rain" in ensemble.prompts("ann")[0]
    assert "It pours." in ensemble.prompts("bob")[0]
    assert "bob says 1" in ensemble.prompts("ann")[1]
    assert "It pours." not in ensemble.prompts("bob")[1]
    assert (it["tokens"], it["cost_usd"]) == (60, 0.004)
    assert [m["turns"] for m in told["members"]] == [2, 2]
    assert told["members"][0]["conversation_id"] == "orchestration:rain:ann"


async def test_members_of_a_parallel_stage_work_at_once(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    gates = [ensemble.hold(member) for member in ("ann", "bob", "eve")]

    which = await start(client, CHORUS)
    for member in ("ann", "bob", "eve"):
        await ensemble.until_asked(member)
    for gate in gates:
        gate.set()
    told = await ended(client, which)

    assert told["orchestration"]["result"] == "ann says 2"
    heard = ensemble.prompts("ann")[1]
    assert heard.index("ann says 1") < heard.index("bob says 1") < heard.index("eve says 1")


async def test_starting_twice_is_starting_once_and_lists_have_pages(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    first = await start(client, id="once")
    second = await start(client, id="once")
    await ended(client, "once")
    third = await start(client, id="once")

    assert {first, second, third} == {"once"}
    assert len(ensemble.asked) == 4
    with pytest.raises(Conflict, match="once is that of another"):
        await start(client, id="once", rounds=3)

    made = [await start(client, id=f"o{number}", rounds=1) for number in range(2)]
    for which in made:
        await ended(client, which)

    first = await client.request("orchestration:list", {"limit": 2})
    rest = await client.request("orchestration:list", {"limit": 2, "cursor": first["cursor"]})
    none = await client.request("orchestration:list", {"status": ["running"]})

    assert [each["id"] for each in first["orchestrations"]] == ["o1", "o0"]
    assert [each["id"] for each in rest["orchestrations"]] == ["once"]
    assert none["orchestrations"] == []
    with pytest.raises(InvalidData, match="no cursor"):
        await client.request("orchestration:list", {"cursor": "x"})


async def test_what_could_not_be_worked_on_is_refused_before_anything_is_recorded(
    client: AsyncClient, ensemble: Ensemble, connect: Any
) -> None:
    ensemble.unknown.add("nosuch:model")

    with pytest.raises(InvalidData, match="did you mean critic"):
        await start(client, agents=["general", "critik"])
    with pytest.raises(InvalidData, match="nosuch:model"):
        await start(client, models=["nosuch:model"])
    with pytest.raises(NotFound, match="debate"):
        await client.request("orchestration:start", {"topic": "x", "pattern": "debat"})
    with pytest.raises(InvalidData, match="either"):
        await client.request("orchestration:start", {"topic": "x"})

    data = {"name": "bot", "grants": {"call": ["orchestration:*"]}, "ttl_s": 60, "agent": "bot"}
    bot = await connect(token=(await client.request("token:create", data))["token"])

    with pytest.raises(Denied, match="token of the agent bot"):
        await start(bot)
    for what in ("status", "transcript", "pause", "resume", "stop"):
        with pytest.raises(NotFound, match="there is no orchestration gone"):
            await change(client, what, "gone")

    listed = await client.request("orchestration:list")
    assert listed["orchestrations"] == []


async def test_it_pauses_after_the_turn_that_runs_and_goes_on_where_it_was(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    gate = ensemble.hold("ann")
    which = await start(client)
    await ensemble.until_asked("ann")

    paused = await change(client, "pause", which)
    again = await change(client, "pause", which)
    gate.set()
    run = paused["run_id"]
    async with asyncio.timeout(20):
        while (await steps_of(client, run)).count("advance") < 2:
            pass  # the second says that it waits
    during = await state(client, which)
    resumed = await change(client, "resume", which)
    told = await ended(client, which)
    await client.request("workflow:result", {"run_id": run})
    steps = await steps_of(client, run)

    assert [each["status"] for each in (paused, again, during)] == ["paused"] * 3
    assert during["turns"] == 1
    assert resumed["status"] == "running"
    assert told["orchestration"]["status"] == "succeeded"
    assert ensemble.order() == ["ann", "bob", "ann", "bob"]
    assert steps.count("receive orders") == 1  # it waited, and did not look again and again
    assert steps.count("advance") == 7


async def test_stopping_twice_is_stopping_once_and_ends_the_turn_that_runs(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    ensemble.hold("bob")
    which = await start(client)
    await ensemble.until_asked("bob")

    first = await change(client, "stop", which, reason="enough")
    second = await change(client, "stop", which)
    turns = (await client.request("completion:list"))["turns"]

    assert first["status"] == second["status"] == "stopped"
    assert first["ended_at"] == second["ended_at"]
    assert first["result"] == "ann says 1"
    assert first["error"]["message"] == "enough"
    assert [each["status"] for each in turns] == ["cancelled", "succeeded"]
    assert await spoken(client, which) == [("ann", "ann says 1")]
    for what in ("pause", "resume"):
        with pytest.raises(Conflict, match=r"has ended \(stopped"):
            await change(client, what, which)
    with pytest.raises(Conflict, match="has ended"):
        await change(client, "message", which, text="Wait!")

    ensemble.gates.clear()
    which = await start(client, rounds=1)
    await ended(client, which)
    stopped = await change(client, "stop", which)

    assert (stopped["status"], stopped["reason"]) == ("succeeded", "done")


async def test_a_person_is_heard_by_those_it_is_said_to_once(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    gate = ensemble.hold("ann")
    which = await start(client, rounds=3)
    await ensemble.until_asked("ann")

    words = {"text": "Think of the snow.", "to": ["bob"], "message_id": "m1"}
    first = await change(client, "message", which, **words)
    again = await change(client, "message", which, **words)
    gate.set()
    await ended(client, which)

    assert first == again
    assert (first["member"], first["to"]) == ("person", ["bob"])
    assert [("snow" in prompt) for prompt in ensemble.prompts("bob")] == [True, False, False]
    assert not any("snow" in prompt for prompt in ensemble.prompts("ann"))
    with pytest.raises(Conflict, match="m1"):
        await change(client, "message", which, text="Else.", message_id="m1")
    with pytest.raises(InvalidData, match="bob"):
        await change(client, "message", which, text="Hm", to=["bobb"])


async def test_it_is_followed_from_any_number_on_until_its_end(
    client: AsyncClient, ensemble: Ensemble
) -> None:
    gate = ensemble.hold("bob")
    which = await start(client)
    chunks: list[Any] = []

    async for chunk in client.stream("orchestration:follow", {"id": which}):
        chunks.append(chunk)
        if chunk["kind"] == "turn" and chunk["member"] == "bob":
            gate.set()
    later = [c async for c in client.stream("orchestration:follow", {"id": which, "after": 3})]

    kinds = [(chunk["kind"], chunk.get("member")) for chunk in chunks]
    assert kinds.index(("turn", "bob")) < kinds.index(("utterance", "bob"))
    assert [chunk["number"] for chunk in chunks if chunk["kind"] == "utterance"] == [1, 2, 3, 4]
    assert chunks[-1]["orchestration"]["status"] == "succeeded"
    assert [chunk["kind"] for chunk in later] == ["utterance", "status"]

"""What a person says: the answer to a question, and what became of a call in doubt."""

import asyncio
from typing import Any

import pytest

from ksi_client import AsyncClient, Conflict, Denied, InvalidData, NotFound
from ksi_daemon.bus import Bus
from ksi_daemon.protocol import TimedOut as NobodyKnows
from ksi_tools.api import tool
from ksi_tools.tests.conftest import Run
from ksi_workflows.api import current_run, receive, step, workflow

OPEN = ("waiting", "in_doubt")


class World:
    """Something that tools have effects on, and whose other side does not always answer."""

    def __init__(self) -> None:
        self.effects: list[str] = []

    @tool(effects="effectful")
    async def strike(self, what: str) -> str:
        """Strike something; the first time, nobody knows."""
        self.effects.append(what)
        if len(self.effects) == 1:
            raise NobodyKnows("the other side did not answer")
        return f"struck {what}"


class Asking:
    """A workflow that calls a tool, and waits for a person where it must."""

    def __init__(self) -> None:
        self.bus: Bus | None = None

        @step(name="act")
        async def act(name: str, arguments: dict[str, Any], call_id: str) -> Any:
            assert self.bus is not None
            request = {"name": name, "arguments": arguments, "call_id": call_id}
            answer = await self.bus.request("tool:call", request)
            return {"status": answer.status, "content": answer.content}

        @workflow("asking")
        async def asking(args: dict[str, Any]) -> Any:
            call_id = f"{current_run().id}:1:0"
            while True:
                answer = await act(args["name"], args["arguments"], call_id)
                if answer["status"] not in OPEN:
                    return answer
                await receive(f"tool:{call_id}")

        self.workflows = (asking,)


async def call(client: AsyncClient, name: str, call_id: str, **arguments: Any) -> Any:
    request = {"name": name, "arguments": arguments, "call_id": call_id}
    return await client.request("tool:call", request)


async def test_a_question_waits_for_a_person_and_outlives_the_daemon(run: Run) -> None:
    question = {"question": "Which one?", "choices": ["red", "blue"]}
    async with run() as client:
        doubted = await client.subscribe("tool:doubted")
        asked = await call(client, "ask_user", "c1", **question)
        told = (await anext(aiter(doubted))).data
        again = await call(client, "ask_user", "c1", **question)

    async with run() as client:
        waiting = await client.request("tool:calls", {"status": "waiting"})
        settled = await client.subscribe("tool:settled")
        answered = await client.request("tool:answer", {"call_id": "c1", "content": "red"})
        seen = (await anext(aiter(settled))).data
        after = await call(client, "ask_user", "c1", **question)

    assert asked["status"] == again["status"] == told["status"] == "waiting"
    assert asked["content"] == again["content"] == "Which one?\n- red\n- blue"
    assert [each["arguments"] for each in waiting["calls"]] == [question]
    assert answered == {"call_id": "c1", "status": "done"}
    assert (seen["call_id"], seen["status"]) == ("c1", "done")
    assert after["status"] == "done"
    assert after["content"] == "red"


async def test_one_call_in_doubt_is_counted_as_one(run: Run) -> None:
    async with run(World()) as client:
        doubted = await call(client, "strike", "c1", what="a")
        health = await client.request("health:check")

    assert doubted["status"] == "in_doubt"
    assert "1 call is in doubt" in str(health)


async def test_a_run_goes_on_when_its_question_is_answered(run: Run) -> None:
    asking = Asking()
    async with run(asking) as client:
        request = {"name": "ask_user", "arguments": {"question": "Well?"}}
        started = {"name": "asking", "args": request, "id": "r1"}
        doubted = await client.subscribe("tool:doubted")
        await client.request("workflow:start", started)
        told = (await anext(aiter(doubted))).data
        await client.request("tool:answer", {"call_id": told["call_id"], "content": "yes"})
        outcome = await client.request("workflow:result", {"run_id": "r1"})

    assert told["run_id"] == "r1"
    assert outcome["output"] == {"status": "done", "content": "yes"}


@pytest.mark.parametrize(
    ("verdict", "status", "content", "effects"),
    [
        ("done", "done", "it was struck", ["a"]),
        ("redo", "done", "struck a", ["a", "a"]),
        ("drop", "dropped", "A person has dropped this call", ["a"]),
    ],
)
async def test_a_run_goes_on_when_a_doubt_of_its_is_resolved(
    run: Run, verdict: str, status: str, content: str, effects: list[str]
) -> None:
    asking, world = Asking(), World()
    async with run(asking, world) as client:
        args = {"name": "strike", "arguments": {"what": "a"}}
        doubted = await client.subscribe("tool:doubted")
        await client.request("workflow:start", {"name": "asking", "args": args, "id": "r1"})
        told = (await anext(aiter(doubted))).data
        said = {"call_id": told["call_id"], "verdict": verdict}
        if verdict == "done":
            said["content"] = content
        resolved = await client.request("tool:resolve", said)
        outcome = await client.request("workflow:result", {"run_id": "r1"})

    assert resolved["status"] == ("running" if verdict == "redo" else status)
    assert outcome["output"]["status"] == status
    assert outcome["output"]["content"].startswith(content)
    assert world.effects == effects


async def test_a_run_that_could_not_be_told_at_once_is_told_by_the_sweep(run: Run) -> None:
    asking = Asking()
    async with run(asking, settings=("tools.sweep_interval_s=0.1",)) as client:
        daemon: Any = client.daemon
        request = {"name": "ask_user", "arguments": {"question": "Well?"}}
        doubted = await client.subscribe("tool:doubted")
        await client.request("workflow:start", {"name": "asking", "args": request, "id": "r1"})
        call_id = (await anext(aiter(doubted))).data["call_id"]
        daemon.router.set_reason("workflows", "is being restarted")
        await client.request("tool:answer", {"call_id": call_id, "content": "yes"})
        daemon.router.set_reason("workflows", None)
        outcome = await client.request("workflow:result", {"run_id": "r1"})

    assert outcome["output"]["content"] == "yes"


async def test_what_is_said_twice_is_said_once(run: Run) -> None:
    world = World()
    async with run(world) as client:
        await call(client, "strike", "c1", what="a")
        said = {"call_id": "c1", "verdict": "done", "content": "x"}
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(client.request("tool:resolve", said)) for _ in range(3)]
        assert {each.result()["status"] for each in asked} == {"done"}

        with pytest.raises(Conflict, match="it is done") as caught:
            await client.request("tool:resolve", {"call_id": "c1", "verdict": "redo"})
        assert caught.value.details == {"status": "done"}
        with pytest.raises(Conflict, match="not waiting"):
            await client.request("tool:answer", {"call_id": "c1", "content": "y"})
        with pytest.raises(NotFound):
            await client.request("tool:answer", {"call_id": "c9", "content": "y"})

    assert world.effects == ["a"]


async def test_a_question_that_nobody_will_answer_can_be_dropped(run: Run) -> None:
    async with run() as client:
        await call(client, "ask_user", "c1", question="Well?")
        with pytest.raises(Conflict, match="not in_doubt"):
            await client.request("tool:resolve", {"call_id": "c1", "verdict": "redo"})
        dropped = await client.request("tool:resolve", {"call_id": "c1", "verdict": "drop"})
        after = await call(client, "ask_user", "c1", question="Well?")

    assert dropped["status"] == after["status"] == "dropped"


async def test_what_is_said_is_checked(run: Run) -> None:
    world = World()
    async with run(world, settings=("tools.max_content_chars=200",)) as client:
        await call(client, "strike", "c1", what="a")
        long = {"call_id": "c1", "verdict": "done", "content": "x" * 201}
        with pytest.raises(InvalidData, match=r"tools\.max_content_chars"):
            await client.request("tool:resolve", long)
        misplaced = {"call_id": "c1", "verdict": "redo", "content": "x"}
        with pytest.raises(InvalidData, match="redo"):
            await client.request("tool:resolve", misplaced)
        strange = {"call_id": "c1", "verdict": "done", "content": "a\x00b"}
        await client.request("tool:resolve", strange)
        assert (await call(client, "strike", "c1", what="a"))["content"] == "a\ufffdb"


async def test_no_agent_says_what_became_of_a_call_and_nobody_says_it_of_anothers(
    run: Run,
) -> None:
    async with run() as client:
        asked = {"name": "ask_user", "arguments": {"question": "?"}, "call_id": "c1"}
        await client.request("tool:call", asked, context={"conversation": "mine"})
        answer = {"call_id": "c1", "content": "yes"}

        with pytest.raises(Denied, match="no agent"):
            await client.request("tool:answer", answer, context={"agent": "a"})
        with pytest.raises(Denied, match="no agent"):
            await client.request("tool:answer", answer, context={"run": "r"})
        for other in ({"conversation": "other"}, {"tenant": "other"}):
            with pytest.raises(NotFound):
                await client.request("tool:answer", answer, context=other)
            listed = await client.request("tool:calls", {}, context=other)
            assert listed["calls"] == []
        with pytest.raises(Denied, match="another conversation"):
            await client.request(
                "tool:calls", {"conversation_id": "mine"}, context={"conversation": "other"}
            )

        await client.request("tool:answer", answer, context={"conversation": "mine"})

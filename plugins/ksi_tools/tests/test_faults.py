"""A store that goes away amid calls, and daemons that stop in good order."""

import asyncio
from typing import Any

import pytest

from ksi_client import Unavailable
from ksi_daemon.protocol import Unavailable as Away
from ksi_postgres.database import Database
from ksi_tools.store import SQL
from ksi_tools.tests.conftest import Run
from ksi_tools.tests.test_calls import World, call
from ksi_tools.tests.test_settling import Asking

TIMES = 3


class Outage:
    """Breaks connections: before a query reaches Postgres, or after, when its answer gets lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, query: str, *, is_done: bool) -> None:
        self.left = TIMES
        fetch = Database.fetch

        async def broken(database: Database, sql: str, *arguments: Any, **options: Any) -> Any:
            if sql != SQL[query] or not self.left:
                return await fetch(database, sql, *arguments, **options)
            self.left -= 1
            if is_done:
                await fetch(database, sql, *arguments, **options)
            raise Away("the connection was lost")

        monkeypatch.setattr(Database, "fetch", broken)


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("query", ["begin", "end"])
async def test_a_call_is_made_once_and_recorded_although_the_connection_breaks(
    run: Run, monkeypatch: pytest.MonkeyPatch, query: str, is_done: bool
) -> None:
    world = World()
    async with run(world) as client:
        outage = Outage(monkeypatch, query, is_done=is_done)
        answer = await call(client, "strike", "c1", what="a")
        listed = await client.request("tool:calls", {})

    assert outage.left == 0
    assert answer["status"] == "done"
    assert world.effects == ["a"]
    assert [each["status"] for each in listed["calls"]] == ["done"]


async def test_no_call_is_begun_while_postgres_is_away(run: Run) -> None:
    world = World()
    async with run(world) as client:
        daemon: Any = client.daemon
        database = daemon._services[Database]
        database.is_up = False
        with pytest.raises(Unavailable, match="Postgres is away"):
            await call(client, "strike", "c1", what="a")
        database.is_up = True
        assert (await call(client, "strike", "c1", what="a"))["status"] == "done"

    assert world.effects == ["a"]


async def test_a_call_of_a_run_may_end_while_the_daemon_stops(run: Run) -> None:
    asking, world = Asking(), World()
    async with run(asking, world) as client:
        daemon: Any = client.daemon
        args = {"name": "strike_slowly", "arguments": {"what": "a"}}
        await client.request("workflow:start", {"name": "asking", "args": args, "id": "r1"})
        await world.begun.wait()
        daemon.shutdown(0.0)
        await daemon.loader.stopping.wait()
        world.go_on.set()

    after = World()
    async with run(Asking(), after) as client:
        outcome = await client.request("workflow:result", {"run_id": "r1"})

    assert outcome["output"] == {"status": "done", "content": "struck a"}
    assert world.effects == ["a"]
    assert after.effects == []


async def test_a_call_that_does_not_end_while_the_daemon_stops_is_in_doubt(run: Run) -> None:
    asking, world = Asking(), World()
    async with run(asking, world, settings=("tools.stop_grace_s=0.1",)) as client:
        args = {"name": "strike_slowly", "arguments": {"what": "a"}}
        await client.request("workflow:start", {"name": "asking", "args": args, "id": "r1"})
        await world.begun.wait()

    async with run(Asking(), World()) as client:
        listed = await client.request("tool:in_doubt", {})
        said = {"call_id": "r1:1:0", "verdict": "done", "content": "it was"}
        await client.request("tool:resolve", said)
        outcome = await client.request("workflow:result", {"run_id": "r1"})

    assert [each["call_id"] for each in listed["calls"]] == ["r1:1:0"]
    assert "the daemon stopped" in listed["calls"][0]["why"]
    assert outcome["output"] == {"status": "done", "content": "it was"}
    assert world.effects == []


async def test_a_call_that_was_cancelled_before_it_began_is_made_when_asked_again(
    run: Run,
) -> None:
    world = World()
    async with run(world, settings=("tools.max_running=1",)) as client:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(call(client, "strike_slowly", "c1", what="a"))
            await world.begun.wait()
            second = tasks.create_task(call(client, "strike", "c2", what="b"))
            await client.request("tool:calls", {})  # by now the second has been taken
            second.cancel()
            await client.request("tool:calls", {})
            world.go_on.set()
            await first
        answer = await call(client, "strike", "c2", what="b")

    assert answer["content"] == "struck b"
    assert world.effects == ["a", "b"]

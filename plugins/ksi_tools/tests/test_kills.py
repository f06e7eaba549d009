"""kill -9 of daemons amid calls: no effect twice, and every doubt is listed."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, Busy, KsiError, Unavailable
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet

KILLS = int(os.environ.get("FAULT_KILLS", "5"))
PLUGINS = "daemon.plugins=system,postgres,workflows,tools,work"
LONG_S = 600.0  # longer than the test may take: the kill ends it


def lines(file: Path, kind: str) -> int:
    """Count what tools have left in a file."""
    found = file.read_text().splitlines() if file.exists() else []
    return sum(line.startswith(f"{kind} ") for line in found)


async def left(file: Path, kind: str, count: int = 1) -> None:
    """Wait until the tools have left that many lines."""
    while lines(file, kind) < count:  # noqa: ASYNC110  another process writes them
        await asyncio.sleep(0.002)


async def ask(client: AsyncClient, event: str, data: Any) -> Any:
    """Send an event until a daemon is there that can answer it."""
    while True:
        try:
            return await client.request(event, data)
        except (Unavailable, Busy) as error:
            await asyncio.sleep(error.retry_after_s or 0.1)


def strike(file: Path, call_id: str = "c1", name: str = "strike", **more: float) -> dict[str, Any]:
    return {"name": name, "call_id": call_id, "arguments": {"file": str(file), **more}}


@asynccontextmanager
async def killed_amid(
    fleet: Fleet, daemon: DaemonProcess, file: Path, *requests: dict[str, Any]
) -> AsyncIterator[AsyncClient]:
    """Call tools, kill their daemon once all have had their effect, and start that again."""
    await fleet.start(daemon)
    async with fleet.client(daemon) as client, asyncio.TaskGroup() as tasks:
        await ask(client, "tool:call", {"name": "current_time", "arguments": {}})
        calls = [tasks.create_task(quietly(client, request)) for request in requests]
        await left(file, "effect", len(requests))
        await asyncio.to_thread(daemon.kill)
        for each in calls:
            each.cancel()
    await fleet.start(daemon)
    async with fleet.client(daemon) as client:
        yield client
    daemon.stop()


VERDICTS = {
    "done": ("done", "it was struck", 1),
    "drop": ("dropped", "A person has dropped this call", 1),
    "redo": ("done", "struck in attempt 2", 2),
}


async def test_an_effect_whose_daemon_was_killed_is_in_doubt_until_a_person_says(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(database_logins, PLUGINS)
    requests = {verdict: strike(work, verdict, after_s=LONG_S) for verdict in VERDICTS}
    with fleet.daemon() as daemon:
        async with killed_amid(fleet, daemon, work, *requests.values()) as client:
            await fleet.until("SELECT bool_and(status = 'in_doubt') FROM ksi_tools.call "
                              "WHERE call_id = ANY ($1)", list(VERDICTS))  # fmt: skip
            listed = await ask(client, "tool:in_doubt", {})
            health = await client.request("health:check")
            doubted = [await ask(client, "tool:call", each) for each in requests.values()]
            assert {each["call_id"] for each in listed["calls"]} == set(VERDICTS)
            assert all("died" in each["why"] for each in listed["calls"])
            assert "3 calls are in doubt" in str(health)
            assert {each["status"] for each in doubted} == {"in_doubt"}
            assert lines(work, "begin") == 3

            for verdict, (status, content, effects) in VERDICTS.items():
                before = lines(work, "effect")
                said = {"call_id": verdict, "verdict": verdict}
                if verdict == "done":
                    said["content"] = content
                await client.request("tool:resolve", said)
                answer = await ask(client, "tool:call", requests[verdict])
                again = await ask(client, "tool:call", requests[verdict])

                assert answer["status"] == again["status"] == status
                assert answer["content"] == again["content"]
                assert answer["content"].startswith(content)
                assert lines(work, "effect") - before == effects - 1


async def test_what_may_be_repeated_is_repeated_after_a_kill(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(database_logins, PLUGINS)
    request = strike(work, name="set", after_s=LONG_S)
    with fleet.daemon() as daemon:
        async with killed_amid(fleet, daemon, work, request) as client:
            answer = await ask(client, "tool:call", request)
            listed = await ask(client, "tool:in_doubt", {})

    assert answer["status"] == "done"
    assert answer["content"] == "struck in attempt 2"
    assert answer["is_repeated"]
    assert listed["calls"] == []
    assert lines(work, "effect") == 2


async def test_another_daemon_puts_in_doubt_what_a_dead_one_left_and_waits_for_a_living_one(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(
        database_logins, PLUGINS, "workflows.takeover_after_s=2", "tools.sweep_interval_s=0.2"
    )
    request = strike(work, after_s=LONG_S)
    with fleet.daemon() as first, fleet.daemon() as second:
        await fleet.start(first)
        await fleet.start(second)
        async with fleet.client(first) as one, fleet.client(second) as two:
            doubted = await two.subscribe("tool:doubted")
            async with asyncio.TaskGroup() as tasks:
                await ask(one, "tool:call", {"name": "current_time", "arguments": {}})
                calling = tasks.create_task(quietly(one, request))
                await left(work, "effect")
                await ask(two, "tool:call", {"name": "current_time", "arguments": {}})
                with pytest.raises(Busy, match="another daemon") as busy:
                    await two.request("tool:call", request)
                assert busy.value.details == {"kind": "at_work"}
                await asyncio.to_thread(first.kill)
                calling.cancel()
            told = (await anext(aiter(doubted))).data
            answer = await ask(two, "tool:call", request)
        second.stop()

    assert told["call_id"] == "c1"
    assert answer["status"] == "in_doubt"
    assert lines(work, "begin") == 1


@pytest.mark.timeout(60 + 12 * KILLS)
async def test_no_effect_comes_twice_whenever_the_daemon_is_killed(
    work: Path, database_logins: Logins
) -> None:
    fleet = Fleet(database_logins, PLUGINS)
    with fleet.daemon() as daemon:
        for kill in range(KILLS):
            await fleet.start(daemon)
            async with fleet.client(daemon) as client:
                await ask(client, "tool:call", {"name": "current_time", "arguments": {}})
                async with asyncio.TaskGroup() as tasks:
                    calls = [
                        tasks.create_task(quietly(client, strike(work, f"{kill}-{number}")))
                        for number in range(40)
                    ]
                    await left(work, "begin", lines(work, "begin") + random.randrange(1, 30))
                    await asyncio.sleep(random.uniform(0.0, 0.01))  # the moment is what is tested
                    await asyncio.to_thread(daemon.kill)
                    for each in calls:
                        each.cancel()
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            answers = [
                await ask(client, "tool:call", strike(work, f"{kill}-{number}"))
                for kill in range(KILLS)
                for number in range(40)
            ]
            listed = await ask(client, "tool:in_doubt", {"limit": 1000})
        daemon.stop()

    statuses = [each["status"] for each in answers]
    doubted = {each["call_id"] for each in answers if each["status"] == "in_doubt"}
    assert set(statuses) <= {"done", "in_doubt"}
    assert doubted == {each["call_id"] for each in listed["calls"]}
    assert statuses.count("done") <= lines(work, "effect") <= len(answers)
    assert lines(work, "begin") <= len(answers)  # none was begun twice


async def quietly(client: AsyncClient, request: dict[str, Any]) -> None:
    with contextlib.suppress(KsiError):
        await client.request("tool:call", request)

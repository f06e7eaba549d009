"""kill -9 of the daemon while several agents work: it goes on where it was, and repeats no turn."""

import asyncio
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from ksi_client import AsyncClient, Busy, Unavailable
from ksi_daemon.testing import DaemonProcess
from ksi_orchestration.tests.helpers import CHORUS, TALK
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet

KILLS = int(os.environ.get("FAULT_KILLS", "3"))
LONGEST_S = 0.5  # about what two turns take
SETTINGS = (
    "daemon.plugins=system,postgres,workflows,models,tools,completion,agents,orchestration",
    "models.model=test/lorem-8-20ms",
    "models.find_local=false",
    "models.keyring=false",
    "workflows.max_recovery_attempts=100",
)
PATIENT = "workflows.takeover_after_s=4"  # a daemon that is only slow is not to lose its runs
ENDED = ("succeeded", "failed", "stopped")
CHAT = TALK.replace("rounds: 2", "rounds: 3")


@pytest.fixture
def fleet(database_logins: Logins) -> Fleet:
    """Daemons on one database."""
    return Fleet(database_logins, *SETTINGS)


@pytest.fixture
def daemon(fleet: Fleet) -> Iterator[DaemonProcess]:
    """A daemon that is not started yet."""
    with fleet.daemon() as made:
        yield made
        made.stop()


async def request(client: AsyncClient, event: str, **data: Any) -> Any:
    """Send an event until a daemon is there that can answer it."""
    while True:
        try:
            return await client.request(event, data)
        except (Unavailable, Busy) as error:
            await asyncio.sleep(error.retry_after_s or 0.05)


async def ended(client: AsyncClient, which: str) -> Any:
    """Wait for an orchestration's end."""
    after = 0
    while True:
        told = await request(client, "orchestration:transcript", id=which, after=after, wait_s=10)
        after = told["after"]
        if told["status"] in ENDED and not told["utterances"]:
            return (await request(client, "orchestration:status", id=which))["orchestration"]


async def said(client: AsyncClient, which: str) -> list[Any]:
    """Return all that was said, with the numbers checked."""
    told = await request(client, "orchestration:transcript", id=which)
    found: list[Any] = told["utterances"]
    assert [each["number"] for each in found] == list(range(1, len(found) + 1))
    return found


async def turns_of(fleet: Fleet, which: str) -> list[tuple[str, int, int, int]]:
    """Return how many turns each member had, and how many prompts and answers they hold."""
    rows = await fleet.query(
        "SELECT t.conversation, count(DISTINCT t.run), count(*) FILTER (WHERE m.role = 'user'), "
        "count(*) FILTER (WHERE m.role = 'assistant') FROM ksi_completion.turn t "
        "JOIN ksi_completion.message m ON (m.tenant, m.conversation, m.turn) = "
        "(t.tenant, t.conversation, t.number) "
        "WHERE t.conversation LIKE $1 GROUP BY 1 ORDER BY 1",
        f"orchestration:{which}:%",
    )
    return [(row[0].rpartition(":")[2], row[1], row[2], row[3]) for row in rows]


async def test_orchestrations_that_are_killed_go_on_and_repeat_no_turn(
    fleet: Fleet, daemon: DaemonProcess
) -> None:
    await fleet.start(daemon)
    async with fleet.client(daemon) as client:
        for which, document in (("chat", CHAT), ("chorus", CHORUS)):
            ask = {"document": document, "topic": "Rain", "id": which}
            await request(client, "orchestration:start", **ask)
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0.0, LONGEST_S))  # the moment is tested
            await asyncio.to_thread(daemon.kill)
            await fleet.start(daemon)
        told = {which: await ended(client, which) for which in ("chat", "chorus")}
        heard = {which: await said(client, which) for which in told}
        moves = await fleet.query("SELECT count(*) FROM ksi_orchestration.move")

    assert [it["status"] for it in told.values()] == ["succeeded", "succeeded"]
    assert [each["member"] for each in heard["chat"]] == ["ann", "bob"] * 3
    assert [each["round"] for each in heard["chat"]] == [1, 1, 2, 2, 3, 3]
    assert sorted(each["member"] for each in heard["chorus"][:3]) == ["ann", "bob", "eve"]
    assert not any("error" in each for each in (*heard["chat"], *heard["chorus"]))
    assert await turns_of(fleet, "chat") == [("ann", 3, 3, 3), ("bob", 3, 3, 3)]
    assert await turns_of(fleet, "chorus") == [("ann", 2, 2, 2), ("bob", 1, 1, 1), ("eve", 1, 1, 1)]
    assert moves[0][0] == 10


async def test_another_daemon_follows_has_a_say_and_takes_over(
    fleet: Fleet, daemon: DaemonProcess
) -> None:
    chunks: list[Any] = []

    async def follow(client: AsyncClient) -> None:
        stream = client.stream("orchestration:follow", {"id": "chat"})
        chunks.extend([chunk async for chunk in stream])

    with fleet.daemon() as other:
        await fleet.start(daemon, PATIENT)
        await fleet.start(other, PATIENT)
        async with fleet.client(daemon) as here, fleet.client(other) as there:
            ask = {"document": CHAT, "topic": "Rain", "id": "chat"}
            await request(here, "orchestration:start", **ask)
            async with asyncio.TaskGroup() as together:
                together.create_task(follow(there))
                await request(there, "orchestration:transcript", id="chat", wait_s=10)
                await request(there, "orchestration:message", id="chat", text="Think of snow.")
                await request(there, "orchestration:pause", id="chat")
                paused = await request(here, "orchestration:status", id="chat")
                await request(there, "orchestration:resume", id="chat")
                await asyncio.to_thread(daemon.kill)
            told = await ended(there, "chat")
            heard = await said(there, "chat")
        other.stop()

    assert paused["orchestration"]["status"] == "paused"
    assert told["status"] == "succeeded"
    spoken = [each["member"] for each in heard if each["member"] != "person"]
    assert spoken == ["ann", "bob"] * 3
    assert [c["number"] for c in chunks if c["kind"] == "utterance"] == list(range(1, 8))
    assert {c["member"] for c in chunks if c["kind"] == "turn"} == {"ann", "bob"}
    assert await turns_of(fleet, "chat") == [("ann", 3, 3, 3), ("bob", 3, 3, 3)]

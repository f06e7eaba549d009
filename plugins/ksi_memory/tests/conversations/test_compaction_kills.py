"""kill -9 of the daemon while it sums up a long conversation: each message is covered once."""

import asyncio
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from ksi_client import AsyncClient, KsiError
from ksi_memory.tests.conversations.killing import ask
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet

KILLS = int(os.environ.get("FAULT_KILLS_MEMORY", "3"))
MESSAGES = 400
SETTINGS = (
    "daemon.plugins=system,postgres,workflows,models,tools,completion,memory",
    "workflows.max_recovery_attempts=100",
    "models.find_local=false",
    "memory.embedder=none",
    "memory.compact_tokens=200",
    "memory.sweep_interval_s=1",
)
THINGS = ("apples", "bread", "chairs", "dogs", "engines", "flowers", "gardens", "houses")


def document() -> dict[str, Any]:
    """Return a long conversation, as one that was exported."""
    began = datetime(2026, 3, 1, tzinfo=UTC)
    messages = []
    for number in range(MESSAGES):
        thing = THINGS[number % len(THINGS)]
        text = (
            f"In step {number} we decided to buy {number + 2} {thing} for the fair in Porto, "
            f"because the {thing} of the year before were too old to be shown."
        )
        messages.append(
            {
                "turn": number // 2 + 1,
                "role": "assistant" if number % 2 else "user",
                "parts": [{"kind": "text", "text": text}],
                "created_at": (began + timedelta(minutes=number)).isoformat(),
            }
        )
    return {
        "format": "ksi-conversation",
        "version": 1,
        "conversation": {},
        "messages": messages,
    }


async def moments(client: AsyncClient) -> Sequence[Any]:
    listed = await ask(client, "memory:moments", {"type": "session_chunk", "limit": 1000})
    return list(reversed(listed["items"]))


async def compact(client: AsyncClient) -> None:
    """Have all be summed up; the daemon may die meanwhile."""
    with suppress(KsiError):  # that was the kill
        await client.request("memory:compact", {"conversation_id": "long", "threshold_tokens": 0})


@pytest.mark.timeout(240)
async def test_every_message_is_covered_once_whenever_the_daemon_is_killed(
    database_logins: Logins,
) -> None:
    fleet = Fleet(database_logins, *SETTINGS)
    amid = 0
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            imported = {"document": document(), "new_id": "long"}
            await ask(client, "conversation:import", imported)
        for _ in range(KILLS):
            async with fleet.client(daemon) as client, asyncio.TaskGroup() as tasks:
                before = len(await moments(client))
                tasks.create_task(compact(client), name="compact")
                wanted = before + random.randint(1, 5)
                await fleet.until(
                    "SELECT count(*) >= $1 OR NOT EXISTS (SELECT FROM ksi_memory.chunk "
                    "WHERE state = 'planned') AND count(*) > 0 FROM ksi_memory.item "
                    "WHERE category = 'session_chunk'",
                    wanted,
                )
                await asyncio.to_thread(daemon.kill)
            left = await fleet.query(
                "SELECT count(*) FROM ksi_memory.chunk WHERE state = 'planned'"
            )
            amid += left[0][0] > 0
            await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            done = await ask(
                client, "memory:compact", {"conversation_id": "long", "threshold_tokens": 0}
            )
            found = await moments(client)
        daemon.stop()
    chunks = await fleet.query(
        "SELECT number, first_message, last_message, state FROM ksi_memory.chunk ORDER BY number"
    )

    assert amid > 0
    assert done["uncovered_tokens"] == 0
    assert {each["version"] for each in found} == {1}
    spans = [
        (each["attributes"]["first_message"], each["attributes"]["last_message"]) for each in found
    ]
    assert spans == [(row[1], row[2]) for row in chunks]
    assert {row[3] for row in chunks} == {"written"}
    assert spans[0][0] == 1
    assert spans[-1][1] == MESSAGES
    assert all(one[1] + 1 == other[0] for one, other in pairwise(spans))
    assert [each["attributes"].get("previous") for each in found[1:]] == [
        each["key"] for each in found[:-1]
    ]

"""kill -9 of the daemon amid a dream: what it makes is there once, and nothing is missing."""

import asyncio
import os
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ksi_client import AsyncClient, KsiError
from ksi_memory.tests.conversations.killing import ask
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet, outcome_of

KILLS = int(os.environ.get("FAULT_KILLS_MEMORY", "3"))
DAYS = 12
UNCOVERED = 8  # conversations that the dream itself sums up
PEOPLE = ("Clara", "Bruno", "Dora", "Emil", "Frida", "Gustav")
SETTINGS = (
    "daemon.plugins=system,postgres,workflows,models,tools,completion,memory",
    "workflows.max_recovery_attempts=100",
    "models.find_local=false",
    "memory.embedder=none",
    "memory.dream_days=40",
    "memory.pattern_days=40",
    "memory.sweep_interval_s=3600",
)
IS_OVER = (
    "EXISTS (SELECT FROM dbos.workflow_status WHERE status = 'SUCCESS' AND name LIKE '%dream%')"
)
# What a dream makes, by where it is seen.
MADE = """
    SELECT count(*) FROM ksi_memory.item
     WHERE kind IN ('associations', 'patterns') OR kind = 'moments'
"""


def document(day: int, number: int) -> dict[str, Any]:
    """Return a conversation of a day that is over, as one that was exported."""
    began = datetime.now(UTC).replace(hour=9, minute=0) - timedelta(days=day + 1)
    texts = (
        f"On day {day} we decided to plant {number + 3} apple trees in the garden by the house.",
        "Apple trees in a garden need sun, and water in their first summer; plant them in March.",
    )
    messages = [
        {
            "turn": turn + 1,
            "role": role,
            "parts": [{"kind": "text", "text": f"{text} That is part {turn} of plan {number}."}],
            "created_at": (began + timedelta(minutes=turn)).isoformat(),
        }
        for turn in range(4)
        for role, text in zip(("user", "assistant"), texts, strict=True)
    ]
    return {"format": "ksi-conversation", "version": 1, "conversation": {}, "messages": messages}


async def prepare(client: AsyncClient, fleet: Fleet) -> None:
    """Have a past: conversations, some of them not summed up; people; facts that say the same."""
    names = [f"c{day:02}-{number}" for day in range(DAYS) for number in (0, 1)]
    for name in names:
        imported = document(int(name[1:3]), int(name[-1]))
        await ask(client, "conversation:import", {"document": imported, "new_id": name})
    for place, name in enumerate(names):
        threshold = 1_000_000 if place < UNCOVERED else 0
        await ask(
            client, "memory:compact", {"conversation_id": name, "threshold_tokens": threshold}
        )
    await fleet.query(
        "UPDATE ksi_completion.conversation SET updated_at = updated_at - interval '1 day'"
    )
    entities = [{"key": name} for name in PEOPLE]
    await ask(client, "memory:upsert", {"table": "entities", "items": entities})
    await fleet.query(
        "INSERT INTO ksi_memory.together (tenant, owner, one, other, conversation, message, at) "
        "SELECT m.tenant, '', lower(a), lower(b), m.conversation, m.number, m.created_at "
        "FROM ksi_completion.message m, unnest($1::text[]) a, unnest($1::text[]) b "
        "WHERE lower(a) < lower(b) AND m.number = 1",
        list(PEOPLE),
    )
    facts = [
        {"key": f"{name}-{way}", "body": body}
        for name in PEOPLE
        for way, body in (
            ("one", f"The spare key of {name} is under the third flower pot."),
            ("other", f"Under the third flower pot is the spare key of {name}."),
        )
    ]
    upserted = {"table": "facts", "items": facts}
    await client.request("memory:upsert", upserted, context={"run": "a-run"})


async def dream(client: AsyncClient) -> None:
    """Dream; the daemon may die meanwhile."""
    with suppress(KsiError):  # that was the kill
        await client.request("memory:dream", {})


@pytest.mark.timeout(240)
async def test_what_a_dream_makes_is_there_once_whenever_the_daemon_is_killed(
    database_logins: Logins,
) -> None:
    fleet = Fleet(database_logins, *SETTINGS)
    seen: list[int] = []
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            await prepare(client, fleet)
        before = made = (await fleet.query(MADE))[0][0]
        async with fleet.client(daemon) as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(dream(client), name="dream")
            for kill in range(KILLS):
                made += random.randint(1, 6) if kill else random.randint(1, UNCOVERED)
                await fleet.until(f"SELECT ({MADE}) >= $1 OR {IS_OVER}", made)
                await asyncio.to_thread(daemon.kill)
                made = (await fleet.query(MADE))[0][0]
                seen.append(made)
                await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            runs = await ask(client, "workflow:list", {"name": "dream"})
            ended = await outcome_of(client, runs["runs"][0]["run_id"])
            again = await ask(client, "memory:dream", {})
        daemon.stop()
    last = (await fleet.query(MADE))[0][0]
    versions = await fleet.query(
        "SELECT kind, max(version), count(*), count(DISTINCT id) FROM ksi_memory.item "
        "WHERE kind IN ('moments', 'associations', 'patterns') GROUP BY kind ORDER BY kind"
    )
    moments = await fleet.query(
        "SELECT category, count(*) FROM ksi_memory.item WHERE kind = 'moments' "
        "GROUP BY category ORDER BY category"
    )
    facts = await fleet.query(
        "SELECT count(*) FILTER (WHERE i.valid_to IS NULL), max(i.version), "
        "(SELECT count(*) FROM ksi_memory.merged) FROM ksi_memory.item i WHERE i.kind = 'facts'"
    )
    twice = await fleet.query(
        "SELECT item FROM ksi_memory.source GROUP BY item, version, conversation, message, "
        "of_item, of_version, run, told HAVING count(*) > 1"
    )

    assert len(runs["runs"]) == 1
    assert ended["status"] == "finished"
    assert before < seen[0] < last  # amid it
    assert again["did"] == []  # nothing was left out
    assert all(row[1] == 1 and row[2] == row[3] for row in versions)
    assert [tuple(row) for row in moments] == [("dream", DAYS), ("session_chunk", 2 * DAYS)]
    assert tuple(facts[0]) == (len(PEOPLE), 2, len(PEOPLE))
    assert twice == []

"""Schedules: by cron, once, missed, and fired by one alone."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ksi_client import AsyncClient, InvalidData, NotFound
from ksi_workflows.api import Workflows, workflow
from ksi_workflows.schedules import Clock, next_time

RUNS: list[Any] = []


@workflow("tick")
async def tick(args: Any) -> None:
    RUNS.append(args)


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("0 9 * * *", "UTC", "2026-01-01T10:00:00Z", "2026-01-02T09:00:00Z"),
        ("0 9 * * *", "Europe/Oslo", "2026-01-01T10:00:00Z", "2026-01-02T08:00:00Z"),
        ("0 9 * * *", "Europe/Oslo", "2026-07-01T10:00:00Z", "2026-07-02T07:00:00Z"),
        ("0 9 * * *", "Europe/Oslo", "2026-03-28T09:00:00Z", "2026-03-29T07:00:00Z"),
        ("*/15 * * * *", "Asia/Kolkata", "2026-01-01T00:01:00Z", "2026-01-01T00:15:00Z"),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
    ],
)
def test_the_next_time_is_that_of_the_zones_clock(
    cron: str, zone: str, after: str, expected: str
) -> None:
    assert next_time(cron, zone, at(after)) == at(expected)


NO_SCHEDULES: list[tuple[dict[str, Any], str]] = [
    ({"cron": "every day"}, "is no time"),
    ({"cron": "0 0 31 2 *"}, "is no time"),
    ({"cron": "0 9 * * *", "timezone": "Europe/Atlantis"}, "no time zone"),
    ({}, "either a cron expression, or a time"),
    ({"cron": "0 9 * * *", "at": "2030-01-01T00:00:00Z"}, "either a cron"),
    ({"cron": "0 9 * * *", "queue": "none"}, "no plugin has declared a queue"),
]


async def test_a_wrong_schedule_is_refused_and_says_why(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(tick)

    for data, told in NO_SCHEDULES:
        with pytest.raises(InvalidData, match=told):
            await client.request("workflow:schedule", {"name": "s", "workflow": "tick", **data})


async def test_a_schedule_for_once_starts_its_workflow_and_is_over(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(tick)
    soon = datetime.now(UTC) + timedelta(milliseconds=200)
    await client.request(
        "workflow:schedule", {"name": "once", "workflow": "tick", "args": 7, "at": soon}
    )

    run_id = await first_run(client, "once")
    await client.request("workflow:result", {"run_id": run_id})

    listed = (await client.request("workflow:schedules"))["schedules"]
    assert RUNS == [7]
    assert listed[0].get("next_at") is None


async def first_run(client: AsyncClient, name: str) -> str:
    """Wait until a schedule has noted a run, which it does after it has started it."""
    async with asyncio.timeout(10):
        while True:
            listed = (await client.request("workflow:schedules"))["schedules"]
            found = next(each for each in listed if each["name"] == name)
            if found.get("last_run_id") is not None:
                return str(found["last_run_id"])


async def test_a_cron_schedule_starts_its_workflow_again_and_again(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(tick)
    async with await client.subscribe("workflow:finished") as finished:
        await client.request(
            "workflow:schedule",
            {"name": "often", "workflow": "tick", "args": "x", "cron": "* * * * * *"},
        )
        ended = [(await anext(finished)).data["run_id"] for _ in range(2)]
    await client.request("workflow:unschedule", {"name": "often"})

    assert len(set(ended)) == 2
    assert (await client.request("workflow:schedules"))["schedules"] == []
    with pytest.raises(NotFound):
        await client.request("workflow:unschedule", {"name": "often"})


async def test_several_daemons_start_a_time_once(client: AsyncClient, workflows: Workflows) -> None:
    workflows.register(tick)
    past = datetime.now(UTC) - timedelta(hours=3)
    context = '{"id":"x","tenant":"default"}'
    await workflows.store.put_schedule(
        "default", "missed", "tick", 1, '"made good"', "0 * * * *", "UTC", None, None, context, past
    )

    due = await workflows.store.due_schedules(10)
    clocks = [Clock(workflows.store, workflows) for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        for clock in clocks:
            tasks.create_task(clock._start(due[0]), name="clock")
    listed = await client.request("workflow:list")
    await client.request("workflow:result", {"run_id": listed["runs"][0]["run_id"]})

    assert len(listed["runs"]) == 1
    assert RUNS == ["made good"]
    schedule = (await client.request("workflow:schedules"))["schedules"][0]
    assert at(schedule["next_at"]) > datetime.now(UTC)


async def test_a_schedule_whose_workflow_is_gone_says_so(
    client: AsyncClient, workflows: Workflows
) -> None:
    context = '{"id":"x","tenant":"default"}'
    past = datetime.now(UTC) - timedelta(seconds=1)
    await workflows.store.put_schedule(
        "default", "lost", "gone", 1, "null", "0 * * * *", "UTC", None, None, context, past
    )

    due = (await workflows.store.due_schedules(10))[0]
    await Clock(workflows.store, workflows)._start(due)

    schedule = (await client.request("workflow:schedules"))["schedules"][0]
    assert "no plugin has registered a workflow 'gone'" in schedule["last_error"]

"""Queues: keys, order, bounds, delays, priorities."""

import asyncio
import time
from typing import Any

import pytest

from ksi_client import AsyncClient, InvalidData
from ksi_daemon.protocol import Conflict
from ksi_workflows.api import Workflows, step, workflow


class Floor:
    """Counts who is on it at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.order: list[int] = []


FLOOR = Floor()


@step(name="dance")
async def dance(number: int) -> int:
    FLOOR.now += 1
    FLOOR.most = max(FLOOR.most, FLOOR.now)
    await asyncio.sleep(0)
    FLOOR.order.append(number)
    FLOOR.now -= 1
    return number


@workflow("dancing")
async def dancing(number: int) -> int:
    return await dance(number)


@pytest.fixture(autouse=True)
def _empty() -> None:
    FLOOR.__init__()  # type: ignore[misc]  # all of it anew


async def test_runs_with_one_key_run_one_at_a_time_in_their_order(workflows: Workflows) -> None:
    workflows.register(dancing)

    runs = [await workflows.start(dancing, n, key="pair") for n in range(5)]

    assert [await workflows.result(run) for run in runs] == list(range(5))
    assert FLOOR.order == list(range(5))
    assert FLOOR.most == 1


async def test_runs_with_different_keys_run_side_by_side(workflows: Workflows) -> None:
    barrier = asyncio.Barrier(2)

    @workflow("together")
    async def together() -> str:
        await barrier.wait()
        return "met"

    workflows.register(together)

    runs = [await workflows.start(together, key=key) for key in ("a", "b")]

    assert [await workflows.result(run, timeout_s=20.0) for run in runs] == ["met", "met"]


async def test_a_queue_bounds_how_many_of_its_runs_run_at_once(workflows: Workflows) -> None:
    workflows.register(dancing)
    workflows.queue("narrow", concurrency=1)

    runs = [await workflows.start(dancing, n, queue="narrow") for n in range(4)]

    assert sorted([await workflows.result(run) for run in runs]) == list(range(4))
    assert FLOOR.most == 1


async def test_a_queue_bounds_how_many_are_begun_in_a_time(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(dancing)
    workflows.queue("slow", rate=2, rate_period_s=1.5)

    runs = [await workflows.start(dancing, n, queue="slow") for n in range(3)]
    for run in runs:
        await workflows.result(run)
    got = [await client.request("workflow:get", {"run_id": run}) for run in runs]

    started = sorted(each["run"]["started_at"] for each in got)
    assert started[2] > started[0]
    first, last = (time.mktime(time.strptime(s[:19], "%Y-%m-%dT%H:%M:%S")) for s in started[::2])
    assert last - first >= 1.0


async def test_a_delayed_run_waits(client: AsyncClient, workflows: Workflows) -> None:
    workflows.register(dancing)
    began = time.monotonic()

    run_id = await workflows.start(dancing, 1, delay_s=1.0)
    listed = await client.request("workflow:list", {"status": ["delayed"]})
    result = await workflows.result(run_id)

    assert [run["run_id"] for run in listed["runs"]] == [run_id]
    assert result == 1
    assert time.monotonic() - began >= 1.0


async def test_the_more_urgent_runs_go_first(workflows: Workflows) -> None:
    workflows.register(dancing)
    workflows.queue("urgent", concurrency=1, poll_s=0.5)

    runs = [
        await workflows.start(dancing, number, queue="urgent", priority=priority)
        for number, priority in ((1, 30), (2, 20), (3, 10))
    ]
    for run in runs:
        await workflows.result(run)

    assert FLOOR.order == [3, 2, 1]


async def test_queues_tells_bounds_and_what_waits(
    client: AsyncClient, workflows: Workflows
) -> None:
    workflows.register(dancing)
    workflows.queue("shut", concurrency=2, poll_s=60.0)
    await workflows.start(dancing, 1, queue="shut")

    listed = await client.request("workflow:queues")

    shut = next(each for each in listed["queues"] if each["queue"] == "shut")
    assert shut["concurrency"] == 2
    assert shut["queued"] == 1


async def test_a_queue_has_one_declaration(workflows: Workflows) -> None:
    workflows.queue("one", concurrency=1)
    workflows.queue("one", concurrency=1)

    with pytest.raises(Conflict, match="another queue 'one'"):
        workflows.queue("one", concurrency=2)


@pytest.mark.parametrize(("partitioned", "key"), [(True, None), (False, "a")])
async def test_keys_and_partitions_belong_together(
    workflows: Workflows, partitioned: bool, key: Any
) -> None:
    workflows.register(dancing)
    workflows.queue("q", partitioned=partitioned)

    with pytest.raises(InvalidData, match="the queue q takes"):
        await workflows.start(dancing, 1, queue="q", key=key)


async def test_runs_past_the_bound_of_a_daemon_are_queued(
    client: AsyncClient, workflows: Workflows, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    @workflow("holding")
    async def holding() -> None:
        await go.wait()

    workflows.register(holding)
    maximum = workflows.settings.max_running
    runs = [await workflows.start(holding) for _ in range(maximum + 1)]

    got = await client.request("workflow:get", {"run_id": runs[-1]})
    go.set()

    assert got["run"]["queue"] == "ksi_default"
    await workflows.result(runs[-1])

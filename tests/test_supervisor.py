"""The supervisor: what fails is started again, and what can't be kept running is said so."""

import asyncio
import logging

import pytest

from ksi_daemon.supervisor import RestartPolicy, Supervisor, Unit

AT_ONCE = RestartPolicy(first_delay_s=0.0, max_restarts=3)


async def never() -> None:
    await asyncio.Event().wait()


async def test_a_task_that_returns_is_finished_and_forgotten() -> None:
    async def run() -> None:
        pass

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks)
        unit = supervisor.start("brief", run)

    assert unit.state == "finished"
    assert supervisor.units == {}


async def test_a_task_that_fails_is_started_again() -> None:
    starts = 0

    async def run() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise ValueError("not yet")

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        unit = Supervisor(tasks).start("stubborn", run, AT_ONCE)

    assert (unit.state, unit.restarts) == ("finished", 2)
    assert unit.last_error == "ValueError: not yet"


async def test_a_task_that_keeps_failing_is_given_up_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    starts = 0

    async def run() -> None:
        nonlocal starts
        starts += 1
        raise ValueError("never")

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks)
        unit = supervisor.start("hopeless", run, AT_ONCE)

    assert unit.state == "failed"
    assert starts == 1 + AT_ONCE.max_restarts
    assert supervisor.units["hopeless"] is unit
    loudest = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert [vars(record)["task"] for record in loudest] == ["hopeless"]


async def test_a_task_that_raises_a_cancellation_of_its_own_is_started_again() -> None:
    starts = 0

    async def run() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise asyncio.CancelledError

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        unit = Supervisor(tasks).start("confused", run, AT_ONCE)

    assert (unit.state, unit.restarts) == ("finished", 1)


async def test_one_that_exits_the_interpreter_ends_only_itself() -> None:
    async def run() -> None:
        raise SystemExit(3)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        unit = Supervisor(tasks).start("quitter", run, RestartPolicy(max_restarts=0))

    assert (unit.state, unit.last_error) == ("failed", "SystemExit: 3")


async def test_a_stopped_task_ends_and_is_not_started_again() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        started.set()
        try:
            await never()
        finally:
            ended.set()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks)
        supervisor.start("running", run, AT_ONCE)
        await started.wait()
        supervisor.stop("running")

    assert ended.is_set()
    assert supervisor.units == {}


async def test_a_task_that_fails_while_it_is_stopped_is_not_started_again() -> None:
    started = asyncio.Event()
    starts = 0

    async def run() -> None:
        nonlocal starts
        starts += 1
        started.set()
        try:
            await never()
        finally:
            raise ValueError("its clean-up is broken")

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks)
        supervisor.start("messy", run, AT_ONCE)
        await started.wait()
        supervisor.stop("messy")

    assert starts == 1


async def test_two_running_tasks_of_one_name_are_both_kept_in_sight() -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks)
        first = supervisor.start("twin", never)
        second = supervisor.start("twin", never)

        assert [unit.name for unit in (first, second)] == ["twin", "twin (2)"]
        assert set(supervisor.units.values()) == {first, second}
        for name in list(supervisor.units):
            supervisor.stop(name)


def test_the_delay_doubles_up_to_its_bound() -> None:
    policy = RestartPolicy(first_delay_s=1.0, max_delay_s=4.0, max_restarts=5)
    unit = Unit("slow", never, policy)

    delays = [unit.next_delay_s() for _ in range(5)]

    for delay, least in zip(delays, (1.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        assert delay is not None
        assert least <= delay <= least * 1.25


def test_one_restart_too_many_in_the_window_is_giving_up() -> None:
    unit = Unit("slow", never, RestartPolicy(max_restarts=2))

    delays = [unit.next_delay_s() for _ in range(3)]

    assert delays[:2] != [None, None]
    assert delays[2] is None


def test_deaths_before_the_window_do_not_count() -> None:
    unit = Unit("slow", never, RestartPolicy(max_restarts=1, window_s=0.0))

    delays = [unit.next_delay_s() for _ in range(5)]

    assert None not in delays

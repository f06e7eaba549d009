"""The watch: who ended a wait, and that nobody else's end is taken for its own."""

import asyncio
from typing import Any

import pytest

from ksi_models.watch import Watch

FOREVER = 1e12


async def test_a_wait_that_takes_too_long_is_ended() -> None:
    watch = Watch()
    watch.begin(0.01, FOREVER)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()

    assert watch.end()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_timer_serves_many_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, watch = asyncio.get_running_loop(), Watch()
    made: list[float] = []
    call_at = loop.call_at

    def counting(when: float, *more: Any) -> asyncio.TimerHandle:
        made.append(when)
        return call_at(when, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_at", counting)
        for _ in range(1000):
            watch.begin(60.0, FOREVER)
            assert not watch.end()
    watch.close()

    assert len(made) == 1


async def test_a_limit_that_is_shorter_than_the_one_before_holds() -> None:
    watch = Watch()
    watch.begin(60.0, FOREVER)
    watch.end()

    watch.begin(60.0, asyncio.get_running_loop().time() + 0.01)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()

    assert watch.end()


async def test_a_task_that_is_cancelled_by_somebody_stays_so() -> None:
    ended: list[bool] = []

    async def wait() -> None:
        watch = Watch()
        watch.begin(60.0, FOREVER)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(watch.end())
            watch.close()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()

    assert ended == [False]
    assert task.cancelled()


async def test_both_at_once_is_a_cancellation() -> None:
    ended: list[bool] = []

    async def wait() -> None:
        watch = Watch()
        watch.begin(0.0, FOREVER)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.0, task.cancel)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # the other one may come only now
            raise
        finally:
            ended.append(watch.end())

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(wait())

    assert task.cancelled()


async def test_a_reader_between_two_waits_is_never_ended() -> None:
    watch = Watch()
    watch.begin(0.01, FOREVER)
    watch.end()
    done = asyncio.Event()

    asyncio.get_running_loop().call_later(0.03, done.set)
    await done.wait()

    assert not watch.end()

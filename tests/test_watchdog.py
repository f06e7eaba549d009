"""The watchdog: who blocks the loop is named, with the stack."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_client import AsyncClient, LocalTransport
from ksi_daemon.event_system import event_handler
from ksi_daemon.testing import module_plugin, read_log, running_daemon
from ksi_daemon.watchdog import BEAT_S, Watchdog


def block(until: threading.Event) -> None:
    assert until.wait(10)


async def test_a_blocked_loop_is_reported_with_the_guilty_plugin_and_its_stack() -> None:
    reported = threading.Event()
    records: list[logging.LogRecord] = []

    class Reported(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            reported.set()

    handler = Reported()
    logging.getLogger("ksi_daemon.watchdog").addHandler(handler)
    watchdog = Watchdog(0.1, lambda: {__name__.partition(".")[0]: "guilty"})
    beaten = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(watchdog.run([beaten.set]))
        await beaten.wait()

        block(reported)

        beating.cancel()
    logging.getLogger("ksi_daemon.watchdog").removeHandler(handler)
    (record,) = records
    assert record.getMessage() == "the event loop is blocked"
    assert vars(record)["plugin"] == "guilty"
    assert "in block" in vars(record)["stack"]
    assert (watchdog.stalls, watchdog.last_stall) == (1, "guilty blocked the loop")


async def test_what_is_called_at_each_beat_may_fail_and_the_watchdog_runs_again() -> None:
    watchdog = Watchdog(0.1, dict)

    def fail() -> None:
        raise ValueError("a bad tick")

    beaten = asyncio.Event()
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="a bad tick"):
            await watchdog.run([fail])
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(watchdog.run([beaten.set]))
            await beaten.wait()
            beating.cancel()


async def test_the_lag_of_the_loop_is_measured() -> None:
    watchdog = Watchdog(0.0, dict)
    beaten = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(watchdog.run([beaten.set]))
        blocked_for = threading.Event()
        await asyncio.to_thread(lambda: None)

        blocked_for.wait(2 * BEAT_S)

        await beaten.wait()
        beating.cancel()
    assert watchdog.lag_s > BEAT_S / 2


async def test_a_watchdog_that_is_off_has_no_thread() -> None:
    watchdog = Watchdog(0.0, dict)
    beaten = asyncio.Event()

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(watchdog.run([beaten.set]))
        await beaten.wait()
        threads = [thread.name for thread in threading.enumerate()]
        beating.cancel()

    assert "watchdog" not in threads


@pytest.fixture
async def blocked_home(ksi_home: Path) -> AsyncIterator[Path]:
    @event_handler("bad:block")
    async def block_the_loop() -> float:
        """Block the daemon's only thread, as a plugin should not."""
        started = time.monotonic()
        threading.Event().wait(1.0)
        return time.monotonic() - started

    plugin = module_plugin("bad", block=block_the_loop)
    async with (
        running_daemon(ksi_home, plugin, settings=["daemon.stall_warning_s=0.2"]) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        await client.request("bad:block")
        stats = await client.request("system:stats")
        assert stats["loop_stalls"] == 1
        yield ksi_home


async def test_a_daemon_logs_which_plugin_blocked_it(blocked_home: Path) -> None:
    line = next(x for x in read_log(blocked_home) if x["message"] == "the event loop is blocked")

    assert "block_the_loop" in line["stack"]
    assert line["level"] == "error"

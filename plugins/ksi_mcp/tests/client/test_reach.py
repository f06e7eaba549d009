"""When a server is connected, and how long one that fails is left alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.protocol import Unavailable
from ksi_mcp.client.errors import LostError
from ksi_mcp.client.lookout import Lookout, several
from ksi_mcp.client.reach import Reach
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.settings import McpSettings
from ksi_mcp.tests.client.conftest import Told, faulty

SOON = McpSettings(retry_s=0.01)
LATE = McpSettings(retry_s=60, max_retry_s=100)
Ways = Callable[[McpSettings], AbstractAsyncContextManager[Reach]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the server is told how to fail."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    return folder


@pytest.fixture
def way(folder: Path, tmp_path: Path) -> Ways:
    """Return the way to a server."""

    @asynccontextmanager
    async def reaching(settings: McpSettings) -> AsyncIterator[Reach]:
        async with asyncio.TaskGroup() as group:

            async def connect() -> Connection:
                connection = Connection(
                    "faulty",
                    faulty(folder),
                    settings,
                    tmp_path / "home",
                    Told().listed,
                    ended=reach.ended,
                )
                connection.start(group)
                return connection

            reach = Reach("faulty", settings, connect)
            try:
                yield reach
            finally:
                reach.end()

    return reaching


def starts(folder: Path) -> int:
    """Return how often the server was started."""
    file = folder / "started"
    return len(file.read_text()) if file.exists() else 0


async def crashed(reach: Reach) -> None:
    """Have a server crash in a call."""
    connection = await reach.connected()
    with pytest.raises(LostError, match=r"it ended \(exit code 3\)"):
        await connection.call("crash", {}, Told().progressed)


async def within(limit_s: float, work: Awaitable[Any]) -> None:
    """Do something until it takes too long."""
    async with asyncio.timeout(limit_s):
        await work


async def test_who_comes_while_it_is_connected_waits_for_the_same(way: Ways, folder: Path) -> None:
    (folder / "sleeps").touch()
    async with way(SOON) as reach:
        with pytest.raises(TimeoutError):
            await within(0.1, reach.connected())
        state = reach.state
        (folder / "sleeps").unlink()
        await reach.check()
        connected = reach.state

    assert (state, connected) == ("connecting", "connected")
    assert starts(folder) == 1


async def test_one_that_is_removed_while_it_is_connected_is_not_started_once_more(
    way: Ways, folder: Path
) -> None:
    (folder / "sleeps").touch()
    async with way(SOON) as reach, asyncio.TaskGroup() as tasks:

        async def come() -> str:
            with pytest.raises(Unavailable) as caught:
                await reach.connected()
            return str(caught.value)

        both = [tasks.create_task(come()) for _ in range(2)]
        while not starts(folder):  # noqa: ASYNC110  another process tells it
            await asyncio.sleep(0.01)
        reach.end()

    assert [each.result() for each in both] == [
        "faulty: it was ended",
        "faulty: it was removed, or the daemon stops",
    ]
    assert starts(folder) == 1


async def test_one_that_can_t_be_connected_is_tried_ever_later(way: Ways, folder: Path) -> None:
    (folder / "refuses").touch()
    async with way(LATE) as reach:
        with pytest.raises(Unavailable, match="is wrong") as first:
            await reach.connected()
        with pytest.raises(Unavailable, match="is wrong"):
            await reach.connected()
        waited = reach.retry_in_s
        with pytest.raises(Unavailable) as checked:
            await reach.check()

    assert 50 < waited <= 60
    assert first.value.retry_after_s == pytest.approx(60, abs=5)
    assert checked.value.retry_after_s == pytest.approx(100, abs=5)
    assert reach.state == "failed"


async def test_one_that_crashes_on_every_call_is_tried_ever_later(way: Ways, folder: Path) -> None:
    async with way(LATE) as reach:
        await crashed(reach)
        was_failed = reach.state
        await crashed(reach)  # once may be chance
        with pytest.raises(Unavailable, match="exit code 3"):
            await reach.connected()

    assert was_failed == "failed"
    assert str(reach.why).startswith("it ended (exit code 3)")
    assert starts(folder) == 2


async def test_one_that_was_of_use_may_crash(way: Ways, folder: Path) -> None:
    async with way(LATE) as reach:
        for _ in range(3):
            connection = await reach.connected()
            await connection.call("echo", {}, Told().progressed)
            await crashed(reach)

    assert reach.state == "idle"
    assert starts(folder) == 3


async def test_one_that_no_longer_answers_says_so_when_it_is_checked(
    way: Ways, folder: Path
) -> None:
    async with way(LATE) as reach:
        await reach.connected()
        (folder / "stalls").touch()
        reach._settings = McpSettings(connect_timeout_s=0.05)
        with pytest.raises(Unavailable, match=r"faulty: it does not answer"):
            await reach.check()
        (folder / "stalls").unlink()

    assert reach.state == "failed"


async def test_one_of_which_nothing_is_known_is_asked_until_something_is(
    way: Ways, folder: Path
) -> None:
    (folder / "refuses").touch()
    async with way(SOON) as reach, asyncio.TaskGroup() as group:
        asked: asyncio.Queue[bool] = asyncio.Queue()

        def unknown() -> list[Reach]:
            asked.put_nowait(reach.was_reached)
            return [] if reach.was_reached else [reach]

        lookout = Lookout(unknown, 2)
        looking = group.create_task(lookout.run())
        before = [await asked.get(), await asked.get()]
        (folder / "refuses").unlink()
        while not await asked.get():
            pass
        looking.cancel()

    assert before == [False, False]
    assert starts(folder) == 1


async def test_several_are_done_at_once_and_no_more() -> None:
    running, most, done = set[int](), [0], []

    async def work(number: int) -> None:
        running.add(number)
        most[0] = max(most[0], len(running))
        await asyncio.sleep(0)
        running.remove(number)
        done.append(number)

    await several(range(10), work, 3)

    assert sorted(done) == list(range(10))
    assert most == [3]

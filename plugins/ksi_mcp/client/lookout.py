"""Asks servers of which nothing is known, until something is."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

from ksi_daemon.protocol import KsiError
from ksi_mcp.client.reach import Reach

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.5
T = TypeVar("T")


class Lookout:
    """Has servers connected that nobody can call yet: what tools they have is not known.

    Args:
        unknown: Returns the ways to those servers.
        at_once: How many are asked at once.
    """

    def __init__(self, unknown: Callable[[], list[Reach]], at_once: int) -> None:
        self._unknown = unknown
        self._at_once = at_once
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Have it look whether there are others."""
        self._woken.set()

    async def run(self) -> None:
        """Ask them, each as soon as it may be tried again."""
        while True:
            self._woken.clear()
            unknown = self._unknown()
            due = [each for each in unknown if not each.retry_in_s]
            await several(due, _ask, self._at_once)
            next_s = PAUSE_S if due else min((each.retry_in_s for each in unknown), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next_s):
                    await self._woken.wait()


async def _ask(reach: Reach) -> None:
    try:
        await reach.connected()
    except KsiError as error:
        log.info("a server's tools are not known", extra={"why": error.message})


async def several(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Do what is to be done with each, a few at once."""
    waiting = iter(items)

    async def go_on() -> None:
        for each in waiting:
            await work(each)

    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(go_on(), name=f"one of several {number}")

"""Asks Postgres again and again while it is away: for what was done and must not be lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ksi_daemon.protocol import Busy, KsiError, TimedOut, Unavailable

Answer = TypeVar("Answer")

AWAY: Final = (Unavailable, TimedOut, Busy)
FIRST_DELAY_S: Final = 0.05


def _nothing(_: KsiError) -> None:
    """Tell nobody."""


async def until_there(
    ask: Callable[[], Awaitable[Answer]],
    *,
    max_delay_s: float = 1.0,
    failed: Callable[[KsiError], None] = _nothing,
) -> Answer:
    """Return an answer, as soon as there is one; for as long as that takes.

    Args:
        ask: Asks; called again, with random delays that grow, for as long as Postgres is away.
        max_delay_s: How long the delays become.
        failed: Called with each error that says so; any other is raised.
    """
    bound_s = FIRST_DELAY_S
    while True:
        try:
            return await ask()
        except AWAY as error:
            failed(error)
        await asyncio.sleep(random.uniform(0.0, bound_s))
        bound_s = min(2 * bound_s, max_delay_s)

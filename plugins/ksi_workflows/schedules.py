"""Starts workflows at their times: when is the next, and who starts it."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import msgspec

from ksi_daemon.protocol import Busy, Context, InvalidData, KsiError, TimedOut, Unavailable
from ksi_workflows.store import Store

log = logging.getLogger(__name__)

LONGEST_SLEEP_S: Final = 60.0
BATCH: Final = 100
RETRY_S: Final = 1.0


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        InvalidData: There is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:  # not found, a directory, an absolute path
        raise InvalidData(f"there is no time zone {name!r}: write it as Europe/Oslo") from error


def next_time(cron: str, timezone: str, after: datetime) -> datetime:
    """Return the first time of a cron expression after another.

    Raises:
        InvalidData: The expression or the zone is wrong, or there is no such time.
    """
    from croniter import (  # type: ignore[import-untyped]  # noqa: PLC0415  it takes a while
        CroniterError,
        croniter,
    )

    zone = zone_of(timezone)
    try:
        times = croniter(cron, after.astimezone(zone), second_at_beginning=True)
        found: datetime = times.get_next(datetime)
    except (CroniterError, ValueError, OverflowError) as error:
        raise InvalidData(f"{cron!r} is no time: {error}") from error
    return found.astimezone(UTC)


class Starter(Protocol):
    """Starts a run of a schedule."""

    async def start_scheduled(self, due: Any, run_id: str, context: Context) -> str:
        """Start it, if it is not started yet; return its id."""


class Clock:
    """Starts what is due, and sleeps until the next time.

    Each time has a run's id of its own, and the schedule is moved on only when it still stands
    where it was seen. So daemons may be at it at once, or one may die in between: the run is
    started once.
    """

    def __init__(self, store: Store, starter: Starter) -> None:
        self._store = store
        self._starter = starter
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Look again: a schedule has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Do so for ever."""
        while True:
            self._changed.clear()
            try:
                for due in await self._store.due_schedules(BATCH):
                    await self._start(due)
                wait_s = await self._store.seconds_to_next_schedule()
            except (Unavailable, TimedOut, Busy):
                wait_s = RETRY_S
            await self._sleep(LONGEST_SLEEP_S if wait_s is None else wait_s)

    async def _sleep(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, min(wait_s, LONGEST_SLEEP_S))):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _start(self, due: Any) -> None:
        tick: datetime = due["next_at"]
        run_id = f"schedule-{due['id']}-{tick.astimezone(UTC):%Y%m%dT%H%M%S.%f}"
        context = msgspec.json.decode(due["context"], type=Context)
        run: str | None = None
        why: str | None = None
        try:
            run = await self._starter.start_scheduled(due, run_id, context)
        except (Unavailable, TimedOut, Busy):
            raise
        except KsiError as error:
            why = error.message
            log.warning(
                "a schedule can't start its workflow",
                extra={"schedule": due["name"], "workflow": due["workflow"], "why": why},
            )
        await self._store.move_schedule(due, _after(due), run, why)


def _after(due: Any) -> datetime | None:
    """Return a schedule's next time; those that have gone by are made good by the run just made."""
    if due["cron"] is None:
        return None
    return next_time(due["cron"], due["timezone"], datetime.now(UTC))

"""Writes what the recorder holds, again and again, whatever becomes of Postgres meanwhile."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import asyncpg

from ksi_daemon.protocol import InvalidData, KsiError
from ksi_journal.events import JournalDropped
from ksi_journal.recorder import Recorder
from ksi_journal.rows import cleaned
from ksi_journal.spool import Spool
from ksi_journal.store import Store

log = logging.getLogger(__name__)

RETRY_S: Final = 0.25


class Writer:
    """Two loops: one for ordinary events, one for what must not be lost.

    A batch is numbered, and Postgres notes the number with it; so a batch whose answer was lost
    with the connection is sent again and written once.

    Args:
        store: Where to.
        recorder: Where from.
        spool: Where security-relevant records wait.
        name: Of this start of the daemon; nobody else may write under it.
        flush_interval_s: How long an event waits at most.
        wrote: Called with the last position after each batch.
        tell_dropped: Called when events were lost, once it is over.
    """

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        spool: Spool,
        *,
        name: str,
        flush_interval_s: float,
        wrote: Callable[[int], None],
        tell_dropped: Callable[[JournalDropped], None],
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._spool = spool
        self._name = name
        self._interval_s = flush_interval_s
        self._wrote = wrote
        self._tell_dropped = tell_dropped
        self._number = 0
        self._lock = asyncio.Lock()
        self._security_lock = asyncio.Lock()
        self._knows_moved = False
        self._problems: dict[str, str] = {}
        self.has_waiting = True  # whether others' transactions may have recorded something

    # -- ordinary events ------------------------------------------------------------------------

    async def run(self) -> None:
        """Write when a batch is there, or some time has passed."""
        recorder = self._recorder
        while True:
            await recorder.has_some.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await recorder.is_full.wait()
            if not await self._attempt(self.flush):
                await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Write all that waits now.

        Raises:
            KsiError: Postgres can't take it.
        """
        recorder = self._recorder
        async with self._lock:
            left = recorder.queued  # what comes meanwhile is for the next time
            while left > 0:
                left -= await self._write_next()
        self._tell()

    async def _write_next(self) -> int:
        """Write a batch, and return how many events that was."""
        batch = self._recorder.next_batch()
        try:
            await self._write(batch)
        except (asyncpg.DataError, InvalidData):
            self._recorder.give_back()
            await self._write_singly(len(batch))
        else:
            self._recorder.settle(batch)
        return len(batch)

    async def _write(self, batch: Sequence[bytes]) -> None:
        number = self._number + 1
        self._wrote(await self._store.write(self._name, number, batch, security=False))
        self._number = number

    async def _write_singly(self, count: int) -> None:
        """Write what can be written of a batch that was refused as a whole."""
        for _ in range(count):
            batch = self._recorder.next_batch(1)
            try:
                await self._write([cleaned(line) for line in batch])
            except asyncpg.PostgresError:
                log.exception("an event could not be recorded")
                self._recorder.settle(batch, lost=len(batch))
            else:
                self._recorder.settle(batch)

    def _tell(self) -> None:
        drops = self._recorder.untold
        if not drops.count:
            return
        told = JournalDropped(
            count=drops.count,
            since=_time(drops.since),
            until=_time(drops.until),
            why=self.problem or "more came than could be written (journal.queue_events)",
        )
        drops.count = 0
        self._tell_dropped(told)

    # -- what must not be lost ------------------------------------------------------------------

    async def run_security(self) -> None:
        """Carry over what stands in the file, as soon as something does."""
        urgent = self._recorder.is_urgent
        while True:
            urgent.clear()
            done = await self._attempt(self.carry_over)
            if done:
                await urgent.wait()
            else:
                await asyncio.sleep(RETRY_S)

    async def carry_over(self) -> None:
        """Have the file on the disk, and what stands in it, and what waits, in the journal.

        Raises:
            KsiError: Postgres can't take it; it stays in the file.
        """
        spool = self._spool
        async with self._security_lock:
            if self.has_waiting:
                self.has_waiting = False
                try:
                    self._wrote(await self._store.take_in())
                except KsiError:
                    self.has_waiting = True
                    raise
            await self._look_where_it_stands()
            if spool.waiting_bytes:
                await spool.sync()
            while spool.waiting_bytes:
                lines, end = spool.unmoved()
                self._knows_moved = False  # until it is known that they were written
                await self._write_security(lines, end)
                self._knows_moved = True
                spool.set_moved(end)

    async def _look_where_it_stands(self) -> None:
        if not self._knows_moved:
            self._spool.set_moved(await self._store.written_through(self._spool_name))
            self._knows_moved = True

    @property
    def _spool_name(self) -> str:
        return f"spool {self._spool.name}"

    async def _write_security(self, lines: Sequence[bytes], end: int) -> None:
        name = self._spool_name
        try:
            self._wrote(await self._store.write(name, end, lines, security=True))
        except (asyncpg.DataError, InvalidData):
            tidy = [cleaned(line) for line in lines]
            self._wrote(await self._store.write(name, end, tidy, security=True))

    def come_for_waiting(self) -> None:
        """Give positions to what was recorded in others' transactions, soon."""
        self.has_waiting = True
        self._recorder.is_urgent.set()

    # -- trouble --------------------------------------------------------------------------------

    @property
    def problem(self) -> str | None:
        """Why nothing is written just now."""
        return next(iter(self._problems.values()), None)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except KsiError as error:
            self._problems[work.__name__] = error.message
            return False
        self._problems.pop(work.__name__, None)
        return True


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

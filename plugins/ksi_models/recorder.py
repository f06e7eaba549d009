"""Sees to it that each call leaves its row, also where Postgres is away just then."""

import asyncio
import logging
from collections import deque
from typing import Final

from msgspec import structs

from ksi_daemon.protocol import KsiError, Unavailable
from ksi_models.store import Beginning, CallRow, Store
from ksi_postgres.patience import until_there

log = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000
MAX_DELAY_S: Final = 5.0
LAST_FLUSH_S: Final = 2.0


class Recorder:
    """Writes rows, at once or as soon as that can be done.

    Args:
        store: Where to.
        timeout_s: How long a call's answer waits for its row.
    """

    def __init__(self, store: Store, timeout_s: float) -> None:
        self.dropped = 0
        self._store = store
        self._timeout_s = timeout_s
        self._waiting: deque[CallRow] = deque()
        self._begun: deque[Beginning] = deque()
        self._news = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many rows are not written yet."""
        return len(self._waiting)

    def begin(self, beginning: Beginning) -> None:
        """Note soon that a provider is asked; nobody waits for that, and it may be given up."""
        if len(self._begun) < MAX_WAITING:
            self._begun.append(beginning)
            self._news.set()

    async def write(self, row: CallRow) -> None:
        """Write a row; return when Postgres has it.

        Raises:
            Unavailable: It has not in time. The row is written later, so that what was spent is
                not forgotten.
        """
        is_written = False
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._until_written(row)
                is_written = True
        except TimeoutError as error:
            raise Unavailable(
                "the model has answered, but what that took can't be recorded, as Postgres is "
                "away (models.record_timeout_s)",
                retry_after_s=MAX_DELAY_S,
                details={"kind": "not_recorded", "setting": "models.record_timeout_s"},
            ) from error
        finally:
            if not is_written:
                self.later(row)

    async def _until_written(self, row: CallRow) -> None:
        await until_there(
            lambda: self._store.record(row, self._timeout_s),
            max_delay_s=MAX_DELAY_S,
            failed=_log_late,
        )

    def later(self, row: CallRow) -> None:
        """Write a row soon, without waiting."""
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            _log_lost(self._waiting.popleft(), "too many wait to be recorded")
        self._waiting.append(row)
        self._news.set()

    async def run(self) -> None:
        """Write what waits."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self._write_begun()
            while self._waiting:
                row = self._waiting[0]
                try:
                    await self._until_written(row)
                except Exception as error:  # noqa: BLE001  no row may keep the others from being written
                    self.dropped += 1
                    _log_lost(row, f"it can't be written: {type(error).__name__}")
                if self._waiting and self._waiting[0] is row:
                    self._waiting.popleft()

    async def _write_begun(self) -> None:
        while self._begun:
            try:
                await self._store.begin(self._begun.popleft(), self._timeout_s)
            except KsiError as error:
                self._begun.clear()  # the end of a call leaves its row in any case
                log.warning("that a call began can't be noted", extra={"why": error.message})

    async def flush(self) -> None:
        """Write what still waits, as the daemon stops; what can't be written is logged."""
        try:
            async with asyncio.timeout(LAST_FLUSH_S):
                while self._waiting:
                    await self._store.record(self._waiting[0], LAST_FLUSH_S)
                    self._waiting.popleft()
        except (KsiError, TimeoutError) as error:
            for row in self._waiting:
                _log_lost(row, str(error) or "it took too long")


def _log_late(error: KsiError) -> None:
    log.warning("what a call took can't be recorded yet", extra={"why": error.message})


def _log_lost(row: CallRow, why: str) -> None:
    log.error("a call's row is lost", extra={"why": why, "row": structs.asdict(row)})

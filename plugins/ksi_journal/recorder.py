"""Takes events as they happen, and holds them until they are written."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ksi_daemon.protocol import Event, Unavailable
from ksi_daemon.protocol.names import matches_any
from ksi_journal.rows import Rows
from ksi_journal.settings import JournalSettings
from ksi_journal.spool import Spool

log = logging.getLogger(__name__)

DENIED: Final = "denied"
MAX_COUNTED: Final = 4096
ALWAYS: Final = ("journal:dropped",)


class Drops:
    """What could not be recorded since that was last told of."""

    def __init__(self) -> None:
        self.count = 0
        self.since = 0.0
        self.until = 0.0

    def add(self, count: int) -> None:
        """Count events that are lost."""
        self.until = time.time()
        if not self.count:
            self.since = self.until
        self.count += count


class Recorder:
    """A bounded queue of rows; one too many is dropped and counted.

    It is a listener of the router's: each event that it wants costs its sender the making of one
    row, and an event that it doesn't want costs nothing, since who wants what is asked once a name.
    """

    outcomes = True

    def __init__(self, settings: JournalSettings, spool: Spool) -> None:
        self._events = (*settings.events, *ALWAYS)
        self._security = settings.security_events
        self._leave_out = settings.leave_out
        self._batch = settings.batch_events
        self._max_events = settings.queue_events
        self._max_bytes = settings.queue_bytes
        self._queue: deque[bytes] = deque()
        self._attempted = 0  # how many of them are being written, or may have been
        self._spool = spool
        self._is_security: dict[str, bool] = {}
        self.rows = Rows(settings.max_payload_bytes, settings.max_kept_payload_bytes)
        self.queued_bytes = 0
        self.accepted = 0
        self.written = 0
        self.dropped = 0
        self.secured = 0
        self.untold = Drops()
        self.counts: dict[tuple[str, str], int] = {}
        self.has_some = asyncio.Event()
        self.is_full = asyncio.Event()  # a batch is there
        self.is_urgent = asyncio.Event()  # something security-relevant is there

    # -- what is recorded -----------------------------------------------------------------------

    def wants(self, name: str) -> bool:
        """Say whether events of this name are recorded."""
        if matches_any(name, self._security):
            return True
        return matches_any(name, self._events) and not matches_any(name, self._leave_out)

    def is_security(self, name: str) -> bool:
        """Say whether events of this name are recorded without fail."""
        known = self._is_security.get(name)
        if known is None:
            if len(self._is_security) >= MAX_COUNTED:
                self._is_security.clear()
            known = self._is_security[name] = matches_any(name, self._security)
        return known

    # -- taking ---------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """How many events wait to be written."""
        return len(self._queue)

    def deliver(self, event: Event) -> None:
        """Take an event that was handled."""
        error = event.outcome.error if event.outcome is not None else None
        if self.is_security(event.name) or (error is not None and error.code == DENIED):
            self.secure(event)
            return
        line = self.rows.line(event)
        self.accepted += 1
        if len(self._queue) >= self._max_events or self.queued_bytes > self._max_bytes:
            self._lose(1)
            return
        self._queue.append(line)
        self.queued_bytes += len(line)
        self._count(event)
        waiting = len(self._queue)
        if waiting == 1:
            self.has_some.set()
        if waiting >= self._batch:
            self.is_full.set()

    def secure(self, event: Event) -> None:
        """Take what must not be lost; where there is no room for it, that is all that is known."""
        try:
            self.secure_first(event)
        except Unavailable as error:
            log.error(
                "a security-relevant event could not be recorded",
                extra={"event": event.name, "event_id": event.context.id, "why": error.message},
            )

    def secure_first(self, event: Event, *, begun: bool = False) -> None:
        """Record what must not happen unrecorded.

        Raises:
            Unavailable: There is no room for it.
        """
        self._spool.append(self.rows.line(event, begun=begun))
        self.secured += 1
        if not begun:
            self._count(event)
        self.is_urgent.set()

    def _count(self, event: Event) -> None:
        key = (event.context.tenant, event.name)
        if key in self.counts or len(self.counts) < MAX_COUNTED:
            self.counts[key] = self.counts.get(key, 0) + 1

    def _lose(self, count: int) -> None:
        self.dropped += count
        self.untold.add(count)

    # -- giving away ----------------------------------------------------------------------------

    def next_batch(self, at_most: int | None = None) -> list[bytes]:
        """Return what is to be written next; it stays queued until `settle` or `give_back`.

        Until then the same comes again: Postgres may have a batch whose answer was lost, and knows
        it by its number alone.
        """
        if not self._attempted:
            self._attempted = min(at_most or self._batch, len(self._queue))
        return list(itertools.islice(self._queue, self._attempted))

    def give_back(self) -> None:
        """Say that Postgres has refused what was to be written next."""
        self._attempted = 0

    def settle(self, batch: Sequence[bytes], *, lost: int = 0) -> None:
        """Take a batch out of the queue: it is written, but for so many that are lost."""
        self._attempted = 0
        for _ in batch:
            self.queued_bytes -= len(self._queue.popleft())
        self.written += len(batch) - lost
        if lost:
            self._lose(lost)
        if len(self._queue) < self._batch:
            self.is_full.clear()
        if not self._queue:
            self.has_some.clear()


class Published:
    """Shows a recorder what was published: what nobody answers has no outcome to wait for."""

    outcomes = False

    def __init__(self, recorder: Recorder, is_answered: Callable[[str], bool]) -> None:
        self._recorder = recorder
        self._is_answered = is_answered

    def wants(self, name: str) -> bool:
        """Say whether events of this name are recorded."""
        return self._recorder.wants(name)

    def deliver(self, event: Event) -> None:
        """Take an event, unless it is about to be handled."""
        if not self._is_answered(event.name):
            self._recorder.deliver(event)

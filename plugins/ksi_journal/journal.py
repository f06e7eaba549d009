"""The journal as other plugins use it: record in a transaction, read on from a position."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from ksi_daemon.event_system import current_context
from ksi_daemon.protocol import Context, ErrorBody, Event, InvalidData, Outcome
from ksi_daemon.protocol.names import check_name, check_pattern, matches_any
from ksi_journal.recorder import Recorder
from ksi_journal.settings import JournalSettings
from ksi_journal.store import Bounds, Page, Store
from ksi_journal.writer import Writer
from ksi_postgres.database import Connection

__all__ = ["Bounds", "Journal", "Page"]

MAX_READ: Final = 1000


class News:
    """Wakes whoever waits for records after a position."""

    def __init__(self) -> None:
        self.position = 0
        self._changed = asyncio.Event()

    def tell(self, position: int) -> None:
        """Say that there are records up to a position."""
        if position > self.position:
            self.position = position
            self.wake()

    def wake(self) -> None:
        """Have everybody look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, position: int) -> None:
        """Return when there may be records after a position; there need not be any of one's own."""
        changed = self._changed
        if self.position <= position:
            await changed.wait()


class Journal:
    """What happened, in an order: ``plugin.service(Journal)``.

    Records have positions, which are counted for all tenants together and become visible in their
    order, also where several daemons write: who has read up to one misses nothing by going on from
    there.

    Args:
        settings: What is recorded.
        store: Where.
        recorder: What this daemon records.
        writer: What writes that.
        new_id: Makes an event's id.
    """

    def __init__(
        self,
        settings: JournalSettings,
        store: Store,
        recorder: Recorder,
        writer: Writer,
        news: News,
        new_id: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._store = store
        self._recorder = recorder
        self._writer = writer
        self._news = news
        self._new_id = new_id

    # -- recording ------------------------------------------------------------------------------

    async def record(
        self,
        connection: Connection,
        event: str,
        data: Any,
        *,
        context: Context | None = None,
        error: ErrorBody | None = None,
    ) -> None:
        """Record something in the caller's own transaction: both are there, or neither.

        For what is security-relevant: spends, approvals, changes. It has its position a moment
        after the transaction has committed. Secrets in it are masked.

        Args:
            connection: In a transaction, as `Database.transaction` yields it.
            event: A name; nobody has to answer it.
            data: A Struct or plain data.
            context: Whose it is, and what caused it; that of the event that is being handled
                unless given, of which it is an effect.
            error: Why it was refused, if it was.

        Raises:
            InvalidData: The name is none.
        """
        cause = context or current_context()
        own = self._effect_of(cause)
        outcome = Outcome(0.0, error)
        row = self._recorder.rows.line(Event(check_name(event), data, own, outcome))
        await self._store.record(connection, row)

    def _effect_of(self, cause: Context | None) -> Context:
        if cause is None:
            return Context(self._new_id(), None, "journal")
        return Context(
            self._new_id(),
            cause.id,
            cause.origin,
            cause.tenant,
            cause.user,
            cause.agent,
            cause.conversation,
            cause.run,
        )

    def check_recorded(self, pattern: str) -> None:
        """Make sure that all events of a pattern are recorded.

        Raises:
            InvalidData: It is no pattern, or some are not.
        """
        check_pattern(pattern)
        settings = self._settings
        is_left_out = matches_any(pattern, settings.leave_out)
        recorded = () if is_left_out else settings.events
        if not matches_any(pattern, (*recorded, *settings.security_events)):
            raise InvalidData(
                f"the journal does not record all events of {pattern!r}: add it to the setting "
                "journal.events"
            )

    # -- reading --------------------------------------------------------------------------------

    async def read_after(
        self, tenant: str, patterns: Sequence[str], position: int, limit: int = 100
    ) -> Page:
        """Return a tenant's records after a position, in their order, with their payloads.

        A page has at most ``limit`` records, and about a megabyte. Go on from its ``through``: that
        is the last record of a page that was cut, and else how far was looked. A payload is a
        `msgspec.Raw`. With a position below `bounds`' ``dropped_through`` some may be missing.

        Raises:
            InvalidData: A pattern is none, or the limit is none or too large.
            Unavailable: Postgres can't be reached.
        """
        if not 1 <= limit <= MAX_READ:
            raise InvalidData(f"limit: 1 to {MAX_READ} records are read at once")
        for pattern in patterns:
            check_pattern(pattern)
        return await self._store.read_after(tenant, patterns, position, limit)

    async def bounds(self) -> Bounds:
        """Return the newest position, and up to which retention may have dropped records."""
        return await self._store.bounds()

    async def wait_after(self, position: int) -> None:
        """Return when there may be records after a position, whoever's they are."""
        await self._news.wait(position)

    async def flush(self) -> None:
        """Have all that this daemon has recorded so far in Postgres.

        Raises:
            Unavailable: Postgres can't be reached.
        """
        await self._writer.flush()
        await self._writer.carry_over()

"""Answers ``journal:*`` and tells of the journal's health."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from ksi_daemon.event_system import current_context, event_contributor, event_handler
from ksi_daemon.protocol import Context, KsiError, NotFound
from ksi_daemon.protocol.names import check_pattern
from ksi_journal import events as e
from ksi_journal.journal import Journal
from ksi_journal.recorder import Recorder
from ksi_journal.spool import Spool
from ksi_journal.store import Filters, Store
from ksi_journal.trees import tree_of
from ksi_journal.writer import Writer
from ksi_system.events import HealthCheck, HealthChecked

WARN_S: Final = 600.0
TAIL_PAGE: Final = 200


class Handlers:
    """Reads the journal for whoever asks, each tenant its own part."""

    def __init__(
        self, journal: Journal, store: Store, recorder: Recorder, spool: Spool, writer: Writer
    ) -> None:
        self._journal = journal
        self._store = store
        self._recorder = recorder
        self._spool = spool
        self._writer = writer

    @event_handler("journal:history")
    async def history(self, request: e.JournalHistory) -> e.JournalHistoryListed:
        """List what happened, the newest first."""
        for pattern in request.patterns:
            check_pattern(pattern)
        await self._catch_up()
        wanted = {name: getattr(request, name) for name in Filters.__struct_fields__}
        records, cursor = await self._store.history(
            tenant(), Filters(**wanted), request.cursor, request.limit, payloads=request.payloads
        )
        return e.JournalHistoryListed(records=tuple(records), cursor=cursor)

    @event_handler("journal:get")
    async def get(self, request: e.JournalGet) -> e.JournalGot:
        """Show all that was recorded of one event, with its payload."""
        await self._catch_up()
        records = await self._store.event(tenant(), request.id)
        if not records:
            raise NotFound(f"nothing is recorded of the event {request.id!r}")
        return e.JournalGot(records=tuple(records))

    @event_handler("journal:trace")
    async def trace(self, request: e.JournalTrace) -> e.JournalTraced:
        """Show what caused an event, and all that followed from that."""
        await self._catch_up()
        whose = tenant()
        root, above = await self._store.root(whose, request.id, request.max_depth)
        # One more than is wanted, of each: so that what is left out is noticed.
        found = await self._store.effects(whose, root, request.max_depth, request.limit + 1)
        if not found:
            raise NotFound(f"nothing is recorded of the event {request.id!r}")
        return tree_of(found, request, root=root, above=above)

    @event_handler("journal:tail")
    async def tail(self, request: e.JournalTail) -> AsyncIterator[e.JournalRecord]:
        """Follow what happens, from a position on or from now."""
        for pattern in request.patterns:
            check_pattern(pattern)
        whose, position = tenant(), request.after
        if position is None:
            position = (await self._journal.bounds()).last
        while True:
            page = await self._store.read_after(
                whose, request.patterns, position, TAIL_PAGE, payloads=request.payloads
            )
            for record in page.records:
                yield record
            if not page.records:
                await self._journal.wait_after(page.through)
            position = page.through

    @event_handler("journal:stats")
    async def stats(self, request: e.JournalStats) -> e.JournalStatsReport:
        """Tell what was recorded, dropped and kept."""
        recorder, whose = self._recorder, tenant()
        bounds = await self._journal.bounds()
        partitions = await self._store.partitions()
        counts = [
            e.EventCount(event=name, count=count)
            for (of_tenant, name), count in recorder.counts.items()
            if of_tenant == whose
        ]
        return e.JournalStatsReport(
            accepted=recorder.accepted,
            written=recorder.written,
            dropped=recorder.dropped,
            queued=recorder.queued,
            queued_bytes=recorder.queued_bytes,
            secured=recorder.secured,
            spooled_bytes=self._spool.waiting_bytes,
            unrecorded=self._spool.refused,
            last_position=bounds.last,
            dropped_through=bounds.dropped_through,
            events=tuple(sorted(counts, key=lambda each: (-each.count, each.event))),
            partitions=partitions,
        )

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether all that is to be recorded is."""
        recorder, spool = self._recorder, self._spool
        if spool.refused:
            why = (
                f"{spool.refused} security-relevant records could not be made: journal.spool_bytes"
            )
            return HealthChecked(health="degraded", why=why)
        if recorder.dropped and time.time() - recorder.untold.until < WARN_S:
            why = self._writer.problem or "more came than could be written (journal.queue_events)"
            told = f"{recorder.dropped} events were not recorded: {why}"
            return HealthChecked(health="degraded", why=told)
        if self._writer.problem is not None:
            why = f"nothing is recorded just now, {recorder.queued} events wait: "
            return HealthChecked(health="degraded", why=why + self._writer.problem)
        return HealthChecked()

    async def _catch_up(self) -> None:
        """Let those who ask see what has just happened."""
        with contextlib.suppress(KsiError):  # the question itself will say what is wrong
            await self._journal.flush()


def tenant() -> str:
    """Return whose records are asked for."""
    return (current_context() or Context("")).tenant

"""Writes and reads the journal's tables."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from ksi_journal.events import JournalRecord, PartitionSize
from ksi_postgres.database import Connection, Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
PAGE_BYTES: Final = 1024 * 1024


class Filters(Struct, frozen=True, kw_only=True):
    """What `Store.history` is asked for; ``None`` is no condition."""

    patterns: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    outcome: str | None = None
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    text: str | None = None


class Page(Struct, frozen=True):
    """Records in their order.

    Attributes:
        records: At most as many as were asked for.
        through: The position to go on after: what comes up to there was all looked at.
    """

    records: tuple[JournalRecord, ...]
    through: int


class Bounds(Struct, frozen=True):
    """Which positions there are.

    Attributes:
        last: The newest one.
        dropped_through: Records up to this one may have been dropped by retention.
    """

    last: int
    dropped_through: int


class Store:
    """The journal in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(
        self, writer: str, through: int, lines: Iterable[bytes], *, security: bool
    ) -> int:
        """Write a batch, unless this writer has come that far, and return the last position."""
        batch = b"[" + b",".join(lines) + b"]"
        row = await self._database.fetchrow(SQL["write"], writer, through, security, batch.decode())
        assert row is not None
        position: int = row["last_position"]
        return position

    async def take_in(self) -> int:
        """Give positions to what was recorded in others' transactions; return the last one."""
        position: int = await self._database.fetchval(SQL["take_in"])
        return position

    async def record(self, connection: Connection, line: bytes) -> None:
        """Record something in the transaction of a connection."""
        await connection.execute(SQL["record"], line.decode())

    async def written_through(self, writer: str) -> int:
        """Return how far a writer has come."""
        return await self._database.fetchval(SQL["written_through"], writer) or 0

    async def bounds(self) -> Bounds:
        """Return which positions there are."""
        row = await self._database.fetchrow(SQL["head"])
        assert row is not None
        return Bounds(row["last"], row["dropped_through"])

    async def read_after(
        self,
        tenant: str,
        patterns: Sequence[str],
        position: int,
        limit: int,
        *,
        payloads: bool = True,
    ) -> Page:
        """Return a tenant's records that come after a position, the oldest first."""
        rows = await self._database.fetch(
            SQL["read_after"], tenant, likes(patterns), position, limit, PAGE_BYTES, payloads
        )
        records = tuple(
            record_of(row, payloads=payloads) for row in rows if row["position"] is not None
        )
        size = sum(record.payload_bytes for record in records)
        if len(records) == limit or size >= PAGE_BYTES:
            return Page(records, records[-1].position)
        return Page(records, max(position, rows[0]["through"]))

    async def history(
        self, tenant: str, filters: Filters, cursor: int | None, limit: int, *, payloads: bool
    ) -> tuple[list[JournalRecord], int | None]:
        """Return a tenant's records that pass the filters, and a cursor if there are more."""
        failed_only = filters.outcome == "failed"
        outcomes = [filters.outcome] if filters.outcome and not failed_only else None
        rows = await self._database.fetch(
            SQL["history"],
            tenant,
            likes(filters.patterns) if filters.patterns else None,
            filters.since,
            filters.until,
            outcomes,
            failed_only,
            filters.user,
            filters.agent,
            filters.conversation,
            filters.run,
            filters.text or None,
            cursor,
            limit + 1,
        )
        kept: list[JournalRecord] = []
        size = 0
        for row in rows[:limit]:
            if payloads and kept and size > PAGE_BYTES:
                break
            size += row["payload_bytes"] if row["payload"] is not None else 0
            kept.append(record_of(row, payloads=payloads))
        return kept, kept[-1].position if len(kept) < len(rows) else None

    async def event(self, tenant: str, event_id: str) -> list[JournalRecord]:
        """Return what was recorded of one event."""
        rows = await self._database.fetch(SQL["event"], tenant, event_id)
        return [record_of(row, payloads=True) for row in rows]

    async def root(self, tenant: str, event_id: str, max_depth: int) -> tuple[str, int]:
        """Return the furthest recorded cause of an event, and how many steps it is away."""
        row = await self._database.fetchrow(SQL["root"], tenant, event_id, max_depth)
        assert row is not None
        return row["id"], row["depth"]

    async def effects(
        self, tenant: str, root: str, max_depth: int, max_events: int
    ) -> list[tuple[JournalRecord, int]]:
        """Return an event and what it caused, each with its distance."""
        rows = await self._database.fetch(SQL["effects"], tenant, root, max_depth, max_events)
        return [(record_of(row, payloads=False), row["depth"]) for row in rows]

    async def partitions(self) -> tuple[PartitionSize, ...]:
        """List the parts of the journal."""
        return tuple(
            PartitionSize(
                partition=row["partition"],
                bytes=row["bytes"],
                estimated_rows=row["estimated_rows"],
            )
            for row in await self._database.fetch(SQL["partitions"])
        )

    async def make_ahead(self, days: int) -> None:
        """Make the partitions of the days to come."""
        await self._database.execute(SQL["make_ahead"], days)

    async def drop_one(
        self, days: int, security_days: int, max_bytes: int
    ) -> tuple[str, str] | None:
        """Drop the oldest part if it is too old, or all are too much; return which, and why.

        Raises:
            Busy: Somebody reads; try again.
        """
        row = await self._database.fetchrow(SQL["retain"], days, security_days, max_bytes)
        return None if row is None else (row["partition"], row["why"])


def likes(patterns: Sequence[str]) -> list[str]:
    """Return globs over names as patterns of LIKE."""
    table = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_", "*": "%", "?": "_"})
    return [pattern.translate(table) for pattern in patterns or ("*",)]


def record_of(row: Any, *, payloads: bool) -> JournalRecord:
    """Make a record of a row."""
    payload = row["payload"] if payloads else None
    return JournalRecord(
        position=row["position"],
        at=row["at"],
        event=row["name"],
        id=row["id"],
        parent=row["parent"],
        origin=row["origin"],
        user=row["on_behalf_of"],
        agent=row["agent"],
        conversation=row["conversation"],
        run=row["run"],
        outcome=row["outcome"],
        message=row["message"],
        duration_s=row["duration_s"],
        payload=None if payload is None else Raw(payload.encode()),
        payload_bytes=row["payload_bytes"],
    )


def plain_payload(record: JournalRecord) -> Any:
    """Return a record's payload as plain data."""
    payload = record.payload
    return msgspec.json.decode(payload) if isinstance(payload, Raw) else payload

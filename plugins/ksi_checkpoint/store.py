"""Keeps checkpoints and subscriptions in Postgres."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_checkpoint.events import CheckpointSummary
from ksi_checkpoint.states import Saved
from ksi_daemon.protocol import Context, ErrorBody, NotFound
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)


class Head(Struct, frozen=True):
    """A checkpoint without what it holds."""

    id: int
    daemon: str
    reason: str
    taken_at: datetime


class Entry(Struct, frozen=True):
    """What a checkpoint holds of a plugin, without the state itself."""

    plugin: str
    version: int | None
    size_bytes: int | None
    checksum: bytes | None
    error: ErrorBody | None


class State(Struct, frozen=True):
    """A plugin's state as it lies in the database; whether it is sound is to be checked."""

    checkpoint: int
    version: int
    state: bytes
    checksum: bytes


class Checkpoints:
    """The checkpoints of all daemons that use this Postgres.

    Args:
        database: The store.
        daemon: Which of them this is.
    """

    def __init__(self, database: Database, daemon: str) -> None:
        self.daemon = daemon
        self._database = database

    async def save(
        self,
        entries: Sequence[Saved],
        reason: str,
        *,
        keep_count: int,
        keep_days: float,
        timeout_s: float,
    ) -> Head:
        """Save a checkpoint, and forget those that need not be kept."""
        row = await self._database.fetchrow(
            SQL["save"],
            self.daemon,
            reason,
            [each.plugin for each in entries],
            [each.version for each in entries],
            [each.state for each in entries],
            [each.checksum for each in entries],
            [_encoded(each.error) for each in entries],
            keep_count,
            timedelta(days=keep_days),
            timeout_s=timeout_s,
        )
        assert row is not None
        return Head(row["saved_id"], self.daemon, reason, row["saved_at"])

    async def find(self, checkpoint: int | None) -> Head:
        """Return a checkpoint, or this daemon's newest.

        Raises:
            NotFound: There is none.
        """
        row = await self._found(checkpoint)
        if row is None:
            which = "this daemon has no checkpoint" if checkpoint is None else None
            raise NotFound(which or f"there is no checkpoint {checkpoint}")
        return Head(**row)

    async def newest(self) -> Head | None:
        """Return this daemon's newest checkpoint, if it has one."""
        row = await self._found(None)
        return None if row is None else Head(**row)

    async def _found(self, checkpoint: int | None) -> Any:
        if checkpoint is None:
            return await self._database.fetchrow(SQL["newest"], self.daemon)
        return await self._database.fetchrow(SQL["find"], checkpoint)

    async def list(self, limit: int, *, all_daemons: bool) -> tuple[CheckpointSummary, ...]:
        """List checkpoints, the newest first."""
        whose = None if all_daemons else self.daemon
        rows = await self._database.fetch(SQL["list"], whose, limit)
        return tuple(CheckpointSummary(**row) for row in rows)

    async def entries(self, checkpoint: int) -> tuple[Entry, ...]:
        """Return what a checkpoint holds, by plugin."""
        rows = await self._database.fetch(SQL["entries"], checkpoint)
        return tuple(
            Entry(row["plugin"], row["version"], row["size_bytes"], row["checksum"], _decoded(row))
            for row in rows
        )

    async def states(self, head: Head, plugin: str) -> AsyncIterator[State]:
        """Yield a plugin's states of a daemon, from a checkpoint's own back to older ones."""
        upto = head.id
        while True:
            row = await self._database.fetchrow(SQL["entry_before"], head.daemon, plugin, upto)
            if row is None:
                return
            yield State(**row)
            upto = row["checkpoint"] - 1

    async def delete(self, checkpoint: int) -> None:
        """Delete a checkpoint.

        Raises:
            NotFound: There is none of that id.
        """
        if await self._database.fetchval(SQL["delete"], checkpoint) is None:
            raise NotFound(f"there is no checkpoint {checkpoint}")


def _encoded(error: ErrorBody | None) -> str | None:
    return None if error is None else msgspec.json.encode(error).decode()


def _decoded(row: Any) -> ErrorBody | None:
    text = row["error"]
    return None if text is None else msgspec.json.decode(text, type=ErrorBody)


class Subscription(Struct, frozen=True, kw_only=True):
    """A durable subscription; the fields from ``user`` on say whose events it is limited to."""

    name: str
    pattern: str
    position: int
    created_at: datetime
    acknowledged_at: datetime | None
    user: str | None
    agent: str | None
    conversation: str | None
    run: str | None


class Subscriptions:
    """The tenants' durable subscriptions, by functions that take the tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, whose: Context, name: str, pattern: str, position: int, at_most: int
    ) -> Subscription | None:
        """Make a subscription, or return the one of that name; ``None`` where there are enough."""
        row = await self._database.fetchrow(
            SQL["create_subscription"],
            whose.tenant,
            name,
            pattern,
            whose.user,
            whose.agent,
            whose.conversation,
            whose.run,
            position,
            at_most,
        )
        return None if row is None else _subscription(row)

    async def find(self, tenant: str, name: str) -> Subscription | None:
        """Return a subscription, if there is one of that name."""
        row = await self._database.fetchrow(SQL["find_subscription"], tenant, name)
        return None if row is None else _subscription(row)

    async def list(self, tenant: str) -> tuple[Subscription, ...]:
        """Return a tenant's subscriptions, by name."""
        rows = await self._database.fetch(SQL["list_subscriptions"], tenant)
        return tuple(map(_subscription, rows))

    async def move(
        self, tenant: str, name: str, position: int, *, acknowledged: bool
    ) -> int | None:
        """Move a cursor on, never back, and return where it stands; ``None`` where it is gone."""
        found: int | None = await self._database.fetchval(
            SQL["move_subscription"], tenant, name, position, acknowledged
        )
        return found

    async def delete(self, tenant: str, name: str) -> bool:
        """End a subscription, and say whether there was one."""
        there: bool = await self._database.fetchval(SQL["delete_subscription"], tenant, name)
        return there


def _subscription(row: Any) -> Subscription:
    return Subscription(
        name=row["name"],
        pattern=row["pattern"],
        position=row["position"],
        created_at=row["created_at"],
        acknowledged_at=row["acknowledged_at"],
        user=row["on_behalf_of"],
        agent=row["agent"],
        conversation=row["conversation"],
        run=row["run"],
    )

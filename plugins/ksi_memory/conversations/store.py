"""Keeps how far conversations were read, what covers them, and what dreams go over."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Final
from uuid import UUID

from msgspec import Struct

from ksi_memory.events import Item
from ksi_memory.items.store import item_of
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)


class Reading(Struct, frozen=True):
    """How far a conversation was read, and how far it can be.

    Attributes:
        owner: Whose it is.
        after: The last message that was read.
        through: The last one that can be.
        after_turn: The last turn that was read.
        through_turn: The last one that can be.
        covered: The last message that a moment covers.
        spoken: The turns in between that a person asked for.
    """

    owner: str
    after: int
    through: int
    after_turn: int
    through_turn: int
    covered: int
    spoken: frozenset[int]


class Unread(Struct, frozen=True):
    """A conversation that somebody should read."""

    tenant: str
    conversation: str
    owner: str | None
    turn: int


class Coverage(Struct, frozen=True):
    """How far the moments of a conversation go."""

    message: int
    covered: int
    uncovered_tokens: int
    chunks: int


class OpenChunk(Struct, frozen=True):
    """A moment that is to be written: of which messages, and which of them are left out."""

    number: int
    first: int
    last: int
    tokens: int
    changes: int
    left_out: frozenset[int]
    has_previous: bool


class Recalled(Struct, frozen=True):
    """A fact or a pattern, as it is told before a turn."""

    table: str
    key: str
    body: str
    title: str
    confidence: float | None


class Pair(Struct, frozen=True):
    """Two entities that are mentioned together: how often, how strongly, and where last."""

    one: str
    other: str
    mentions: int
    weight: float
    last_at: datetime
    places: tuple[tuple[str, int], ...]


class ConversationStore:
    """What the memory keeps of conversations, one round trip each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- reading --------------------------------------------------------------------------------

    async def begin_reading(self, tenant: str, conversation: str) -> Reading | None:
        """Return how far a conversation was read; ``None`` where there is none."""
        row = await self._database.fetchrow(SQL["begin_reading"], tenant, conversation)
        if row is None:
            return None
        return Reading(
            owner=row["owner"],
            after=row["after_message"],
            through=row["through_message"],
            after_turn=row["after_turn"],
            through_turn=row["through_turn"],
            covered=row["covered"],
            spoken=frozenset(row["spoken"]),
        )

    async def end_reading(
        self, tenant: str, conversation: str, reading: Reading, tokens: int
    ) -> bool:
        """Note that a conversation was read; ``False`` where another has done so meanwhile."""
        return bool(
            await self._database.fetchval(
                SQL["end_reading"],
                tenant,
                conversation,
                reading.after,
                reading.through,
                reading.through_turn,
                reading.covered,
                tokens,
            )
        )

    async def unread(
        self, within: timedelta, but_not_within: timedelta, limit: int
    ) -> list[Unread]:
        """Return conversations of all tenants that a daemon left unread."""
        rows = await self._database.fetch(SQL["unread"], within, but_not_within, limit)
        return [Unread(r["tenant"], r["conversation"], r["owner"], r["turn"]) for r in rows]

    # -- moments --------------------------------------------------------------------------------

    async def coverage(self, tenant: str, conversation: str) -> Coverage | None:
        """Return how far the moments of a conversation go; ``None`` where it was not read yet."""
        row = await self._database.fetchrow(SQL["coverage"], tenant, conversation)
        return None if row is None else Coverage(*row)

    async def plan_chunk(
        self,
        tenant: str,
        conversation: str,
        known: Coverage,
        through: int,
        tokens: int,
        moment: UUID,
    ) -> bool:
        """Say which messages the next moment covers; ``False`` where that was said meanwhile."""
        number = known.chunks + 1
        return bool(
            await self._database.fetchval(
                SQL["plan_chunk"],
                tenant,
                conversation,
                known.covered,
                through,
                tokens,
                number,
                moment,
            )
        )

    async def open_chunks(self, tenant: str, conversation: str, limit: int) -> list[OpenChunk]:
        """Return the moments of a conversation that are to be written."""
        rows = await self._database.fetch(SQL["open_chunks"], tenant, conversation, limit)
        return [
            OpenChunk(
                row["number"],
                row["first_message"],
                row["last_message"],
                row["tokens"],
                row["changes"],
                frozenset(row["left_out"]),
                row["has_previous"],
            )
            for row in rows
        ]

    async def close_chunk(
        self, tenant: str, conversation: str, chunk: OpenChunk, state: str
    ) -> bool:
        """Note that a moment is written; ``False`` where it is to be written anew."""
        return bool(
            await self._database.fetchval(
                SQL["close_chunk"], tenant, conversation, chunk.number, chunk.changes, state
            )
        )

    async def moments(
        self,
        whose: Whose,
        *,
        type: str | None = None,  # noqa: A002  it is what the field is called
        conversation: str | None = None,
        person: str | None = None,
        topic: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[datetime, UUID] | None = None,
        limit: int = 50,
    ) -> list[Item]:
        """Return moments, the newest first."""
        before_at, before_id = before or (None, None)
        rows = await self._database.fetch(
            SQL["list_moments"],
            whose.tenant,
            whose.user,
            type,
            conversation,
            person,
            topic,
            since,
            until,
            before_at,
            before_id,
            limit,
        )
        return [item_of(row) for row in rows]

    async def lying_still(
        self, tenant: str, owner: str, least_tokens: int, idle: timedelta, limit: int
    ) -> list[tuple[str, int]]:
        """Return conversations with so many uncovered tokens that nobody uses, and how many."""
        rows = await self._database.fetch(
            SQL["lying_still"], tenant, owner, least_tokens, idle, limit
        )
        return [(row["conversation"], row["tokens"]) for row in rows]

    # -- before a turn --------------------------------------------------------------------------

    async def recalled(
        self, tenant: str, owner: str, facts: int, patterns: int, patterns_since: datetime
    ) -> list[Recalled]:
        """Return the facts of an owner and of everybody, then recent patterns."""
        rows = await self._database.fetch(
            SQL["recalled"], tenant, owner, facts, patterns, patterns_since
        )
        return [
            Recalled(row["kind"], row["key"], row["body"], row["title"], row["confidence"])
            for row in rows
        ]

    # -- what goes together ---------------------------------------------------------------------

    async def note_together(
        self,
        tenant: str,
        owner: str,
        place: tuple[str, int],
        at: datetime,
        words: Sequence[str],
        limit: int,
    ) -> int:
        """Note which of some words are entities that a message mentions; return how many pairs."""
        noted: int = await self._database.fetchval(
            SQL["note_together"], tenant, owner, *place, at, list(words), limit
        )
        return noted

    async def pairs(
        self, tenant: str, owner: str, as_of: datetime, half_life: timedelta, limit: int
    ) -> list[Pair]:
        """Return what is mentioned together, the strongest first."""
        rows = await self._database.fetch(SQL["pairs"], tenant, owner, as_of, half_life, limit)
        return [
            Pair(
                row["one"],
                row["other"],
                row["mentions"],
                row["weight"],
                row["last_at"],
                tuple(zip(row["conversations"], row["messages"], strict=True)),
            )
            for row in rows
        ]

    # -- dreaming -------------------------------------------------------------------------------

    async def dreamers(
        self, tenant: str, since: datetime, least_tokens: int, after: str | None, limit: int
    ) -> list[str]:
        """Return a page of those whose memory has anything new, or conversations to be summed up.

        Args:
            tenant: Where.
            since: What is new.
            least_tokens: Of a conversation that is to be summed up.
            after: The last one of the page before.
            limit: How many make a page.
        """
        rows = await self._database.fetch(
            SQL["dreamers"], tenant, since, least_tokens, after, limit
        )
        return [row["owner"] for row in rows]

    async def dreaming_tenants(
        self, since: datetime, least_tokens: int, after: str | None, limit: int
    ) -> list[str]:
        """Return a page of the tenants that have anything new, as `dreamers` does of owners."""
        rows = await self._database.fetch(
            SQL["dreaming_tenants"], since, least_tokens, after, limit
        )
        return [row["tenant"] for row in rows]

    async def dreamt_of(
        self, tenant: str, owner: str, tables: Sequence[str], since: datetime | None, limit: int
    ) -> list[Item]:
        """Return the items of an owner that a dream goes over, the newest first."""
        rows = await self._database.fetch(
            SQL["dreamt_of"], tenant, owner, list(tables), since, limit
        )
        return [item_of(row) for row in rows]

    async def end_items(self, tenant: str, owner: str, ids: Sequence[str], kept: str) -> int:
        """End items in favour of another of the same owner; return how many."""
        ended: int = await self._database.fetchval(
            SQL["end_items"], tenant, owner, [UUID(each) for each in ids], UUID(kept)
        )
        return ended

    async def forgotten(self, tenant: str, ids: Sequence[UUID]) -> dict[UUID, datetime]:
        """Return which of some items were forgotten, and when last."""
        if not ids:
            return {}
        rows = await self._database.fetch(SQL["forgotten"], tenant, list(ids))
        return {row["id"]: row["forgotten_at"] for row in rows}

    # -- budget ---------------------------------------------------------------------------------

    async def spend(
        self, tenant: str, day: date, tokens: int, cost_usd: float
    ) -> tuple[int, float]:
        """Add to what a day's model calls took, and return the sum: tokens, and dollars."""
        row = await self._database.fetchrow(SQL["spend"], tenant, day, tokens, cost_usd)
        assert row is not None
        return row["tokens"], row["cost_usd"]

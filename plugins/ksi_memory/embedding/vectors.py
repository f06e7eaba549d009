"""Keeps vectors, and the queue of the texts that wait for one: one round trip each."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct

from ksi_memory.events import EmbedderStats
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
CHANNEL: Final = "ksi_memory_waiting"
EMBEDDERS_CHANNEL: Final = "ksi_memory_embedders"
LONG_S: Final = 3600.0  # an index of millions of vectors, a backlog of millions of texts


class Waiting(Struct, frozen=True):
    """A version whose text waits for a vector."""

    tenant: str
    item: UUID
    version: int
    title: str
    body: str
    persons: tuple[str, ...]
    session: str | None
    said_at: datetime


class Made(Struct, frozen=True):
    """What is kept of a text: the hash of what was embedded, and the vector unless it is known."""

    waiting: Waiting
    hash: bytes
    vector: Sequence[float] | None


class KnownEmbedder(Struct, frozen=True):
    """A model that vectors are there of."""

    id: int
    name: str
    dimension: int
    is_complete: bool


class Vectors:
    """The vectors of all tenants.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def want(self, name: str, dimension: int) -> tuple[int, bool]:
        """Have all items get vectors of a model; return its id, and whether all have one."""
        row = await self._database.fetchrow(SQL["want_embedder"], name, dimension, timeout_s=LONG_S)
        assert row is not None  # the function returns one
        return row["id"], row["is_complete"]

    async def embedders(self) -> list[KnownEmbedder]:
        """Return the models that vectors are there of, what was wanted last first."""
        rows = await self._database.fetch(SQL["embedders"])
        return [KnownEmbedder(*row) for row in rows]

    async def stats(self, tenant: str, current: int | None) -> tuple[EmbedderStats, ...]:
        """Return how far a tenant's vectors are, by model."""
        rows = await self._database.fetch(SQL["embedder_stats"], tenant)
        return tuple(
            EmbedderStats(
                model=row["name"],
                dimension=row["dimension"],
                vectors=row["vectors"],
                waiting=row["waiting"],
                set_aside=row["set_aside"],
                is_current=row["id"] == current,
                why_set_aside=tuple(row["why"]),
            )
            for row in rows
        )

    async def complete(self, embedder: int) -> bool:
        """Let a model answer, if what was there before it has got vectors; say whether."""
        return bool(await self._database.fetchval(SQL["complete"], embedder))

    async def index(self, embedder: int) -> bool:
        """Make the index of a model's vectors, if it is needed and not there."""
        return bool(await self._database.fetchval(SQL["index"], embedder, timeout_s=LONG_S))

    async def reembed(self, tenant: str, embedder: int, *, only_set_aside: bool) -> int:
        """Have a tenant's vectors made anew; return how many wait."""
        return int(
            await self._database.fetchval(
                SQL["reembed"], tenant, embedder, only_set_aside, timeout_s=LONG_S
            )
        )

    async def fold(self, at_most: int) -> int:
        """Fold the counts of some collections; return of how many."""
        return int(await self._database.fetchval(SQL["fold"], at_most, timeout_s=LONG_S))

    # -- the queue ------------------------------------------------------------------------------

    async def claim(self, embedder: int, at_most: int, lease: timedelta) -> list[Waiting]:
        """Take texts that wait, for a time."""
        rows = await self._database.fetch(SQL["claim"], embedder, at_most, lease)
        return [
            Waiting(
                row["tenant"],
                row["item"],
                row["version"],
                row["title"],
                row["body"],
                tuple(row["persons"]),
                row["session"],
                row["said_at"],
            )
            for row in rows
        ]

    async def next_lease_end(self, embedder: int) -> float | None:
        """Return in how many seconds the next lease ends of what others have at work."""
        seconds: float | None = await self._database.fetchval(SQL["next_lease_end"], embedder)
        return seconds

    async def known(
        self, embedder: int, tenants: Sequence[str], hashes: Sequence[bytes]
    ) -> set[int]:
        """Return the places of those texts that have a vector."""
        rows = await self._database.fetch(SQL["known"], embedder, tenants, hashes)
        return {row["place"] - 1 for row in rows}

    async def store(self, embedder: int, made: Sequence[Made]) -> None:
        """Keep vectors, and take their texts out of the queue."""
        await self._database.execute(
            SQL["store"],
            embedder,
            *_columns([each.waiting for each in made]),
            [each.hash for each in made],
            [_written(each.vector) for each in made],
            timeout_s=LONG_S,
        )

    async def release(self, embedder: int, waiting: Sequence[Waiting]) -> None:
        """Give texts back."""
        await self._database.execute(SQL["release"], embedder, *_columns(waiting))

    async def set_aside(self, embedder: int, waiting: Waiting, why: str) -> None:
        """Set a text aside that can't have a vector."""
        await self._database.execute(
            SQL["set_aside"], waiting.tenant, embedder, waiting.item, waiting.version, why
        )


def _columns(waiting: Sequence[Waiting]) -> tuple[list[str], list[UUID], list[int]]:
    return (
        [each.tenant for each in waiting],
        [each.item for each in waiting],
        [each.version for each in waiting],
    )


def _written(vector: Sequence[float] | None) -> str | None:
    return None if vector is None else msgspec.json.encode(vector).decode()

"""Finds what is remembered: by key, by likeness, along edges, in the order of time, by SQL."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from ksi_memory.events import Found
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries
from ksi_postgres.reader import Reader, Rows

SQL: Final = load_queries(__package__)
HEAD_CHARS: Final = 600  # of a body, where only a part of it is shown
SEEN_CHARS: Final = 20_000  # of a whole one, for its snippet; and of a node's that is loaded
STOPPED: Final = {
    "nodes": "the walk stopped at {0.traverse_max_nodes:,} nodes (memory.traverse_max_nodes)",
    "edges": "the walk stopped at {0.traverse_max_edges:,} edges in a step: some nodes are missing "
    "(memory.traverse_max_edges)",
    "time": "the walk stopped after {0.traverse_max_time_s} s (memory.traverse_max_time_s)",
}


class Walk(Struct, frozen=True):
    """What a walk has come to, and what stopped it before its end, if anything did."""

    results: tuple[Found, ...]
    notes: tuple[str, ...] = ()


class Finding:
    """Finds what is remembered of a tenant, and what of that somebody may see.

    Args:
        database: The store.
        reader: Runs SQL.
        settings: Bounds.
    """

    def __init__(self, database: Database, reader: Reader, settings: MemorySettings) -> None:
        self._database = database
        self._reader = reader
        self._settings = settings

    async def lookup(
        self,
        whose: Whose,
        keys: Sequence[str],
        *,
        tables: Sequence[str] = (),
        as_of: datetime | None = None,
        limit: int = 1000,
    ) -> list[Found]:
        """Return what bears these keys, in their order, a user's own first."""
        bounds = (limit, self._settings.max_answer_chars, HEAD_CHARS)
        rows = await self._database.fetch(
            SQL["lookup"], whose.tenant, whose.user, keys, tables or None, as_of, *bounds
        )
        return [found_of(row, 1.0, load=True) for row in rows]

    async def fuzzy(
        self,
        whose: Whose,
        text: str,
        *,
        tables: Sequence[str] = (),
        threshold: float | None = None,
        as_of: datetime | None = None,
        limit: int = 10,
    ) -> list[Found]:
        """Return what has a key or a title like this, the most alike first.

        With a threshold all that is as alike as that; without one nothing less alike once there is
        something.
        """
        if not any(character.isalnum() for character in text):
            return []  # there is nothing to compare, and the index would be read as a whole
        arguments = (text, tables or None, threshold, as_of, limit, HEAD_CHARS)
        rows = await self._database.fetch(SQL["fuzzy"], whose.tenant, whose.user, *arguments)
        return [found_of(row, round(row["score"], 4)) for row in rows]

    async def traverse(
        self,
        whose: Whose,
        start: str,
        *,
        depth: int = 1,
        relations: Sequence[str] = (),
        direction: str = "out",
        load: bool = False,
        as_of: datetime | None = None,
        limit: int | None = None,
    ) -> Walk:
        """Walk along edges from a key, breadth first; each node once, the start as depth 0."""
        settings = self._settings
        steps = min(depth, settings.traverse_max_depth)
        rows = await self._database.fetch(
            SQL["traverse"],
            whose.tenant,
            whose.user,
            start,
            steps,
            relations or None,
            direction,
            as_of,
            min(limit or settings.traverse_max_nodes, settings.traverse_max_nodes),
            settings.traverse_max_edges,
            timedelta(seconds=settings.traverse_max_time_s),
            SEEN_CHARS if load else HEAD_CHARS,
        )
        notes = self._walk_notes(rows[0]["stopped"], limit) if rows else ()
        if depth > steps:
            notes = (*notes, f"the walk went {steps} steps at most (memory.traverse_max_depth)")
        names = {row["name"]: row["key"] or row["name"] for row in rows}
        return Walk(tuple(node_of(row, names, load=load) for row in rows), notes)

    def _walk_notes(self, stopped: str | None, limit: int | None) -> tuple[str, ...]:
        if stopped is None:
            return ()
        if stopped == "nodes" and limit is not None and limit < self._settings.traverse_max_nodes:
            return (f"there are more than the {limit:,} nodes of LIMIT",)
        return (STOPPED[stopped].format(self._settings),)

    async def timeline(
        self,
        whose: Whose,
        subject: str | None,
        *,
        tables: Sequence[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        as_of: datetime | None = None,
        limit: int = 100,
    ) -> list[Found]:
        """Return what happened around a subject, or at all: the newest, in the order of time."""
        arguments = (subject, tables or None, since, until, as_of, limit, HEAD_CHARS)
        rows = await self._database.fetch(SQL["timeline"], whose.tenant, whose.user, *arguments)
        return [found_of(row, 1.0) for row in rows]

    async def sql(self, whose: Whose, query: str) -> Rows:
        """Return what a query shows of the documented views, as the reader's login."""
        return await self._reader.read(whose.tenant, query)

    async def sources(
        self, whose: Whose, versions: Iterable[tuple[str, int]]
    ) -> dict[tuple[str, int], str]:
        """Return where versions come from, in words."""
        asked = list(versions)
        rows = await self._database.fetch(
            SQL["sources"],
            whose.tenant,
            whose.user,
            [UUID(each) for each, _ in asked],
            [version for _, version in asked],
        )
        return {(str(row["id"]), row["version"]): row["source"] or "" for row in rows}

    async def keys(self, whose: Whose, beginning: str, limit: int) -> tuple[str, ...]:
        """Return the keys that begin so, in their order."""
        rows = await self._database.fetch(SQL["keys"], whose.tenant, whose.user, beginning, limit)
        return tuple(row[0] for row in rows)

    async def tables(self, whose: Whose) -> tuple[str, ...]:
        """Return the tables that have something in them."""
        rows = await self._database.fetch(SQL["tables"], whose.tenant, whose.user)
        return tuple(row[0] for row in rows)


def found_of(
    row: Mapping[str, Any],
    score: float,
    *,
    load: bool = False,
    depth: int | None = None,
    via: tuple[str, str] | None = None,
) -> Found:
    """Make a result of a row; its snippet is the beginning of its text, not yet cut to size.

    Its body is loaded only where all of it is there.
    """
    return Found(
        id=str(row["id"]),
        table=row["kind"],
        key=row["key"],
        version=row["version"],
        score=score,
        owner=row["owner"],
        title=row["title"],
        snippet=row["body"][:SEEN_CHARS],
        body=row["body"] if load and row["is_whole"] else None,
        category=row["category"],
        attributes={} if row["attributes"] == "{}" else msgspec.json.decode(row["attributes"]),
        session=row["session"],
        source=row["source"] or "",
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
        depth=depth,
        via=via,
    )


def node_of(row: Mapping[str, Any], names: Mapping[str, str], *, load: bool) -> Found:
    """Make a result of a node; of one that nothing bears, only its name is known."""
    via = None if row["via"] is None else (row["relation"], names[row["via"]])
    if row["id"] is None:
        return Found(
            id="",
            table="",
            key=row["name"],
            version=0,
            score=row["score"],
            depth=row["depth"],
            via=via,
            is_dangling=True,
        )
    return found_of(row, row["score"], load=load, depth=row["depth"], via=via)

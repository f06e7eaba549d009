"""Answers ``memory:query``, ``memory:timeline`` and ``memory:keys``."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import Denied, InvalidData, NotFound
from ksi_daemon.protocol.names import did_you_mean
from ksi_memory import events as e
from ksi_memory.querying import rem
from ksi_memory.querying.answers import Raw, folded, found_of, not_there, shaped, without_text
from ksi_memory.querying.finding import Finding
from ksi_memory.querying.snippets import words_of
from ksi_memory.querying.understanding import refuse_what_is_no_text, understood
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose, current_whose

RESULTS: Final = 10
LOOKED_UP: Final = 100
STEPS: Final = 100
SMALL_CHARS: Final = 50_000  # go through so many at once; more would keep others waiting


class Searching(Protocol):
    """Searches by meaning and words."""

    async def search(
        self,
        whose: Whose,
        question: str,
        *,
        tables: Sequence[str] = (),
        field: str | None = None,
        limit: int = RESULTS,
        min_similarity: float | None = None,
        category: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        as_of: datetime | None = None,
        explain: bool = False,
    ) -> Any:
        """Return what fits a question, the best first."""


class QueryHandlers:
    """Asks the memory.

    Args:
        finding: Finds by key, likeness, edge, time and SQL.
        search: Searches.
        settings: Bounds.
    """

    def __init__(self, finding: Finding, search: Searching, settings: MemorySettings) -> None:
        self._finding = finding
        self._search = search
        self._settings = settings
        self._modes: dict[e.Mode, Callable[[Whose, e.MemoryQuery], Awaitable[Raw]]] = {
            "lookup": self._lookup,
            "search": self._searched,
            "fuzzy": self._fuzzy,
            "traverse": self._traverse,
            "timeline": self._timeline,
            "sql": self._sql,
        }

    @event_handler("memory:query", scope="memory:read")
    async def query(self, request: e.MemoryQuery) -> e.MemoryFound:
        """Ask the memory, in the REM dialect or by a mode."""
        return await self.ask(current_whose(), request)

    @event_handler("memory:timeline", scope="memory:read")
    async def timeline(self, request: e.MemoryTimeline) -> e.MemoryFound:
        """Show what happened around a subject, in its order."""
        ask = e.MemoryQuery(
            mode="timeline",
            subject=request.subject,
            since=request.since,
            until=request.until,
            as_of=request.as_of,
            limit=request.limit,
        )
        return await self.ask(current_whose(), ask)

    @event_handler("memory:keys", scope="memory:read")
    async def keys(self, request: e.MemoryKeys) -> e.MemoryKeysListed:
        """List the keys that begin so, and the tables that hold something."""
        whose = current_whose()
        refuse_what_is_no_text("beginning", request.beginning)
        keys = await self._finding.keys(whose, request.beginning, request.limit)
        return e.MemoryKeysListed(keys=keys, tables=await self._finding.tables(whose))

    async def ask(self, whose: Whose, request: e.MemoryQuery) -> e.MemoryFound:
        """Answer a question in somebody's name.

        Raises:
            InvalidData: It is no question; where it is in the dialect, with the position.
            Denied: It is SQL, and somebody asks who may not see all of the tenant.
        """
        asked = understood(request, self._settings.max_query_chars)
        assert asked.mode is not None
        raw = await self._modes[asked.mode](whose, asked)
        bounds = (asked.max_tokens, self._settings.max_answer_chars)
        if raw.chars <= SMALL_CHARS:
            return shaped(raw, *bounds)
        return await asyncio.to_thread(shaped, raw, *bounds)

    # -- the modes ------------------------------------------------------------------------------

    async def _lookup(self, whose: Whose, asked: e.MemoryQuery) -> Raw:
        limit = max(LOOKED_UP, len(asked.keys))
        results = await self._finding.lookup(
            whose, asked.keys, tables=asked.tables, as_of=asked.as_of, limit=limit + 1
        )
        notes: tuple[str, ...] = ()
        if len(results) < len(asked.keys) or not results:
            known = {folded(each.key) for each in results}
            missing = [key for key in asked.keys if folded(key) not in known]
            notes = not_there(missing)
        notes = (*notes, *without_text(results, "LOOKUP fewer at once (memory.max_answer_chars)"))
        found = e.MemoryFound(
            mode="lookup",
            results=tuple(results[:limit]),
            notes=notes,
            truncated=len(results) > limit,
        )
        return Raw(found=found)

    async def _searched(self, whose: Whose, asked: e.MemoryQuery) -> Raw:
        assert asked.query is not None
        await self._check_tables(whose, asked)
        found = await self._search.search(
            whose,
            asked.query,
            tables=asked.tables,
            field=asked.field,
            limit=asked.limit or RESULTS,
            min_similarity=asked.min_similarity,
            category=asked.category,
            since=asked.since,
            until=asked.until,
            as_of=asked.as_of,
            explain=asked.explain,
        )
        sources = await self._finding.sources(
            whose, ((str(hit.id), hit.version) for hit in found.results)
        )
        answer = e.MemoryFound(
            mode="search",
            results=tuple(found_of(hit, sources, explain=asked.explain) for hit in found.results),
            notes=found.notes,
            embedder=found.embedder,
            truncated=found.truncated,
            weights=found.weights if asked.explain else None,
        )
        return Raw(found=answer, words=words_of(asked.query))

    async def _check_tables(self, whose: Whose, asked: e.MemoryQuery) -> None:
        """See to it that the tables are there.

        Raises:
            NotFound: One is not.
        """
        unknown = [table for table in asked.tables if table not in rem.TABLES]
        if not unknown:
            return
        known = (*rem.TABLES, *await self._finding.tables(whose))
        for table in unknown:
            if table not in known:
                raise NotFound(f"there is no table {table!r}{did_you_mean(table, known)}")

    async def _fuzzy(self, whose: Whose, asked: e.MemoryQuery) -> Raw:
        assert asked.query is not None
        if len(asked.query) > rem.MAX_KEY_CHARS:
            raise InvalidData(
                f"a FUZZY is about a key or a name, of {rem.MAX_KEY_CHARS:,} characters at most",
                details={"path": "$.query"},
            )
        await self._check_tables(whose, asked)
        limit = asked.limit or RESULTS
        results = await self._finding.fuzzy(
            whose,
            asked.query,
            tables=asked.tables,
            threshold=asked.threshold,
            as_of=asked.as_of,
            limit=limit + 1,
        )
        found = e.MemoryFound(
            mode="fuzzy", results=tuple(results[:limit]), truncated=len(results) > limit
        )
        return Raw(found=found, words=words_of(asked.query), by_name=True)

    async def _traverse(self, whose: Whose, asked: e.MemoryQuery) -> Raw:
        walk = await self._finding.traverse(
            whose,
            asked.keys[0],
            depth=1 if asked.depth is None else asked.depth,
            relations=asked.relations,
            direction=asked.direction,
            load=asked.load,
            as_of=asked.as_of,
            limit=asked.limit,
        )
        results, notes = walk.results, walk.notes
        if len(results) == 1 and results[0].is_dangling:
            results, notes = (), (*not_there(asked.keys[:1]), *notes)
        if asked.load:
            borne = [each for each in results if not each.is_dangling]
            notes = (*notes, *without_text(borne, "LOOKUP shows it"))
        found = e.MemoryFound(
            mode="traverse", results=results, notes=notes, truncated=bool(walk.notes)
        )
        return Raw(found=found)

    async def _timeline(self, whose: Whose, asked: e.MemoryQuery) -> Raw:
        await self._check_tables(whose, asked)
        limit = asked.limit or STEPS
        results = await self._finding.timeline(
            whose,
            asked.subject,
            tables=asked.tables,
            since=asked.since,
            until=asked.until,
            as_of=asked.as_of,
            limit=limit + 1,
        )
        is_more = len(results) > limit
        notes = (f"these are the newest {limit:,}; there are earlier ones",) if is_more else ()
        found = e.MemoryFound(
            mode="timeline", results=tuple(results[-limit:]), notes=notes, truncated=is_more
        )
        return Raw(found=found)

    async def _sql(self, whose: Whose, asked: e.MemoryQuery) -> Raw:
        assert asked.query is not None
        if (whose.user, whose.agent, whose.conversation, whose.run) != (None,) * 4:
            raise Denied(
                "SQL shows all that belongs to the tenant, so nobody asks in it in a user's or an "
                "agent's name: use LOOKUP, SEARCH, FUZZY, TRAVERSE or TIMELINE"
            )
        rows = await self._finding.sql(whose, asked.query)
        found = e.MemoryFound(
            mode="sql",
            columns=rows.columns,
            rows=rows.rows,
            notes=("there are more rows (postgres.read_max_rows)",) if rows.truncated else (),
            truncated=rows.truncated,
        )
        return Raw(found=found)

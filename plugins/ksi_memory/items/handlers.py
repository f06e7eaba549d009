"""Answers what has to do with single items: ``memory:upsert``, ``get``, ``why``, ``forget`` …."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import msgspec

from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import Denied, InvalidData, NotFound
from ksi_memory import events as e
from ksi_memory.items.reasons import Reasons
from ksi_memory.items.store import Items
from ksi_memory.items.transfer import Transfer
from ksi_memory.whose import Whose, current_whose

Embedders = Callable[[Whose], Awaitable[tuple[e.EmbedderStats, ...]]]


class ItemHandlers:
    """What people and agents do with what is remembered.

    Args:
        items: What is remembered.
        reasons: Tells where it comes from.
        transfer: Takes it out and in.
        embedders: Tells how far the vectors are.
    """

    def __init__(
        self,
        items: Items,
        reasons: Reasons,
        transfer: Transfer,
        embedders: Embedders,
    ) -> None:
        self._items = items
        self._reasons = reasons
        self._transfer = transfer
        self._embedders = embedders

    @event_handler("memory:upsert", scope="memory:write")
    async def upsert(self, request: e.MemoryUpsert) -> e.MemoryUpserted:
        """Remember items in a table; known ones get a new version where anything differs."""
        if request.table == "schemas":
            raise InvalidData("a schema is registered, so that it is checked: schema:register")
        whose = current_whose()
        by_a_person = whose.agent is None and whose.run is None
        return await self._items.upsert(
            whose,
            request.table,
            request.items,
            origin="given" if by_a_person else "derived",
            even_forgotten=request.even_forgotten,
        )

    @event_handler("memory:get", scope="memory:read")
    async def get(self, request: e.MemoryGet) -> e.Item:
        """Get one item, as it is or as it was."""
        return await self._items.get(
            current_whose(),
            id=request.id,
            key=request.key,
            table=request.table,
            owner=request.owner,
            as_of=request.as_of,
        )

    @event_handler("memory:list", scope="memory:read")
    async def list(self, request: e.MemoryList) -> e.MemoryListed:
        """List items by table and key, without their texts."""
        return await self._items.list(current_whose(), request)

    @event_handler("memory:why", scope="memory:read")
    async def why(self, request: e.MemoryWhy) -> e.MemoryReasons:
        """Tell where an item comes from, and where that comes from."""
        whose = current_whose()
        return await self._reasons.of(whose, (await self._named(whose, request)).id)

    @event_handler("memory:correct", scope="memory:write")
    async def correct(self, request: e.MemoryCorrect) -> e.Item:
        """Say what is right: it supersedes what was remembered."""
        whose = current_whose()
        return await self._items.correct(whose, await self._named(whose, request), request)

    @event_handler("memory:pin", scope="memory:write")
    async def pin(self, request: e.MemoryPin) -> e.Item:
        """Have nothing but a person change an item, or let it go."""
        whose = current_whose()
        item = await self._named(whose, request)
        return await self._items.pin(whose, item, pinned=request.pinned)

    @event_handler("memory:forget", scope="memory:write")
    async def forget(self, request: e.MemoryForget) -> e.MemoryForgotten:
        """Forget an item with all that rests on it alone, or everything of a user."""
        whose = current_whose()
        of_user = request.everything_of
        if of_user is None:
            ids = [(await self._named(whose, request)).id]
        elif not of_user or request.id is not None or request.key is not None:
            raise InvalidData("name an item, or the user of whom everything is to be forgotten")
        elif whose.user not in (None, of_user):
            raise NotFound(f"nothing is remembered of {of_user}")
        else:
            ids = []
        return await self._items.forget(
            whose, ids, everything_of=of_user, reason=request.reason, dry_run=request.dry_run
        )

    @event_handler("memory:stats", scope="memory:read")
    async def stats(self, request: e.MemoryStats) -> e.MemoryCounted:
        """Tell what is remembered in figures, and how far the vectors are."""
        whose = current_whose()
        counted = await self._items.stats(whose)
        return msgspec.structs.replace(counted, embedders=await self._embedders(whose))

    @event_handler("memory:export", scope="memory:read")
    async def export(
        self, request: e.MemoryExport
    ) -> AsyncIterator[e.ExportedLines | e.MemoryExported]:
        """Stream all versions as lines of JSON; the last chunk says how many there were."""
        versions = -1  # the first line is no version
        lines = self._transfer.export(current_whose(), request.table, request.owner)
        async with aclosing(lines) as pieces:
            async for some in pieces:
                versions += len(some)
                yield e.ExportedLines(lines=tuple(some))
        yield e.MemoryExported(versions=versions)

    @event_handler("memory:import", scope="memory:write")
    async def take_in(self, request: e.MemoryImport) -> e.MemoryImported:
        """Take in lines that were exported; what is there already stays."""
        whose = current_whose()
        if whose.agent is not None:
            raise Denied("agents import nothing: an import may name any source")
        return await self._transfer.take_in(whose, request.lines)

    async def _named(
        self, whose: Whose, request: e.MemoryWhy | e.MemoryCorrect | e.MemoryPin | e.MemoryForget
    ) -> e.Item:
        """Return the item that a request names."""
        return await self._items.get(
            whose, id=request.id, key=request.key, table=request.table, owner=request.owner
        )

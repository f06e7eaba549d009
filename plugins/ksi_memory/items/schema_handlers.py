"""Answers ``schema:*``: what is registered, and what it says of items and objects."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import Conflict, Denied, InvalidData, NotFound
from ksi_daemon.protocol.names import did_you_mean
from ksi_memory import events as e
from ksi_memory.items import schemas
from ksi_memory.items.store import Items
from ksi_memory.tables import TABLES
from ksi_memory.whose import Whose, current_whose

PAGE: Final = 1000
MAX_SCHEMAS: Final = 10_000
MAX_PROBLEMS: Final = 1000


class SchemaHandlers:
    """The registry of schemas, which are remembered like anything else.

    Args:
        items: What is remembered.
    """

    def __init__(self, items: Items) -> None:
        self._items = items

    @event_handler("schema:register", scope="memory:write")
    async def register(self, request: e.SchemaRegister) -> e.SchemaShown:
        """Register a JSON Schema, or a newer one; of kind table, it makes a table."""
        whose = _registrar()
        if request.kind == "table" and request.name in TABLES:
            raise Conflict(f"{request.name} is a table of the memory's own: choose another name")
        schemas.check_of(request.name, request.schema)
        told = await self._items.upsert(
            whose,
            "schemas",
            [
                e.NewItem(
                    key=schemas.schema_key(request.kind, request.name),
                    title=request.name,
                    body=request.description,
                    category=request.kind,
                    attributes=request.schema,
                )
            ],
            even_forgotten=True,
        )
        if told.refused:
            raise InvalidData(f"it can't be registered: {told.refused[0].why}")
        return shown(await self._item(whose, request.kind, request.name))

    @event_handler("schema:list", scope="memory:read")
    async def list(self, request: e.SchemaList) -> e.SchemaListed:
        """List schemas by kind and name, and the tables that are always there."""
        whose = current_whose()
        found = [shown(item) for item in await self._all(whose, request.kind)]
        return e.SchemaListed(
            schemas=tuple(sorted(found, key=lambda each: (each.kind, each.name))),
            tables=tuple(TABLES) if request.kind in (None, "table") else (),
        )

    @event_handler("schema:get", scope="memory:read")
    async def get(self, request: e.SchemaGet) -> e.SchemaShown:
        """Get a schema; a table of the memory's own has a description alone."""
        if request.kind == "table" and request.name in TABLES:
            return _own(request.name)
        return shown(await self._item(current_whose(), request.kind, request.name))

    @event_handler("schema:verify", scope="memory:read")
    async def verify(self, request: e.SchemaVerify) -> e.SchemaVerified:
        """Check the items of a table against its schema, or an object against any."""
        whose = current_whose()
        if request.kind == "table" and request.name in TABLES:
            raise InvalidData(f"{request.name} takes any attributes: it has no schema")
        item = await self._item(whose, request.kind, request.name)
        check = schemas.check_of(request.name, item.attributes)
        if request.object is not None:
            why = check(request.object)
            problems = () if why is None else (e.Refused(place=0, key="", why=why),)
            return e.SchemaVerified(checked=1, problems=problems)
        if request.kind != "table":
            raise InvalidData(f"a schema of kind {request.kind} has no items: give an object")
        return await self._verified(whose, request.name, check)

    @event_handler("schema:delete", scope="memory:write")
    async def delete(self, request: e.SchemaDelete) -> e.SchemaDeleted:
        """Delete a schema; that of a table is kept while it has items."""
        whose = _registrar()
        if request.kind == "table" and request.name in TABLES:
            raise Conflict(f"{request.name} is a table of the memory's own: it stays")
        item = await self._item(whose, request.kind, request.name)
        if request.kind == "table":
            left = await self._items.list(whose, e.MemoryList(table=request.name, limit=1))
            if left.items:
                raise Conflict(
                    f"{request.name} has items: forget them first, {left.items[0].key!r} for one"
                )
        await self._items.forget(whose, [item.id], reason="deleted")
        return e.SchemaDeleted(name=request.name, kind=request.kind)

    async def _item(self, whose: Whose, kind: str, name: str) -> e.Item:
        try:
            return await self._items.get(whose, id=schemas.schema_id(kind, name))
        except NotFound as error:
            known = [each.title for each in await self._all(whose, kind)]
            hint = did_you_mean(name, known) or f"; there are: {', '.join(known) or 'none'}"
            raise NotFound(f"no {kind} {name} is registered{hint[:500]}") from error

    async def _all(self, whose: Whose, kind: str | None) -> Sequence[e.Item]:
        found: list[e.Item] = []
        cursor: str | None = None
        while len(found) < MAX_SCHEMAS:
            page = await self._items.list(
                whose, e.MemoryList(table="schemas", category=kind, cursor=cursor, limit=PAGE)
            )
            found += page.items
            cursor = page.next
            if cursor is None:
                break
        return found

    async def _verified(self, whose: Whose, table: str, check: schemas.Check) -> e.SchemaVerified:
        """Hold every item of a table to a schema."""
        checked = 0
        problems: list[e.Refused] = []
        cursor: str | None = None
        while True:
            page = await self._items.list(
                whose, e.MemoryList(table=table, cursor=cursor, limit=PAGE)
            )
            whys = await asyncio.to_thread(_checked, check, [i.attributes for i in page.items])
            problems += [
                e.Refused(place=checked + place, key=page.items[place].key, why=why)
                for place, why in whys
            ]
            checked += len(page.items)
            cursor = page.next
            if cursor is None or len(problems) >= MAX_PROBLEMS:
                return e.SchemaVerified(checked=checked, problems=tuple(problems[:MAX_PROBLEMS]))


def _checked(check: schemas.Check, objects: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [
        (place, why) for place, why in enumerate(check(each) for each in objects) if why is not None
    ]


def _registrar() -> Whose:
    """Return in whose name something is registered: the daemon's owner's.

    Raises:
        Denied: It is a user.
    """
    whose = current_whose()
    if whose.user is not None:
        raise Denied("schemas hold for everybody: the daemon's owner registers them")
    return whose


def _own(name: str) -> e.SchemaShown:
    return e.SchemaShown(name=name, kind="table", version=1, description=TABLES[name], schema={})


def shown(item: e.Item) -> e.SchemaShown:
    """Return a schema as it is shown."""
    return e.SchemaShown(
        name=item.title,
        kind=item.category or "",
        version=item.version,
        description=item.body,
        schema=msgspec.to_builtins(item.attributes),
    )

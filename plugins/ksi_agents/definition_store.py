"""Keeps definitions in Postgres."""

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_agents.events import Format
from ksi_postgres.database import Connection, Database
from ksi_postgres.queries import load_queries

__all__ = ["Change", "DefinitionStore", "Head", "Kept", "Version"]

SQL: Final = load_queries(__package__, "definition_queries.sql")
DEFAULT_SET: Final = "default"


class Head(Struct, frozen=True):
    """A name that a definition has, or had; ``version`` is its newest."""

    name: str
    version: int
    extends: str | None
    set_name: str
    is_removed: bool


class Kept(Struct, frozen=True, kw_only=True):
    """A version: its text, its own fields, and these with those of what it extends."""

    name: str
    version: int
    text: str
    format: Format
    given: dict[str, Any]
    resolved: dict[str, Any]
    applied_at: datetime | None = None


class Version(Struct, frozen=True):
    """A version with the JSON of what it resolves to."""

    version: int
    text: str
    resolved: str
    applied_at: datetime
    applied_by: str
    is_current: bool


class Change:
    """A change of a tenant's definitions: nobody else changes any until it is made.

    Args:
        connection: In a transaction of the tenant's.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def heads(self) -> dict[str, Head]:
        """Return all names, also of what was removed."""
        rows = await self._connection.fetch(SQL["heads"])
        return {row["name"]: Head(**row) for row in rows}

    async def newest(self, names: Collection[str]) -> dict[str, Kept]:
        """Return the newest versions of those that are there."""
        rows = await self._connection.fetch(SQL["newest"], list(names))
        return {row["name"]: _kept(row) for row in rows}

    async def keep(self, kept: Iterable[tuple[Kept, str]], by: str) -> None:
        """Keep versions as the newest, each with the set that it belongs to."""
        rows = [
            (
                each.name,
                each.version,
                each.given.get("extends"),
                set_name,
                each.text,
                each.format,
                msgspec.json.encode(each.given).decode(),
                msgspec.json.encode(each.resolved).decode(),
                by,
            )
            for each, set_name in kept
        ]
        await self._connection.executemany(SQL["keep"], rows)

    async def move(self, names: Collection[str], set_name: str) -> None:
        """Say of definitions with which others they were applied."""
        await self._connection.execute(SQL["move"], list(names), set_name)

    async def remove(self, names: Collection[str]) -> None:
        """Remove definitions; their versions stay."""
        await self._connection.execute(SQL["remove"], list(names))

    async def forget(self, names: Collection[str], kept_versions: int) -> None:
        """Forget all but the newest versions."""
        await self._connection.execute(SQL["forget"], list(names), kept_versions)


class DefinitionStore:
    """The definitions that tenants have applied.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, tenant: str, name: str, version: int | None) -> tuple[int, str] | None:
        """Return a version's number and the JSON of what it resolves to; in one round trip."""
        row = await self._database.fetchrow(SQL["find"], tenant, name, version)
        return None if row is None else (row["version"], row["resolved"])

    @asynccontextmanager
    async def changing(self, tenant: str) -> AsyncIterator[Change]:
        """Yield what changes definitions; all of it is kept, or where something is raised, none."""
        async with self._database.transaction(tenant=tenant) as connection:
            await connection.execute(SQL["lock"], tenant)
            yield Change(connection)

    async def page(
        self, tenant: str, like: str, after: str, limit: int
    ) -> list[tuple[Kept, datetime]]:
        """Return the next definitions, by name, without their texts."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            rows = await connection.fetch(SQL["page"], like, after, limit)
        decode = msgspec.json.decode
        return [
            (
                Kept(
                    name=row["name"],
                    version=row["version"],
                    text="",
                    format="yaml",
                    given={},
                    resolved=decode(row["resolved"]),
                ),
                row["applied_at"],
            )
            for row in rows
        ]

    async def names(self, tenant: str, names: Collection[str]) -> set[str]:
        """Return those names that have an applied definition."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            return {row["name"] for row in await connection.fetch(SQL["names"], list(names))}

    async def set_of(self, tenant: str, name: str) -> str:
        """Return with which others a definition was applied."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            found: str | None = await connection.fetchval(SQL["set_of"], name)
        return found or DEFAULT_SET

    async def version(self, tenant: str, name: str, version: int | None) -> Kept | None:
        """Return a version, or the newest."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            row = await connection.fetchrow(SQL["version"], name, version)
        return None if row is None else _kept(row, name=name)

    async def history(self, tenant: str, name: str, limit: int) -> list[Version]:
        """Return the versions that are kept, the newest first."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            rows = await connection.fetch(SQL["history"], name, limit)
        return [Version(**row) for row in rows]


def _kept(row: Any, **more: Any) -> Kept:
    fields = {**row, **more}
    for each in ("given", "resolved"):
        fields[each] = msgspec.json.decode(fields[each])
    return Kept(**fields)

"""Keeps keys in Postgres: hashes, never the keys themselves."""

from datetime import datetime
from typing import Final

from msgspec import Struct

from ksi_http.events import HttpKey
from ksi_http.keys import Presented
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)


class Kept(Struct, frozen=True, kw_only=True):
    """What is kept of a key that is valid."""

    tenant: str
    digest: str
    name: str
    on_behalf_of: str | None
    scopes: tuple[str, ...]
    may_act_for_others: bool
    expires_at: datetime | None


class KeyStore:
    """The keys of all tenants.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key_id: str) -> Kept | None:
        """Return a key that is valid."""
        row = await self._database.fetchrow(SQL["find"], key_id)
        return None if row is None else Kept(**{**row, "scopes": tuple(row["scopes"])})

    async def note_use(self, tenant: str, key_id: str) -> None:
        """Note that a key was used, to the hour."""
        await self._database.execute(SQL["note_use"], tenant, key_id)

    async def add(self, presented: Presented, kept: Kept, max_keys: int) -> bool:
        """Enter a key; say whether there was room. One that is known stays as it is."""
        added: bool = await self._database.fetchval(
            SQL["add"],
            kept.tenant,
            presented.id,
            presented.digest,
            kept.name,
            kept.on_behalf_of,
            list(kept.scopes),
            kept.may_act_for_others,
            kept.expires_at,
            max_keys,
        )
        return added

    async def revoke(self, tenant: str, key_id: str) -> bool:
        """End a key; say whether there is such a one."""
        revoked: bool = await self._database.fetchval(SQL["revoke"], tenant, key_id)
        return revoked

    async def listed(self, tenant: str, *, also_ended: bool) -> tuple[HttpKey, ...]:
        """Return a tenant's keys."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            rows = await connection.fetch(SQL["listed"], also_ended)
        return tuple(HttpKey(**{**row, "scopes": tuple(row["scopes"])}) for row in rows)

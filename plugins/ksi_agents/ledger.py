"""Keeps what turns and agents have taken, in Postgres: one round trip for each call."""

import asyncio
import secrets
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Final

from msgspec import Struct

from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__, "limits_queries.sql")
KEPT: Final = timedelta(days=30)
CLOSED_AT_ONCE: Final = 1000
CLOSING_S: Final = 3600.0
MICRO: Final = Decimal("0.000000001")


class Bounds(Struct, frozen=True, kw_only=True):
    """What an account may take; ``None`` is whatever it likes."""

    requests: int | None = None
    tool_calls: int | None = None
    tokens: int | None = None
    usd: float | None = None

    @property
    def is_any(self) -> bool:
        """Whether it is bounded at all."""
        bounds = (self.requests, self.tool_calls, self.tokens, self.usd)
        return any(bound is not None for bound in bounds)


class Refusal(Struct, frozen=True):
    """Which bound of which account was reached."""

    account: str
    bound: str
    taken: float
    most: float


class Taken(Struct, frozen=True, kw_only=True):
    """What an account has taken, and what is reserved for calls that are being made."""

    requests: int = 0
    tool_calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    reserved_usd: float = 0.0
    bounds: Bounds = Bounds()


class Ledger:
    """The accounts of all tenants.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._daemon = secrets.token_hex(8)

    async def open(self, tenant: str, account: str, parent: str | None, bounds: Bounds) -> None:
        """Have an account there, with these bounds."""
        await self._database.execute(
            SQL["open"],
            tenant,
            account,
            parent,
            bounds.requests,
            bounds.tool_calls,
            bounds.tokens,
            _decimal(bounds.usd),
        )

    async def reserve(
        self,
        tenant: str,
        call: str,
        run: str,
        accounts: Sequence[str],
        wanted_usd: float | None = None,
        least_usd: float = 0.0,
    ) -> float | Refusal:
        """Count a call and reserve money for it; return how much, or which bound was reached.

        Where money has to be reserved and it isn't said how much, that is the bound ``price``.
        """
        row = await self._database.fetchrow(
            SQL["reserve"],
            tenant,
            call,
            run,
            self._daemon,
            list(accounts),
            _decimal(wanted_usd),
            _decimal(least_usd),
        )
        assert row is not None
        if row["refused_by"] is not None:
            return Refusal(row["refused_by"], row["bound"], float(row["taken"]), float(row["most"]))
        return float(row["granted_usd"])

    async def settle(
        self, tenant: str, call: str, accounts: Sequence[str], tokens: int, usd: float | None
    ) -> None:
        """Count what a call took; where ``usd`` is not known, what was reserved for it."""
        await self._database.execute(
            SQL["settle"], tenant, call, list(accounts), tokens, _decimal(usd)
        )

    async def count_tool_call(self, tenant: str, accounts: Sequence[str]) -> Refusal | None:
        """Count a call of a tool, or say which bound was reached."""
        row = await self._database.fetchrow(SQL["count_tool_call"], tenant, list(accounts))
        assert row is not None
        if row["refused_by"] is None:
            return None
        return Refusal(row["refused_by"], "tool_calls", row["taken"], row["most"])

    async def taken(self, tenant: str, account: str) -> Taken:
        """Return what an account has taken."""
        row = await self._database.fetchrow(SQL["spent"], tenant, account)
        if row is None:
            return Taken()
        return Taken(
            requests=row["requests"],
            tool_calls=row["tool_calls"],
            tokens=row["tokens"],
            usd=float(row["usd"]),
            reserved_usd=float(row["reserved_usd"]),
            bounds=Bounds(
                requests=row["max_requests"],
                tool_calls=row["max_tool_calls"],
                tokens=row["max_tokens"],
                usd=None if row["max_usd"] is None else float(row["max_usd"]),
            ),
        )

    async def is_open(self, tenant: str, account: str) -> bool:
        """Say whether there is such an account."""
        return await self._database.fetchrow(SQL["spent"], tenant, account) is not None

    async def run_closing(self) -> None:
        """Delete the accounts of turns that have long ended, for as long as the plugin runs."""
        while True:
            closed = CLOSED_AT_ONCE
            while closed == CLOSED_AT_ONCE:
                closed = await self._database.fetchval(SQL["close"], KEPT, CLOSED_AT_ONCE)
            await asyncio.sleep(CLOSING_S)


def _decimal(usd: float | None) -> Decimal | None:
    return None if usd is None else Decimal(repr(usd)).quantize(MICRO)

"""Keeps in Postgres what calls took."""

from datetime import datetime, timedelta
from typing import Any, Final, Literal

from msgspec import Struct, structs

from ksi_models.events import ModelUsage, ModelUsed, UsageRow
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
FORGOTTEN_AT_ONCE: Final = 5000
NUMBERS: Final = tuple(name for name in UsageRow.__struct_fields__ if name != "by")
NOTHING: Final = UsageRow(
    by={},
    calls=0,
    failed_calls=0,
    input_tokens=0,
    output_tokens=0,
    cache_read_tokens=0,
    cache_write_tokens=0,
    thinking_tokens=0,
    cost_usd=0.0,
    unpriced_calls=0,
    mean_latency_ms=0.0,
)

CallOutcome = Literal["ok", "failed", "cancelled"]


class CallRow(Struct, frozen=True, kw_only=True):
    """What a call took, in the order of the table's columns."""

    tenant: str
    call: str
    ended_at: datetime
    outcome: CallOutcome
    error: str | None
    model_asked: str
    model: str
    provider: str
    served: str | None
    purpose: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    thinking_tokens: int
    is_estimated: bool
    cost_usd: float | None
    latency_ms: float
    first_token_ms: float | None
    attempts: int
    event: str
    user: str | None
    agent: str | None
    conversation: str | None
    run: str | None
    seen_conversation: str | None
    seen_first: int | None
    seen_last: int | None
    seen_sha256: str | None


class Store:
    """The rows of calls, of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, row: CallRow, timeout_s: float) -> None:
        """Keep what a call took; a row that is there already is left as it is."""
        await self._database.execute(SQL["record"], *structs.astuple(row), timeout_s=timeout_s)

    async def sums(self, tenant: str, asked: ModelUsage) -> ModelUsed:
        """Sum up a tenant's calls."""
        rows = await self._database.fetch(
            SQL["sums"],
            tenant,
            list(asked.by),
            asked.since,
            asked.until,
            asked.model,
            asked.agent,
            asked.conversation,
            asked.run,
            asked.limit,
        )
        total = next((_sum(row, ()) for row in rows if row["is_total"]), NOTHING)
        return ModelUsed(
            rows=tuple(_sum(row, asked.by) for row in rows if not row["is_total"]), total=total
        )

    async def models_in_use(self, tenant: str, since: datetime, limit: int) -> list[str]:
        """Return the models that a tenant has asked of late, the most used first."""
        rows = await self._database.fetch(SQL["models_in_use"], tenant, since, limit)
        return [row["model"] for row in rows]

    async def forget(self, older_than: timedelta) -> int:
        """Delete some of the rows that are too old; says how many."""
        count: int = await self._database.fetchval(SQL["forget"], older_than, FORGOTTEN_AT_ONCE)
        return count


def _sum(row: Any, keys: tuple[str, ...]) -> UsageRow:
    return UsageRow(by={key: row[key] for key in keys}, **{name: row[name] for name in NUMBERS})

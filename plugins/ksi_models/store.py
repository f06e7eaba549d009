"""Keeps in Postgres what calls took."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from msgspec import Struct, structs

from ksi_models.events import ModelUsage, ModelUsed, UsageRow
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
FORGOTTEN_AT_ONCE: Final = 5000
NUMBERS: Final = tuple(name for name in UsageRow.__struct_fields__ if name != "by")
MEANS: Final = ("mean_latency_ms", "mean_first_token_ms")
ADDED: Final = tuple(name for name in NUMBERS if name not in MEANS)
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
Beginning = tuple[str, str, str, str, str, str, str, str | None, str | None, str | None, str | None]


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

    async def begin(self, beginning: Beginning, timeout_s: float) -> None:
        """Note that a provider is asked, so that there is a row whatever becomes of the daemon."""
        await self._database.execute(SQL["begin"], *map(_kept, beginning), timeout_s=timeout_s)

    async def record(self, row: CallRow, timeout_s: float) -> None:
        """Keep what a call took; a row that is there already is left as it is."""
        values = map(_kept, structs.astuple(row))
        await self._database.execute(SQL["record"], *values, timeout_s=timeout_s)

    async def sums(self, tenant: str | None, asked: ModelUsage) -> ModelUsed:
        """Sum up a tenant's calls, or those of each tenant; then they are told apart."""
        keys = [*asked.by]
        filters = (asked.since, asked.until, asked.model)
        more = (asked.agent, asked.conversation, asked.run, asked.limit)
        if tenant is not None:
            rows = await self._database.fetch(SQL["sums"], tenant, keys, *filters, *more)
        else:
            rows = await self._database.fetch(SQL["sums_of_all"], keys, *filters, *more)
        sums = [_sum(row, asked.by) for row in rows if not row["is_total"]]
        totals = [_sum(row, ()) for row in rows if row["is_total"]]
        return ModelUsed(rows=tuple(sums[: asked.limit]), total=together(totals))

    async def models_in_use(self, tenant: str, since: datetime, limit: int) -> list[str]:
        """Return the models that a tenant has asked of late, the most used first."""
        rows = await self._database.fetch(SQL["models_in_use"], tenant, since, limit)
        return [row["model"] for row in rows]

    async def lose(self, older_than: timedelta) -> int:
        """Mark the calls that nobody has ended in that time; says how many."""
        count: int = await self._database.fetchval(SQL["lose"], older_than)
        return count

    async def forget(self, older_than: timedelta) -> int:
        """Delete some of the rows that are too old; says how many."""
        count: int = await self._database.fetchval(SQL["forget"], older_than, FORGOTTEN_AT_ONCE)
        return count


def _kept(value: Any) -> Any:
    """Return a value as Postgres can hold it: some of them come from providers, and may be odd."""
    if isinstance(value, str):
        if value.isascii() and "\x00" not in value:
            return value
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    return value


def _sum(row: Any, keys: tuple[str, ...]) -> UsageRow:
    return UsageRow(by={key: row[key] for key in keys}, **{name: row[name] for name in NUMBERS})


def together(sums: Sequence[UsageRow]) -> UsageRow:
    """Sum up sums; the means are weighted by the calls."""
    if len(sums) <= 1:
        return sums[0] if sums else NOTHING
    calls = sum(each.calls for each in sums)
    first = [each for each in sums if each.mean_first_token_ms is not None]
    heard = sum(each.calls for each in first)
    added = {name: sum(getattr(each, name) for each in sums) for name in ADDED}
    return UsageRow(
        by={},
        **added,
        mean_latency_ms=sum(each.mean_latency_ms * each.calls for each in sums) / max(calls, 1),
        mean_first_token_ms=(
            sum((each.mean_first_token_ms or 0.0) * each.calls for each in first) / heard
            if heard
            else None
        ),
    )

"""Keeps what comes with events from outside, as it came: apart from turns, logs and journal."""

from typing import Final

from msgspec import Raw

from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.protocol import NotFound
from ksi_http import events as e
from ksi_http.store import SQL
from ksi_postgres.database import Database

TENANT: Final = "default"


class RawKeeper:
    """Answers for what was kept of events.

    Args:
        database: Where it is kept.
        days: For how long.
    """

    def __init__(self, database: Database, days: int) -> None:
        self._database = database
        self._days = days

    @event_handler("http:raw_keep")
    async def keep(self, request: e.HttpRawKeep) -> e.HttpRawKept:
        """Keep what came with the event that began a run."""
        tenant = _tenant()
        async with self._database.transaction(tenant=tenant) as connection:
            await connection.execute(SQL["drop_raw"], tenant, self._days)
            raw = bytes(request.raw).decode()
            await connection.execute(SQL["keep_raw"], tenant, request.run_id, raw)
        return e.HttpRawKept(run_id=request.run_id)

    @event_handler("http:raw")
    async def raw(self, request: e.HttpRaw) -> e.HttpRawFound:
        """Return what came with the event that began a run."""
        async with self._database.transaction(tenant=_tenant(), readonly=True) as connection:
            row = await connection.fetchrow(SQL["raw"], request.run_id)
        if row is None:
            raise NotFound(f"nothing is kept of what began the run {request.run_id}")
        return e.HttpRawFound(
            run_id=request.run_id, raw=Raw(row["raw"].encode()), received_at=row["received_at"]
        )


def _tenant() -> str:
    context = current_context()
    return TENANT if context is None else context.tenant

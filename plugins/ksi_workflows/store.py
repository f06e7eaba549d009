"""What is asked of Postgres, one round trip each."""

import os
import platform
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
from msgspec import Struct

from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries
from ksi_workflows.codec import FORMAT
from ksi_workflows.office import Fenced, Lease, boot_time

SQL: Final = load_queries("ksi_workflows")
FENCED: Final = "KS001"


FORGET_RUNS: Final = 500
FORGET_BATCHES: Final = 20


class RunOptions(Struct, frozen=True, kw_only=True):
    """How a run is started; ``queue`` is ``None`` for at once.

    ``is_light`` is for a run that its starter starts again should Postgres crash and forget it.
    """

    queue: str | None = None
    key: str | None = None
    priority: int | None = None
    delay_s: float = 0.0
    timeout_s: float | None = None
    is_light: bool = False


class Store:
    """Asks in the name of a daemon, once it has taken office."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lease: Lease | None = None

    @property
    def is_in_office(self) -> bool:
        """Whether the daemon has taken office, though it may have lost it since."""
        return self._lease is not None

    @property
    def lease(self) -> Lease:
        """What the daemon holds."""
        if self._lease is None:
            raise Fenced("this daemon has not taken office yet")
        return self._lease

    @property
    def _office(self) -> tuple[str, int]:
        return self.lease.executor, self.lease.epoch

    async def _ask(self, query: str, *args: Any) -> Any:
        """Return the first column of what a fenced query says.

        Raises:
            Fenced: The lease is another's.
        """
        row = await self._row(query, *args)
        return None if row is None else row[0]

    async def _row(self, query: str, *args: Any) -> Any:
        try:
            return await self.database.fetchrow(SQL[query], *self._office, *args)
        except asyncpg.PostgresError as error:
            raise _or_fenced(error) from error

    async def has_tables(self) -> bool:
        """Say whether the engine has made its tables."""
        found: bool = await self.database.fetchval(SQL["has_tables"])
        return found

    # The lease.

    async def take_office(self, executor: str, lease_s: float) -> tuple[Lease, int]:
        """Begin an epoch; return the lease, and how many runs the one before left."""
        asked_at = boot_time()
        row = await self.database.fetchrow(
            SQL["take_office"], executor, platform.node(), os.getpid(), lease_s
        )
        assert row is not None
        epoch, requeued = row
        self._lease = Lease(executor, epoch, lease_s, asked_at, asked_at)
        return self._lease, requeued

    async def renew(self) -> None:
        """Prolong the lease.

        Raises:
            Fenced: It is another's.
        """
        asked_at = boot_time()
        if not await self.database.fetchval(SQL["renew"], *self._office):
            raise Fenced("the lease is another's")
        self.lease.renewed(asked_at)

    async def leave_office(self) -> int:
        """End the epoch; return how many runs others can go on with."""
        left: int = await self.database.fetchval(SQL["leave_office"], *self._office)
        return left

    async def take_over(self) -> list[Any]:
        """Take the runs of daemons whose lease has run out."""
        try:
            return list(await self.database.fetch(SQL["take_over"], *self._office))
        except asyncpg.PostgresError as error:
            raise _or_fenced(error) from error

    async def give_back_stray(self, known: Sequence[str], older_than_s: float) -> int:
        """Queue the runs that nobody runs."""
        found: int = await self._ask("give_back_stray", list(known), older_than_s)
        return found

    async def tidy(self) -> None:
        """Drop what was kept for runs that have ended."""
        await self._ask("tidy")

    async def forget_runs(self, older_than_s: float) -> int:
        """Delete runs that ended long ago; return how many, some thousands at most."""
        forgotten = 0
        for _ in range(FORGET_BATCHES):
            batch: int = await self._ask("forget_runs", older_than_s, FORGET_RUNS)
            forgotten += batch
            if batch < FORGET_RUNS:
                break
        return forgotten

    # Runs and steps, as whoever runs them sees them.

    async def start_run(
        self, run: str, creator: str, attributes: bytes, inputs: bytes, options: RunOptions
    ) -> tuple[str, int | None]:
        """Accept a run; say whether it was there before, and its deadline."""
        verdict, deadline_ms = await self._row(
            "start_run_lightly" if options.is_light else "start_run",
            run,
            creator,
            attributes.decode(),
            inputs.decode(),
            FORMAT,
            options.queue,
            options.key,
            options.priority or 0,
            options.delay_s,
            options.timeout_s,
        )
        return verdict, deadline_ms

    async def end_run(
        self, run: str, owner: str, output: bytes | None, error: bytes | None
    ) -> bool:
        """Record a run's outcome; say whether it was this daemon's to record."""
        texts = [None if part is None else part.decode() for part in (output, error)]
        written: bool = await self._ask("end_run", run, owner, *texts)
        return written

    async def begin_step(
        self, run: str, owner: str, number: int, name: str
    ) -> tuple[str, str | None, str | None]:
        """Say whether a step may run now, or what came of it before."""
        verdict, output, error = await self._row("begin_step", run, owner, number, name)
        return verdict, output, error

    async def end_step(
        self,
        run: str,
        owner: str,
        number: int,
        name: str,
        started_ms: int,
        *,
        output: bytes | None = None,
        error: bytes | None = None,
    ) -> str:
        """Record what came of a step."""
        texts = [None if part is None else part.decode() for part in (output, error)]
        verdict: str = await self._ask(
            "end_step", run, owner, number, name, started_ms, *texts, FORMAT
        )
        return verdict

    async def take_signal(
        self, run: str, owner: str, number: int, name: str, started_ms: int, topic: str
    ) -> tuple[str, str | None]:
        """Take the oldest signal on a topic, and record it as a step."""
        verdict, taken = await self._row(
            "take_signal", run, owner, number, name, started_ms, topic, FORMAT
        )
        return verdict, taken

    async def note_trouble(self, run: str, owner: str, why: str, traceback: str) -> None:
        """Keep why a step failed that is tried again."""
        await self._ask("note_trouble", run, owner, why, traceback)

    async def park(self, run: str, owner: str) -> None:
        """Lay aside a run of a workflow that is not known here."""
        await self._ask("park", run, owner)

    async def unpark(self, known: Sequence[tuple[str, int]]) -> int:
        """Give parked runs back whose workflow is known."""
        found: int = await self._ask(
            "unpark", [name for name, _ in known], [version for _, version in known]
        )
        return found

    # Runs as their tenant sees them.

    async def runs(
        self,
        tenant: str,
        *,
        ids: Sequence[str] | None = None,
        name: str | None = None,
        status: Sequence[str] | None = None,
        queue: str | None = None,
        key: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: tuple[int, str] | None = None,
        limit: int,
    ) -> list[Any]:
        """Return rows of a tenant's runs, the newest first."""
        after_ms, after_run = after or (None, None)
        statuses = None if status is None else list(status)
        return list(
            await self.database.fetch(
                SQL["runs"],
                tenant,
                None if ids is None else list(ids),
                name,
                statuses,
                queue,
                key,
                since,
                until,
                after_ms,
                after_run,
                limit,
            )
        )

    async def attempts(self, tenant: str, run: str) -> int:
        """Return how often a run was begun."""
        found = await self.database.fetchval(SQL["attempts"], tenant, run)
        return int(found or 0)

    async def outcome(self, tenant: str | None, run: str) -> Any:
        """Return the row of a run's status, output and error; ``None`` where there is no run."""
        row = await self.database.fetchrow(SQL["outcome"], tenant, run)
        return None if row is None or row["status"] is None else row

    async def arguments(self, tenant: str | None, run: str) -> str | None:
        """Return what the engine was given for a run."""
        found: str | None = await self.database.fetchval(SQL["arguments"], tenant, run)
        return found

    async def steps(self, tenant: str, run: str, after: int, limit: int) -> list[Any]:
        """Return rows of a run's steps."""
        return list(await self.database.fetch(SQL["steps"], tenant, run, after, limit))

    async def trouble(self, tenant: str, run: str) -> Any:
        """Return the row of what is known of a run's failed attempts, or ``None``."""
        async with self.database.transaction(tenant=tenant) as connection:
            return await connection.fetchrow(SQL["trouble"], run)

    async def queues(self, tenant: str) -> list[Any]:
        """Return rows of how many of a tenant's runs each queue has."""
        return list(await self.database.fetch(SQL["queues"], tenant))

    async def send_signal(
        self, tenant: str, run: str, topic: str, payload: bytes, max_waiting: int
    ) -> str:
        """Leave a signal for a run."""
        verdict: str = await self.database.fetchval(
            SQL["send_signal"], tenant, run, topic, payload.decode(), max_waiting
        )
        return verdict

    # Schedules.

    async def put_schedule(self, tenant: str, *values: Any) -> None:
        """Make a schedule, or put another in its place."""
        async with self.database.transaction(tenant=tenant) as connection:
            await connection.execute(SQL["put_schedule"], tenant, *values)

    async def drop_schedule(self, tenant: str, name: str) -> bool:
        """End a schedule; return whether there was one."""
        async with self.database.transaction(tenant=tenant) as connection:
            return await connection.fetchval(SQL["drop_schedule"], name) is not None

    async def schedules(self, tenant: str, after: str, limit: int) -> list[Any]:
        """Return rows of a tenant's schedules."""
        async with self.database.transaction(tenant=tenant) as connection:
            return list(await connection.fetch(SQL["schedules"], after, limit))

    async def due_schedules(self, limit: int) -> list[Any]:
        """Return rows of the schedules that are due, of all tenants."""
        return list(await self.database.fetch(SQL["due_schedules"], limit))

    async def seconds_to_next_schedule(self) -> float | None:
        """Return how long it is until a schedule is due."""
        found: float | None = await self.database.fetchval(SQL["seconds_to_next_schedule"])
        return found

    async def move_schedule(
        self, schedule: Any, then_at: datetime | None, run: str | None, why: str | None
    ) -> bool:
        """Move a schedule on; ``False`` when another did."""
        moved: bool = await self.database.fetchval(
            SQL["move_schedule"], schedule["id"], schedule["next_at"], then_at, run, why
        )
        return moved


def _or_fenced(error: asyncpg.PostgresError) -> Exception:
    return Fenced(str(error)) if error.sqlstate == FENCED else error

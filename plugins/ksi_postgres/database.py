"""The store as other plugins use it: queries, transactions of a tenant, notifications."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from ksi_daemon.protocol import Denied, Unavailable
from ksi_postgres.errors import gone, is_gone, told_of, translated
from ksi_postgres.logins import Logins
from ksi_postgres.migrations import SQL
from ksi_postgres.settings import PostgresSettings

log = logging.getLogger(__name__)

__all__ = ["Connection", "Database"]

Connection: TypeAlias = asyncpg.Connection
Result = TypeVar("Result")
Listener = Callable[[str | None], None]

POOLED_CACHE: Final = 0
STATEMENT_CACHE: Final = 256
FOREVER_S: Final = 1e8  # three years; to asyncpg, none would mean the pool's own limit


# asyncpg's InternalClientError is what it raises for a connection that broke between two messages.
FAULTS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
RELEASE_TIMEOUT_S: Final = 1.0
# Connections that stay taken between queries: for asyncpg's pool to hand one out and take it back
# costs as much processor time as a short query does.
KEPT: Final = 8
# How often they are given back nevertheless: the pool closes what was idle, or used, for long.
GIVE_BACK_S: Final = 60.0

# Postgres' own arrays that queries take and return: name, number, number of their elements' type.
ARRAYS: Final = (
    ("_bool", 1000, 16),
    ("_int4", 1007, 23),
    ("_int8", 1016, 20),
    ("_float4", 1021, 700),
    ("_float8", 1022, 701),
    ("_timestamptz", 1185, 1184),
    ("_uuid", 2951, 2950),
)
_KNOWN: Final = [
    {
        "oid": number,
        "ns": "pg_catalog",
        "name": name,
        "elemtype": element,
        "elemdelim": ",",
        "range_subtype": None,
        "attrtypoids": None,
        "basetype": None,
    }
    for name, number, element in ARRAYS
]


async def _make_ready(connection: Connection) -> None:
    """Tell asyncpg of arrays: on each connection it would ask, which takes as long as connecting.

    It is what asyncpg does with the answer, and not documented: where that changes, it asks.
    """
    with contextlib.suppress(AttributeError, KeyError):
        connection.get_settings().register_data_types(_KNOWN)


async def _no_reset(connection: Connection) -> None:
    """Leave a connection as it is: all that queries change ends with their transaction."""


def is_lost(connection: Connection) -> bool:
    """Say whether a connection of a pool can't be used any more."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken it back
        return True


class Database:
    """A pool of connections, and the word on whether Postgres is there.

    What it raises: `Unavailable` while Postgres can't be reached, `TimedOut` for a query that took
    too long, `Busy` where another transaction stood in the way. A constraint that was violated is
    asyncpg's own error, for the caller to translate.

    Args:
        logins: As whom to connect.
        settings: Sizes and times.
        role: What each connection becomes first, where the login has more rights than it should.

    Attributes:
        is_up: Whether Postgres answered when it was last looked at.
        why_down: Why not.
        logins: As whom it connects; contains passwords.
    """

    def __init__(
        self, logins: Logins, settings: PostgresSettings, *, role: str | None = None
    ) -> None:
        self.logins = logins
        self.is_up = False
        self.why_down = "it was not connected yet"
        self.changed: list[Callable[[bool], None]] = []  # called when it comes and goes
        self._settings = settings
        self._role = role
        self._pool: asyncpg.Pool | None = None
        self._kept: list[Connection] = []  # of the pool, taken, and free
        self._waiting = 0  # for the pool
        self._is_pooled = False
        self._next_attempt_at = 0.0
        self._doubted = asyncio.Event()
        self._listeners: dict[str, list[Listener]] = {}
        self._watched: Connection | None = None
        self._heard: set[str] = set()  # the channels that the watched connection listens on
        self._hearing = asyncio.Lock()

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect.

        Raises:
            Denied: The login may do too much, and a pooler stands before Postgres.
            Unavailable: Postgres can't be reached.
        """
        try:
            self._watched = await self._watch_connection()
            self._is_pooled = await self._leads_to_a_pooler()
            self._refuse_a_strong_login_behind_a_pooler()
            self._pool = await asyncpg.create_pool(
                self.logins.app,
                min_size=1,
                max_size=self._settings.pool_connections,
                statement_cache_size=POOLED_CACHE if self._is_pooled else STATEMENT_CACHE,
                init=_make_ready,
                reset=_no_reset,
                timeout=self._settings.connect_timeout_s,
                command_timeout=self._limit(None),
                server_settings=self._session(),
            )
        except Denied:
            await self.close()
            raise
        except FAULTS as error:
            await self.close()
            raise translated(error, lost=True) from error
        self._set_up()

    async def close(self) -> None:
        """Close every connection; queries that run are broken off."""
        if self._watched is not None:
            self._watched.terminate()
        if self._pool is not None:
            self._pool.terminate()
        self.is_up = False

    def _session(self) -> dict[str, str]:
        # A pooler refuses what it does not know, so nothing is said where nothing needs to be.
        return {"application_name": "ksi", **({"role": self._role} if self._role else {})}

    async def _leads_to_a_pooler(self) -> bool:
        """Say whether something shares out sessions: then the backend is not who answered."""
        if self.logins.app == self.logins.direct:
            url = self.logins.app
        else:
            return True
        connection = await asyncpg.connect(
            url, timeout=self._settings.connect_timeout_s, statement_cache_size=0
        )
        try:
            row = await connection.fetchval(SQL["backend"])
            return bool(row != connection.get_server_pid())
        finally:
            connection.terminate()

    def _refuse_a_strong_login_behind_a_pooler(self) -> None:
        """See to it that no query runs with more rights than it should: a pooler drops the role."""
        if self._is_pooled and self._role is not None:
            raise Denied(
                "the login of KSI_DATABASE_URL has more rights than the daemon's queries should "
                "have, and a pooler stands before Postgres: name a login that is a member of "
                f"{self._role} and neither a superuser nor one that bypasses row security"
            )

    def pool_sizes(self) -> tuple[int, int]:
        """Return how many connections the pool has, and how many of them do nothing."""
        pool = self._pool
        if pool is None:
            return (0, 0)
        free = sum(not is_lost(each) for each in self._kept)
        return (pool.get_size(), pool.get_idle_size() + free)

    # -- queries --------------------------------------------------------------------------------

    async def fetch(
        self, sql: str, *arguments: Any, timeout_s: float | None = None
    ) -> list[asyncpg.Record]:
        """Return all rows; give the query a LIMIT."""
        limit = self._limit(timeout_s)
        return await self._run(lambda c: c.fetch(sql, *arguments, timeout=limit))

    async def fetchrow(
        self, sql: str, *arguments: Any, timeout_s: float | None = None
    ) -> asyncpg.Record | None:
        """Return the first row, if there is one."""
        limit = self._limit(timeout_s)
        return await self._run(lambda c: c.fetchrow(sql, *arguments, timeout=limit))

    async def fetchval(self, sql: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Return the first value of the first row, if there is one."""
        limit = self._limit(timeout_s)
        return await self._run(lambda c: c.fetchval(sql, *arguments, timeout=limit))

    async def execute(self, sql: str, *arguments: Any, timeout_s: float | None = None) -> str:
        """Run a statement and return its tag, such as ``UPDATE 3``."""
        limit = self._limit(timeout_s)
        return await self._run(lambda c: c.execute(sql, *arguments, timeout=limit))

    async def executemany(
        self, sql: str, rows: Iterable[Any], *, timeout_s: float | None = None
    ) -> None:
        """Run a statement for each row, all in one transaction."""
        limit = self._limit(timeout_s)
        await self._run(lambda c: c.executemany(sql, rows, timeout=limit))

    @asynccontextmanager
    async def transaction(
        self, *, tenant: str | None = None, readonly: bool = False
    ) -> AsyncIterator[Connection]:
        """Yield a connection in a transaction, bound to a tenant; what is raised rolls it back.

        Without a tenant it sees no rows of any tenant but through functions.
        """
        async with self._connection() as connection, connection.transaction(readonly=readonly):
            if tenant is not None:
                await connection.execute(SQL["bind_tenant"], tenant)
            yield connection

    async def _run(self, query: Callable[[Connection], Awaitable[Result]]) -> Result:
        async with self._connection() as connection:
            if self._is_pooled:
                # A pooler keeps the backend for a transaction, not from a statement's preparation
                # to its execution.
                async with connection.transaction():
                    return await query(connection)
            return await query(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Take a connection of the pool, and give what goes wrong its form."""
        connection: Connection | None = None
        pool, kept = self._usable_pool(), self._kept
        is_free = False
        try:
            connection = await self._acquire(pool)
            yield connection
            is_free = self._may_keep(connection, kept)
        except FAULTS as error:
            lost = connection is None or is_lost(connection)
            if isinstance(error, OSError) and not lost and not isinstance(error, TimeoutError):
                raise  # of what the caller does between its queries
            told = translated(error, lost=lost)
            if lost and is_gone(error):
                self._doubted.set()
            if told is error:
                raise
            raise told from error
        finally:
            if is_free:
                kept.append(connection)
            elif connection is not None:
                await self._release(pool, connection)

    async def _release(self, pool: asyncpg.Pool, connection: Connection) -> None:
        # Before it takes one back the pool waits for the end of a query that was broken off; one
        # that does not end is closed. The query's own result or error stands either way.
        with contextlib.suppress(*FAULTS):
            await pool.release(connection, timeout=RELEASE_TIMEOUT_S)

    def _may_keep(self, connection: Connection, kept: list[Connection]) -> bool:
        """Say whether to keep a connection that did what it should, and whose pool is the same."""
        is_wanted = not self._waiting and len(kept) < KEPT and kept is self._kept
        return is_wanted and not is_lost(connection) and not connection.is_in_transaction()

    async def _acquire(self, pool: asyncpg.Pool) -> Connection:
        while self._kept:
            connection = self._kept.pop()
            if not is_lost(connection):
                return connection
            await self._release(pool, connection)
        self._waiting += 1
        try:
            return await pool.acquire(timeout=self._settings.acquire_timeout_s)
        except TimeoutError as error:
            raise Unavailable(
                "no connection to Postgres was free in time (postgres.pool_connections, "
                "postgres.acquire_timeout_s)",
                retry_after_s=1.0,
            ) from error
        finally:
            self._waiting -= 1

    def _usable_pool(self) -> asyncpg.Pool:
        if self._pool is None or not self.is_up:
            wait = max(self._next_attempt_at - time.monotonic(), self._settings.retry_first_s)
            message = f"Postgres can't be reached: {self.why_down}"
            raise Unavailable(message, retry_after_s=round(wait, 3))
        return self._pool

    def _limit(self, timeout_s: float | None) -> float:
        limit = self._settings.query_timeout_s if timeout_s is None else timeout_s
        return limit or FOREVER_S

    # -- notifications --------------------------------------------------------------------------

    async def listen(self, channel: str, listener: Listener) -> None:
        """Call ``listener`` with the payload of each notification on a channel.

        After Postgres was away it is called with ``None``: what was notified meanwhile is lost.
        """
        self._listeners.setdefault(channel, []).append(listener)
        with contextlib.suppress(*FAULTS):
            await self._hear()  # a connection that is lost is made again, with all channels

    def unlisten(self, channel: str, listener: Listener) -> None:
        """Call it no more."""
        self._listeners.get(channel, []).remove(listener)

    async def _hear(self, made: Connection | None = None) -> None:
        """Listen on what was asked for: on a connection that was just made, or on that in use."""
        async with self._hearing:
            if made is not None:
                self._heard.clear()
            connection = made or self._watched
            while connection is not None and (missing := self._listeners.keys() - self._heard):
                channel = missing.pop()
                await connection.add_listener(channel, self._notified)
                self._heard.add(channel)

    def _notified(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        if not self.is_up:
            return  # nobody could ask for more yet; all are told to look once it is up
        for listener in list(self._listeners.get(channel, ())):
            listener(str(payload))

    # -- watching -------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Notice at once when Postgres goes, and connect again, with back-off, until it is back."""
        while True:
            await self._until_doubted()
            if await self._is_there():
                continue
            self._set_down("the connection was lost")
            delay = self._settings.retry_first_s
            while not await self._reconnected():
                pause = delay * (1 + random.random() / 4)
                self._next_attempt_at = time.monotonic() + pause
                await asyncio.sleep(pause)
                delay = min(delay * 2, self._settings.retry_max_s)
            await self._expire()
            self._set_up()
            for listeners in self._listeners.values():
                for listener in list(listeners):
                    listener(None)

    async def _expire(self) -> None:
        """Use no connection any more that was made before Postgres went."""
        assert self._pool is not None
        await self._pool.expire_connections()
        kept, self._kept = self._kept, []
        for connection in kept:
            # At once: nothing runs there, and one that answers no more would hold up all others.
            with contextlib.suppress(asyncpg.InterfaceError):  # it is lost, and the pool knows
                connection.terminate()

    async def _until_doubted(self) -> None:
        while not self._doubted.is_set():
            try:
                async with asyncio.timeout(GIVE_BACK_S):
                    await self._doubted.wait()
            except TimeoutError:
                await self._give_back()

    async def _give_back(self) -> None:
        """Let the pool have each free connection once, the longest unused first."""
        assert self._pool is not None
        for _ in range(len(self._kept)):
            if self._kept:
                await self._release(self._pool, self._kept.pop(0))

    async def _is_there(self) -> bool:
        """Say whether only some connection was lost, and Postgres goes on."""
        self._doubted.clear()
        try:
            async with self._hearing:
                assert self._watched is not None
                await self._watched.execute("SELECT", timeout=self._settings.connect_timeout_s)
        except FAULTS:
            return False
        return True

    async def _reconnected(self) -> bool:
        self._doubted.clear()
        if self._watched is not None:
            self._watched.terminate()
        try:
            self._watched = await self._watch_connection()
        except FAULTS as error:
            self.why_down = told_of(error)
            log.warning("Postgres can't be reached", extra={"error": gone(error).message})
            return False
        return not self._watched.is_closed()

    async def _watch_connection(self) -> Connection:
        """Make the connection that tells when Postgres goes, and bears the notifications."""
        connection: Connection = await asyncpg.connect(
            self.logins.direct,
            timeout=self._settings.connect_timeout_s,
            server_settings={**self._session(), "application_name": "ksi watch"},
        )
        with contextlib.suppress(asyncpg.InterfaceError):  # it has gone again already
            connection.add_termination_listener(self._terminated)
            await self._hear(connection)
        return connection

    def _terminated(self, connection: Any) -> None:
        if connection is self._watched:
            self._doubted.set()

    def _set_up(self) -> None:
        self.is_up = True
        for tell in self.changed:
            tell(True)

    def _set_down(self, why: str) -> None:
        self.is_up, self.why_down = False, why
        self._next_attempt_at = time.monotonic()
        for tell in self.changed:
            tell(False)

"""Runs the SQL that people and agents write, as a login that can only look at documented views."""

import asyncio
from typing import Any, Final

import asyncpg
from msgspec import Struct

from ksi_daemon.protocol import Denied, InvalidData, TimedOut, Unavailable
from ksi_postgres.database import Connection, Database
from ksi_postgres.errors import told_of, translated
from ksi_postgres.migrations import SQL
from ksi_postgres.settings import PostgresSettings

CHUNK_ROWS: Final = 200


class Rows(Struct, frozen=True, kw_only=True):
    """What a query returned.

    Attributes:
        columns: Their names.
        rows: Their values, as Python knows them.
        truncated: Whether there were more than ``read_max_rows``.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool


class Reader:
    """Sessions of ``ksi_reader``, each bound to a tenant before its query, and cleared after it.

    Nothing looks for forbidden words. The login may select from the views in ``ksi_read`` and has
    no other right; the transaction is READ ONLY; whatever has effects was revoked; and the tenant
    is written down by another login under the number of the session's backend, which the session
    itself can't change.

    Args:
        database: Binds the sessions.
        settings: How many, how long, how many rows.
        problem: Why it is off, if it is.
    """

    def __init__(
        self, database: Database, settings: PostgresSettings, *, problem: str | None = None
    ) -> None:
        self.problem = problem
        self._database = database
        self._settings = settings
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Close every session."""
        if self._pool is not None:
            self._pool.terminate()

    async def read(
        self, tenant: str, sql: str, *arguments: Any, timeout_s: float | None = None
    ) -> Rows:
        """Return what a query shows to a tenant.

        Args:
            tenant: Whose rows.
            sql: One statement that returns rows.
            arguments: For ``$1`` and so on.
            timeout_s: ``read_timeout_s`` unless given; never longer.

        Raises:
            Denied: The query reaches for what it may not.
            InvalidData: It is no query that Postgres understands.
            TimedOut: It took too long.
            Unavailable: Such queries are off, or Postgres can't be reached.
        """
        limit = min(timeout_s or self._settings.read_timeout_s, self._settings.read_timeout_s)
        pool = await self._ready_pool()
        try:
            async with asyncio.timeout(limit), pool.acquire() as connection:
                await self._database.execute(
                    SQL["bind_reader"], connection.get_server_pid(), tenant
                )
                return await self._run(connection, sql, arguments)
        except TimeoutError as error:
            raise TimedOut(f"the query took longer than {limit} s") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _told_to_its_author(error) from error

    async def _run(self, connection: Connection, sql: str, arguments: tuple[Any, ...]) -> Rows:
        transaction = connection.transaction(readonly=True)
        await transaction.start()
        try:
            statement = await connection.prepare(sql)
            columns = tuple(attribute.name for attribute in statement.get_attributes())
            if not columns:
                raise InvalidData("that returns no rows: only a query can be run here")
            return await self._collect(statement, columns, arguments)
        finally:
            if not connection.is_closed():
                await transaction.rollback()

    async def _collect(
        self, statement: Any, columns: tuple[str, ...], arguments: tuple[Any, ...]
    ) -> Rows:
        cursor = await statement.cursor(*arguments)
        most = self._settings.read_max_rows
        rows: list[tuple[Any, ...]] = []
        while len(rows) <= most:
            chunk = await cursor.fetch(min(CHUNK_ROWS, most + 1 - len(rows)))
            rows.extend(map(tuple, chunk))
            if not chunk:
                break
        return Rows(columns=columns, rows=tuple(rows[:most]), truncated=len(rows) > most)

    async def _ready_pool(self) -> asyncpg.Pool:
        if self.problem is not None:
            raise Unavailable(f"SQL queries are off: {self.problem}")
        async with self._opening:
            if self._pool is None:
                self._pool = await self._open()
        return self._pool

    async def _open(self) -> asyncpg.Pool:
        milliseconds = int(self._settings.read_timeout_s * 1000)
        try:
            return await asyncpg.create_pool(
                self._database.logins.reader,
                min_size=0,
                max_size=self._settings.reader_connections,
                statement_cache_size=0,
                init=self._check_session,
                reset=_clear,
                timeout=self._settings.connect_timeout_s,
                server_settings={
                    "application_name": "ksi reader",
                    "search_path": "ksi_read",
                    "statement_timeout": str(milliseconds),
                    "idle_in_transaction_session_timeout": str(milliseconds),
                    "default_transaction_read_only": "on",
                    "jit": "off",
                },
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise translated(error, lost=True) from error

    async def _check_session(self, connection: Connection) -> None:
        """Refuse a pooler: the backend that is bound would not be the one that answers."""
        if await connection.fetchval(SQL["backend"]) != connection.get_server_pid():
            self.problem = "postgres.reader_url leads to a pooler: name the server itself"
            raise Unavailable(f"SQL queries are off: {self.problem}")


async def _clear(connection: Connection) -> None:
    """Leave nothing behind for the next one: settings, cursors, locks, statements."""
    await connection.execute("DISCARD ALL")


def _told_to_its_author(error: Exception) -> Exception:
    told = translated(error, lost=True)
    if told is not error or not isinstance(error, asyncpg.PostgresError):
        return told
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return Denied(f"the query may not do that: {told_of(error)}")
    position = getattr(error, "position", None)
    details = {"position": int(position)} if position else None
    return InvalidData(f"Postgres refuses the query: {told_of(error)}", details=details)

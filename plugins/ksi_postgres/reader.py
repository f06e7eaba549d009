"""Runs the SQL that people and agents write, as a login that can only look at documented views."""

import asyncio
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
from msgspec import Struct

from ksi_daemon.protocol import Denied, InvalidData, TimedOut, Unavailable
from ksi_postgres.database import FAULTS, Connection, Database, is_lost
from ksi_postgres.errors import told_of, translated
from ksi_postgres.migrations import SQL
from ksi_postgres.settings import PostgresSettings

CHUNK_ROWS: Final = 200
MAX_RESULT_BYTES: Final = 16 * 1024 * 1024  # of the answer on its way; in Python it is more
_NO_FORM: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError)
_JSON: Final = (str, int, float, bytes, Decimal, datetime, date, time, timedelta, UUID)


class Rows(Struct, frozen=True, kw_only=True):
    """What a query returned.

    Attributes:
        columns: Their names.
        rows: Their values, each in a form that JSON has: ranges, addresses and types of extensions
            as text, composites as dicts.
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
        _refuse_what_is_no_text(sql)
        pool = await self._ready_pool()
        try:
            # The pool's time-out also bounds the clearing of a session that answers no more.
            async with asyncio.timeout(limit), pool.acquire(timeout=limit) as connection:
                return await self._read(connection, tenant, sql, arguments)
        except TimeoutError as error:
            raise TimedOut(f"the query took longer than {limit} s") from error
        except FAULTS as error:
            raise _told_to_its_author(error) from error

    async def _read(
        self, connection: Connection, tenant: str, sql: str, arguments: tuple[Any, ...]
    ) -> Rows:
        await self._database.execute(SQL["bind_reader"], connection.get_server_pid(), tenant)
        meter = connection.meter  # which the pool takes away with a connection that is lost
        meter.received_bytes = 0
        try:
            return await self._run(connection, sql, arguments)
        except asyncpg.PostgresError as error:
            if meter.is_full:
                raise InvalidData(
                    f"what the query returns is larger than {MAX_RESULT_BYTES >> 20} MB: "
                    "ask for fewer rows, or for parts of their values"
                ) from error
            raise
        except (*_NO_FORM, ValueError, OverflowError) as error:
            if is_lost(connection):
                raise
            raise InvalidData(
                f"an argument, or a value of the answer, has no form in Python: {told_of(error)}; "
                "cast it to text"
            ) from error

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
            if not is_lost(connection):
                await transaction.rollback()

    async def _collect(
        self, statement: Any, columns: tuple[str, ...], arguments: tuple[Any, ...]
    ) -> Rows:
        cursor = await statement.cursor(*arguments)
        most = self._settings.read_max_rows
        rows: list[tuple[Any, ...]] = []
        while len(rows) <= most:
            chunk = await cursor.fetch(min(CHUNK_ROWS, most + 1 - len(rows)))
            rows.extend(tuple(map(_plain, row)) for row in chunk)
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
                connection_class=_Session,
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
        except FAULTS as error:
            raise translated(error, lost=True) from error

    async def _check_session(self, connection: Connection) -> None:
        """Refuse a pooler: the backend that is bound would not be the one that answers."""
        connection.limit()
        session = await connection.fetchrow(SQL["reader_session"])
        if session["backend"] != connection.get_server_pid():
            self.problem = "postgres.reader_url leads to a pooler: name the server itself"
        elif not session["is_reader"]:
            self.problem = (
                "postgres.reader_url has another login than ksi_reader, or that one was given "
                "more rights than it should have"
            )
        if self.problem is not None:
            raise Unavailable(f"SQL queries are off: {self.problem}")


class _Meter(asyncio.Protocol):
    """Stands before asyncpg, and breaks a connection off when too much comes: it would keep all."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self.received_bytes = 0
        self.is_full = False
        self._transport = transport
        self._protocol = protocol
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]  # as is
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]  # as is
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]  # as is

    def data_received(self, data: bytes) -> None:
        """Hand on what came, as long as it is not too much."""
        self.received_bytes += len(data)
        if self.received_bytes > MAX_RESULT_BYTES:
            self.is_full = True
            self._transport.abort()
        else:
            self._protocol.data_received(data)


class _Session(asyncpg.Connection):  # type: ignore[misc]  # asyncpg is not typed
    """A connection whose answers are bounded."""

    meter: _Meter

    def limit(self) -> None:
        """Begin to count; and let types be looked up without a function that has effects."""
        self.meter = _Meter(self._transport, self._protocol)
        self._transport.set_protocol(self.meter)
        # It is off, so there is no need to switch it off.
        self._server_caps: Any = self._server_caps._replace(jit=False)


def _refuse_what_is_no_text(sql: str) -> None:
    # Postgres ends a text at a zero byte, and asyncpg finds what it can't encode too late.
    try:
        is_text = b"\0" not in sql.encode()
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise InvalidData("a query has no zero byte and no half of a surrogate pair")


async def _clear(connection: Connection) -> None:
    """Leave nothing behind for the next one: settings, cursors, locks, statements."""
    await connection.execute("DISCARD ALL")


def _plain(value: Any) -> Any:
    """Return a value in a form that JSON has."""
    if value is None or isinstance(value, _JSON):
        return value
    if isinstance(value, asyncpg.Record):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, asyncpg.BitString):
        return value.as_string().replace(" ", "")
    if isinstance(value, asyncpg.Range):
        return _shown_range(value)
    return str(value)


def _shown_range(value: asyncpg.Range) -> str:
    if value.isempty:
        return "empty"
    lower, upper = ("" if end is None else str(end) for end in (value.lower, value.upper))
    return f"{'[' if value.lower_inc else '('}{lower},{upper}{']' if value.upper_inc else ')'}"


def _told_to_its_author(error: Exception) -> Exception:
    if isinstance(error, asyncpg.ConfigurationLimitExceededError):
        return InvalidData(f"the query needs too much room: {told_of(error)}")
    told = translated(error, lost=True)
    if told is not error or not isinstance(error, asyncpg.PostgresError):
        return told
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return Denied(f"the query may not do that: {told_of(error)}")
    position = getattr(error, "position", None)
    details = {"position": int(position)} if position else None
    return InvalidData(f"Postgres refuses the query: {told_of(error)}", details=details)

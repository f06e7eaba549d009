"""Keeps the ledger of calls, and what may be called, in Postgres: one round trip each."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct

from ksi_daemon.protocol import Context, ErrorBody
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries
from ksi_tools.events import CallRecord
from ksi_tools.text import PIECE_CHARS, Arguments, Text
from ksi_tools.tool import Tool

SQL: Final = load_queries(__package__)
FENCED: Final = "KS001"
SHOWN: Final = {"lost": "failed", "due": "running"}  # what is a status within alone


class Fenced(Exception):
    """The lease is another's now: nothing more may be done under it."""


class Intent(Struct, frozen=True):
    """A call that is to be made: what, by whom, and under which attempt."""

    call_id: str
    attempt: UUID
    tool: Tool
    arguments: Arguments
    context: Context
    may_all: bool
    question: str | None = None


class Ending(Struct, frozen=True):
    """What came of a call."""

    status: str
    text: Text
    duration_ms: float
    error: ErrorBody | None = None
    why: str | None = None


class Known(Struct, frozen=True, kw_only=True):
    """A call as the ledger has it."""

    tenant: str
    call_id: str
    name: str
    effects: str
    arguments: str
    digest: bytes
    run: str | None
    conversation: str | None
    agent: str | None
    status: str
    attempts: int
    begun_at: datetime
    ended_at: datetime | None
    duration_ms: float | None
    content: str | None
    error: str | None
    size_bytes: int
    has_output: bool
    why: str | None

    @property
    def has_asked(self) -> bool:
        """Whether it was begun, and its tool wants to know something before it goes on."""
        return self.status == "waiting" and self.duration_ms is not None

    @property
    def answer(self) -> str | None:
        """What a person answered to what the tool of a call asked that is made again."""
        return self.content if self.error is None else None

    @property
    def error_body(self) -> ErrorBody | None:
        """What the call failed with."""
        return None if self.error is None else msgspec.json.decode(self.error, type=ErrorBody)

    @property
    def record(self) -> CallRecord:
        """The call as it is shown."""
        return CallRecord(
            call_id=self.call_id,
            name=self.name,
            effects=self.effects,  # type: ignore[arg-type]  # as it was given
            status=SHOWN.get(self.status, self.status),  # type: ignore[arg-type]  # one of them
            arguments=msgspec.json.decode(self.arguments),
            begun_at=self.begun_at,
            ended_at=self.ended_at,
            run_id=self.run,
            conversation_id=self.conversation,
            agent=self.agent,
            content=self.content,
            why=self.why,
        )


_KEPT: Final = Known.__struct_fields__


def _known(row: Any) -> Known:
    return Known(**{field: row[field] for field in _KEPT})


class Whose(Struct, frozen=True):
    """Whose calls are looked at: those of a tenant, or some of these alone."""

    tenant: str
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None


def whose_of(context: Context) -> Whose:
    """Return whose calls a context has to do with: only its own, where it speaks for somebody."""
    return Whose(context.tenant, context.agent, context.conversation, context.run)


class Permission(Struct, frozen=True):
    """What is said of a subject."""

    allow: tuple[str, ...] | None
    deny: tuple[str, ...]
    parent: str | None


class Ledger:
    """The calls of all tenants.

    Args:
        database: The store.
        office: The executor and the epoch that writes are fenced with.
    """

    def __init__(self, database: Database, office: Callable[[], tuple[str, int]]) -> None:
        self._database = database
        self._office = office

    async def _fenced(self, query: str, *args: Any) -> list[asyncpg.Record]:
        try:
            return await self._database.fetch(SQL[query], *self._office(), *args)
        except asyncpg.PostgresError as error:
            if error.sqlstate == FENCED:
                raise Fenced(str(error)) from error
            raise

    async def begin(self, intent: Intent) -> tuple[str, int, Known | None]:
        """Write an intent; return the verdict, the how manieth time the call is made, and the call.

        One that is to be made now is not told of but by that number.

        Raises:
            Fenced: The lease is another's.
        """
        context, tool = intent.context, intent.tool
        (row,) = await self._fenced(
            "begin",
            context.tenant,
            intent.call_id,
            intent.attempt,
            tool.name,
            tool.effects,
            intent.arguments.text,
            intent.arguments.digest,
            context.run,
            context.conversation,
            context.agent,
            intent.may_all,
            tool.is_interactive,
            intent.question,
        )
        known = None if row["call_id"] is None else _known(row)
        return row["verdict"], row["times"] or 0, known

    async def end(self, intent: Intent, ending: Ending) -> bool:
        """Write what came of a call; return whether it was still the caller's.

        Raises:
            Fenced: The lease is another's.
        """
        error = None if ending.error is None else msgspec.json.encode(ending.error).decode()
        (row,) = await self._fenced(
            "end",
            intent.context.tenant,
            intent.call_id,
            intent.attempt,
            ending.status,
            ending.text.content,
            error,
            ending.text.size_bytes,
            ending.duration_ms,
            ending.why,
            list(ending.text.pieces),
            intent.tool.effects == "read_only",
        )
        return bool(row[0] == "ok")

    async def settle(
        self,
        whose: Whose,
        call_id: str,
        change: tuple[tuple[str, ...], str],
        content: str | None,
        why: str,
    ) -> tuple[str, Known | None]:
        """Change a call from one of some statuses to another, as a person says."""
        from_statuses, to_status = change
        row = await self._database.fetchrow(
            SQL["settle"],
            whose.tenant,
            call_id,
            whose.agent,
            whose.conversation,
            whose.run,
            list(from_statuses),
            to_status,
            content,
            len((content or "").encode()),
            why,
        )
        assert row is not None
        return row["verdict"], None if row["call_id"] is None else _known(row)

    async def signalled(self, call: Known) -> None:
        """Note that the run of a call was told."""
        await self._database.execute(SQL["signalled"], call.tenant, call.call_id)

    async def unsignalled(self, older_than_s: float, limit: int) -> list[Known]:
        """Return settled calls whose runs were not told."""
        age = timedelta(seconds=older_than_s)
        return [_known(row) for row in await self._database.fetch(SQL["unsignalled"], age, limit)]

    async def doubt(self, limit: int) -> list[Known]:
        """Put in doubt what daemons that are gone have left; return what is in doubt since.

        Raises:
            Fenced: The lease is another's.
        """
        return [_known(row) for row in await self._fenced("doubt", limit)]

    async def calls(
        self, whose: Whose, *, status: str | None = None, call_id: str | None = None, limit: int = 1
    ) -> list[Known]:
        """Return calls, the newest first."""
        rows = await self._database.fetch(
            SQL["list"],
            whose.tenant,
            whose.agent,
            whose.conversation,
            whose.run,
            status,
            call_id,
            limit,
        )
        return [_known(row) for row in rows]

    async def output(self, tenant: str, call_id: str, offset: int, limit: int) -> str:
        """Return a part of an output, in characters."""
        first, last = offset // PIECE_CHARS, (offset + limit - 1) // PIECE_CHARS
        text = await self._database.fetchval(SQL["output"], tenant, call_id, first, last)
        start = offset - first * PIECE_CHARS
        return (text or "")[start : start + limit]

    async def output_chars(self, tenant: str, call_id: str) -> int:
        """Return how long an output is, in characters."""
        return int(await self._database.fetchval(SQL["output_chars"], tenant, call_id) or 0)

    async def forget(self, older_than_s: float, limit: int) -> int:
        """Forget calls that ended long ago; return how many, at most ``limit``."""
        age = timedelta(seconds=older_than_s)
        return int(await self._database.fetchval(SQL["forget"], age, limit))

    async def open(self, tenant: str) -> dict[str, int]:
        """Return how many calls of a tenant want a person, by status."""
        return dict(await self._database.fetch(SQL["open"], tenant))


class Permissions:
    """What agents and conversations may call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def say(
        self, tenant: str, subject: str, words: Permission, only_parent: str | None
    ) -> str:
        """Say what a subject may call; return ``ok``, or why it can't be said."""
        allow = None if words.allow is None else list(words.allow)
        return str(
            await self._database.fetchval(
                SQL["permit"], tenant, subject, allow, list(words.deny), words.parent, only_parent
            )
        )

    async def forget(self, tenant: str, subject: str) -> None:
        """Say nothing of a subject any more."""
        await self._database.execute(SQL["forget_permission"], tenant, subject)

    async def find(self, tenant: str, subject: str) -> Permission:
        """Return what is said of a subject."""
        row = await self._database.fetchrow(SQL["permission"], tenant, subject)
        if row is None:
            return Permission(None, (), None)
        allow = None if row["allow"] is None else tuple(row["allow"])
        return Permission(allow, tuple(row["deny"]), row["parent"])

    async def which(self, context: Context, tools: Sequence[Tool]) -> set[str]:
        """Return the names of the tools that a context may call."""
        found = await self._database.fetchval(
            SQL["permitted"],
            context.tenant,
            context.agent,
            context.conversation,
            [each.name for each in tools],
            [each.effects for each in tools],
        )
        return set(found)

    async def of_subject(self, tenant: str, subject: str, tools: Sequence[Tool]) -> set[str]:
        """Return the names of the tools that a subject may call by what is said of it."""
        found = await self._database.fetchval(
            SQL["word"],
            tenant,
            subject,
            [each.name for each in tools],
            [each.effects for each in tools],
        )
        return set(found or ())

"""Keeps turns in Postgres: one function, and one round trip, for each thing that is asked."""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import asyncpg
import msgspec
from msgspec import Struct

from ksi_completion.events import CompletionResult, TurnStatus
from ksi_completion.messages import decode_parts, encode_parts
from ksi_daemon.protocol import Context, ErrorBody
from ksi_models.api import text_of
from ksi_models.events import Message, Part, Role, Usage
from ksi_postgres.database import Database
from ksi_postgres.patience import until_there
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
FENCED: Final = "KS001"


class Lost(Exception):
    """This daemon does not run the turn any more: another may."""


class Said(Struct, frozen=True):
    """A message on its way into a conversation."""

    message: Message
    body: str
    tokens: int


class Asked(Struct, frozen=True, kw_only=True):
    """A turn that is to be accepted."""

    conversation: str
    run: str
    request_id: str
    digest: str
    user: str | None
    agent: str | None
    title: str
    model: str | None
    system: str | None
    tools: tuple[str, ...] | None
    settings: str | None
    options: str
    has_output: bool
    context: Context
    parent: str | None
    only_agent: str | None
    depth: int | None
    messages: tuple[Said, ...]


class Commit(Struct, frozen=True, kw_only=True):
    """What came of a step, and whether the turn ends with it."""

    step: int = 0
    place: int = 0
    role: Role = "assistant"
    parts: tuple[Part, ...] | None = None
    body: str = ""
    tokens: int = 0
    units: int = 0
    attempt: int = 1
    model: str | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    is_model_call: bool = False
    total_usage: Usage | None = None
    calls: int = 0
    marks: tuple[str, ...] = ()
    ends_as: TurnStatus | None = None
    error: ErrorBody | None = None


class Next(Struct, frozen=True):
    """A turn that may begin, and in whose name."""

    run: str
    context: Context


class Due(Struct, frozen=True):
    """A turn that somebody should look after."""

    tenant: str
    run: str
    context: Context
    status: str = "running"
    call_id: str | None = None


class Committed(Struct, frozen=True):
    """What is kept: ``verdict`` is ok, more, ended, stopping or over; how the turn ended."""

    verdict: str
    number: int | None
    next: Next | None
    result: CompletionResult | None = None


class Store:
    """The turns of all tenants.

    Args:
        database: The store.
        office: Tells with what this daemon's writes are fenced.
    """

    def __init__(self, database: Database, office: Callable[[], tuple[str, int]]) -> None:
        self.database = database
        self._office = office

    # -- asked by clients -----------------------------------------------------------------------

    async def accept(self, asked: Asked, max_waiting: int, max_depth: int) -> Any:
        """Record a turn with its messages, or say why not."""
        said = asked.messages
        return await self.database.fetchrow(
            SQL["accept"],
            asked.context.tenant,
            asked.conversation,
            asked.run,
            asked.request_id,
            asked.digest,
            asked.user,
            asked.agent,
            asked.title,
            asked.model,
            asked.system,
            None if asked.tools is None else list(asked.tools),
            asked.settings,
            asked.options,
            asked.has_output,
            msgspec.json.encode(asked.context).decode(),
            asked.parent,
            asked.only_agent,
            [each.message.role for each in said],
            [encode_parts(each.message.parts) for each in said],
            [each.body for each in said],
            [each.tokens for each in said],
            max_waiting,
            max_depth,
            asked.depth,
        )

    async def inject(
        self, context: Context, conversation: str, request_id: str | None, said: Said, limit: int
    ) -> Any:
        """Leave a message for the turn at work."""
        return await self.database.fetchrow(
            SQL["inject"],
            context.tenant,
            conversation,
            context.user,
            request_id,
            encode_parts(said.message.parts),
            said.body,
            said.tokens,
            limit,
        )

    async def cancel(self, tenant: str, run: str, why: str) -> tuple[str, str | None]:
        """Have a turn cancelled; return what becomes of it, and the call that it waits for."""
        row = await self.database.fetchrow(SQL["cancel"], tenant, run, why)
        assert row is not None
        return row["verdict"], row["call_id"]

    async def outcome(self, tenant: str, run: str) -> Any:
        """Return how a turn stands, or ``None``."""
        return await self.database.fetchrow(SQL["outcome"], tenant, run)

    async def children(self, tenant: str, parent: str, limit: int) -> list[Any]:
        """Return the turns that were asked for within a run, the oldest first."""
        return await self.database.fetch(SQL["children"], tenant, parent, limit)

    async def turns(
        self,
        context: Context,
        conversation: str | None,
        agent: str | None,
        statuses: Sequence[str] | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Any]:
        """Return turns, the newest first."""
        at, run = before or (None, None)
        return await self.database.fetch(
            SQL["list_turns"],
            context.tenant,
            context.user,
            conversation,
            agent,
            None if statuses is None else list(statuses),
            at,
            run,
            limit,
        )

    async def said_by_turn(self, tenant: str, run: str, from_unit: int = 0) -> list[Any]:
        """Return the messages that a turn has made, with their place in its stream."""
        return await self.database.fetch(SQL["said_by_turn"], tenant, run, from_unit)

    async def hand_on(self, tenant: str, run: str, chunks: str) -> None:
        """Hand what a turn says to other daemons."""
        await self.database.execute(SQL["hand_on"], tenant, run, chunks)

    async def handed_on(self, tenant: str, run: str, after: int, limit: int) -> list[Any]:
        """Return what another daemon hands on."""
        return await self.database.fetch(SQL["handed_on"], tenant, run, after, limit)

    async def end_relay(self, tenant: str, run: str) -> None:
        """Forget what was handed on of a turn."""
        await self.database.execute(SQL["end_relay"], tenant, run)

    async def tidy_relay(self, older_than_s: float) -> None:
        """Forget what daemons that died had handed on."""
        await self.database.execute(SQL["tidy_relay"], older_than_s)

    # -- asked by whoever is at work ------------------------------------------------------------

    async def open_step(self, tenant: str, run: str, step: int) -> Any:
        """Begin a step."""
        return await self._at_work(SQL["open_step"], tenant, run, step)

    async def state_of(self, tenant: str, run: str) -> Any:
        """Return what has to be known of a turn."""
        return await until_there(lambda: self.database.fetchrow(SQL["state_of"], tenant, run))

    async def outcome_at_work(self, tenant: str, run: str) -> Any:
        """Return how a turn ended, as soon as Postgres can tell."""
        return await until_there(lambda: self.outcome(tenant, run))

    async def begin_anew(self, tenant: str, run: str) -> int:
        """Count that a turn's stream begins anew; return which attempt it is now."""
        row = await self._at_work(SQL["begin_anew"], tenant, run)
        attempt: int = row[0]
        return attempt

    async def set_waiting(
        self, tenant: str, run: str, status: str, waits_for: str | None, call_id: str | None
    ) -> str:
        """Note that a turn pauses, or goes on; say whether it does."""
        row = await self._at_work(SQL["set_waiting"], tenant, run, status, waits_for, call_id)
        verdict: str = row[0]
        return verdict

    async def commit(self, tenant: str, run: str, commit: Commit) -> Committed:
        """Keep what came of a step; once, however often it is asked."""
        row = await self._at_work(
            SQL["commit"],
            tenant,
            run,
            commit.step,
            commit.place,
            commit.role,
            None if commit.parts is None else encode_parts(commit.parts),
            commit.body,
            commit.tokens,
            commit.units,
            commit.attempt,
            commit.model,
            _json(commit.usage),
            _money(commit.cost_usd),
            commit.is_model_call,
            _json(commit.total_usage),
            commit.calls,
            list(commit.marks),
            commit.ends_as,
            _json(commit.error),
        )
        result = result_of(row) if row["verdict"] == "ended" else None
        return Committed(row["verdict"], row["message_number"], _next(row), result)

    async def _at_work(self, sql: str, *args: Any) -> Any:
        """Ask until Postgres answers: what was done must not be lost because it is away.

        Raises:
            Lost: Another daemon has the turn now.
        """
        try:
            return await until_there(lambda: self.database.fetchrow(sql, *self._office(), *args))
        except asyncpg.PostgresError as error:
            if error.sqlstate == FENCED:
                raise Lost from error
            raise

    # -- asked by the sweep ---------------------------------------------------------------------

    async def drop_questions(self) -> None:
        """Drop what turns that have ended had asked a person."""
        await self.database.execute(SQL["drop_questions"])

    async def claim_next(self, tenant: str, conversation: str) -> Next | None:
        """Begin the next turn of a conversation, if one may begin."""
        row = await self.database.fetchrow(SQL["claim_next"], tenant, conversation)
        return _next(row)

    async def due(self, handed_over_s: float, limit: int) -> list[Due]:
        """Return turns that nobody has taken on."""
        rows = await self.database.fetch(SQL["due"], handed_over_s, limit)
        return [Due(row["of_tenant"], row["run_id"], read_context(row["context"])) for row in rows]

    async def at_work(self, older_than_s: float, limit: int) -> list[Due]:
        """Return turns that are at work."""
        rows = await self.database.fetch(SQL["at_work"], older_than_s, limit)
        return [
            Due(
                row["of_tenant"],
                row["run_id"],
                read_context(row["context"]),
                row["status"],
                row["call_id"],
            )
            for row in rows
        ]


def read_context(text: str) -> Context:
    """Return the context that a turn runs in."""
    return msgspec.json.decode(text, type=Context)


def read_usage(text: str | None) -> Usage:
    """Return the tokens that something took."""
    return Usage() if text is None else msgspec.json.decode(text, type=Usage)


def read_error(text: str | None) -> ErrorBody | None:
    """Return what a turn failed with."""
    return None if text is None else msgspec.json.decode(text, type=ErrorBody)


def result_of(row: Any) -> CompletionResult:
    """Return how a turn ended, or stands, of its row."""
    parts = () if row["parts"] is None else decode_parts(row["parts"])
    text = text_of(Message("assistant", parts))
    is_known = row["cost_usd"] is not None and not row["has_unknown_cost"]
    return CompletionResult(
        run_id=row["run"],
        conversation_id=row["conversation"],
        request_id=row["request_id"],
        turn=row["number"],
        status=row["status"],
        text=text,
        output=_output(text) if row["has_output"] and row["status"] == "succeeded" else None,
        model=row["model"],
        usage=read_usage(row["usage"]),
        cost_usd=float(row["cost_usd"]) if is_known else None,
        steps=row["steps"],
        tool_calls=row["tool_calls"],
        error=read_error(row["error"]),
        accepted_at=row["accepted_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )


def _output(text: str) -> Any:
    return msgspec.json.decode(text)


def _next(row: Any) -> Next | None:
    if row is None or row["next_run"] is None:
        return None
    return Next(row["next_run"], read_context(row["next_context"]))


def next_of(row: Any) -> Next | None:
    """Return the turn that a row says may begin."""
    return _next(row)


def _json(value: Struct | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _money(usd: float | None) -> Decimal | None:
    return None if usd is None else Decimal(repr(usd)).quantize(Decimal("1e-9"))

"""Keeps orchestrations in Postgres: each change of one in a transaction, under its row's lock."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ksi_agents.events import RunLimits
from ksi_daemon.protocol import Context, ErrorBody, NotFound
from ksi_orchestration.events import Orchestration, Status, Utterance
from ksi_orchestration.play import Move, Moves, Score
from ksi_postgres.database import Connection, Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
FORGOTTEN_AT_ONCE: Final = 200
ALL: Final = 1_000_000
SPENT: Final = "cost"


class Totals(Struct, frozen=True, kw_only=True):
    """What the whole has taken."""

    tokens: int = 0
    cost_usd: float = 0.0


NOTHING: Final = Totals()


class New(Struct, frozen=True, kw_only=True):
    """An orchestration that is to be; ``digest`` is that of what was asked."""

    id: str
    digest: str
    score: Score
    limits: RunLimits
    context: Context
    run: str


class Kept(Struct, frozen=True, kw_only=True):
    """An orchestration as it is kept; see ``sql/orchestration``."""

    tenant: str
    digest: str
    context: Context
    score_text: str
    limits: RunLimits
    elapsed_s: float
    stage_elapsed_s: float
    seen: tuple[str, ...]
    last_number: int
    told: Orchestration

    @property
    def id(self) -> str:
        """What it is called."""
        return self.told.id

    @property
    def score(self) -> Score:
        """What was agreed."""
        return msgspec.json.decode(self.score_text, type=Score)

    @property
    def has_ended(self) -> bool:
        """Whether nothing happens in it any more."""
        return self.told.ended_at is not None

    @property
    def is_spent(self) -> bool:
        """Whether there is nothing left to pay turns with."""
        return self.told.reason == SPENT and not self.has_ended

    @property
    def is_held(self) -> bool:
        """Whether turns that run are finished, and no more are begun."""
        return self.told.status == "paused" or self.is_spent


class Open(Struct, frozen=True, kw_only=True):
    """A turn that is to be had, or goes on: ``run`` where that is known."""

    move: Move
    timeout_s: float
    run: str | None = None
    is_begun: bool = False


class Asked(Struct, frozen=True, kw_only=True):
    """What a member is asked, as it is kept: asked again, it is the same."""

    move: Move
    timeout_s: float


class Seen(Struct, frozen=True):
    """An orchestration as it is, what was said after a number, and the turns that are open."""

    kept: Kept
    said: tuple[Utterance, ...]
    moves: tuple[Open, ...]


class Member(Struct, frozen=True, kw_only=True):
    """What a member has done."""

    turns: int = 0
    failures: int = 0
    cost_usd: float = 0.0


class Due(Struct, frozen=True, kw_only=True):
    """An orchestration that nobody may be working on."""

    tenant: str
    id: str
    run: str
    is_begun: bool
    context: Context


class Store:
    """The orchestrations of all tenants.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- orchestrations -------------------------------------------------------------------------

    async def accept(self, new: New, most: int) -> Literal["new", "known", "full"]:
        """Keep a new orchestration, unless one of its id is there, or too many are."""
        context = new.context
        async with self._database.transaction(tenant=context.tenant) as connection:
            await connection.execute(SQL["lock_starts"])
            if await connection.fetchval(SQL["going_on"]) >= most:
                return "full"
            is_new = await connection.fetchval(
                SQL["accept"],
                new.id,
                context.user,
                new.digest,
                new.score.pattern.name,
                new.score.topic,
                encoded(new.score),
                encoded(new.limits),
                encoded(context),
                new.run,
            )
            return "new" if is_new else "known"

    async def begun(self, tenant: str, which: str) -> None:
        """Note that an orchestration's workflow knows of it."""
        async with self._database.transaction(tenant=tenant) as connection:
            await connection.execute(SQL["begun"], which)

    async def find(self, tenant: str, user: str | None, which: str) -> Kept | None:
        """Return an orchestration, if there is one that the user may see."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            row = await connection.fetchrow(SQL["find"], which, user)
        return None if row is None else _kept(row)

    async def of_run(self, tenant: str, run: str) -> str | None:
        """Return the orchestration that a workflow's run works on."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            found: str | None = await connection.fetchval(SQL["of_run"], run)
        return found

    async def page(
        self,
        tenant: str,
        user: str | None,
        statuses: Sequence[str] | None,
        pattern: str | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Orchestration]:
        """Return orchestrations, the newest first, without their results."""
        at, last = before or (None, None)
        wanted = None if statuses is None else list(statuses)
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            rows = await connection.fetch(SQL["page"], user, wanted, pattern, at, last, limit)
        return [msgspec.structs.replace(_kept(row).told, result=None) for row in rows]

    async def members(self, tenant: str, which: str) -> dict[str, Member]:
        """Return what each member has done."""
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            rows = await connection.fetch(SQL["taken_by_member"], which)
        return {
            row["member"]: Member(
                turns=row["turns"], failures=row["failures"], cost_usd=row["cost_usd"]
            )
            for row in rows
        }

    async def due(self, after_s: float, most: int) -> list[Due]:
        """Take orchestrations that somebody is to look after, whosever."""
        rows = await self._database.fetch(SQL["due"], timedelta(seconds=after_s), most)
        return [
            Due(
                tenant=row["tenant"],
                id=row["id"],
                run=row["run"],
                is_begun=row["is_begun"],
                context=msgspec.json.decode(row["context"], type=Context),
            )
            for row in rows
        ]

    async def forget_ended(self, kept_s: float) -> None:
        """Delete what ended long ago."""
        kept = timedelta(seconds=kept_s)
        while await self._database.fetchval(SQL["forget_ended"], kept, FORGOTTEN_AT_ONCE):
            pass

    # -- changes --------------------------------------------------------------------------------

    @asynccontextmanager
    async def changing(
        self,
        tenant: str,
        user: str | None,
        which: str,
    ) -> AsyncIterator["Change"]:
        """Yield an orchestration that nobody else changes meanwhile.

        Raises:
            NotFound: There is none that the user may see.
        """
        async with self._database.transaction(tenant=tenant) as connection:
            row = await connection.fetchrow(SQL["lock"], which, user)
            if row is None:
                raise no_orchestration(which)
            yield Change(connection, _kept(row))

    # -- what was said --------------------------------------------------------------------------

    async def look(
        self, tenant: str, user: str | None, which: str, after: int = 0, limit: int = ALL
    ) -> Seen | None:
        """Return all there is to know of an orchestration, if there is one that the user may see.

        Nothing is missing of what was said in one that has ended.
        """
        async with self._database.transaction(tenant=tenant, readonly=True) as connection:
            row = await connection.fetchrow(SQL["find"], which, user)
            if row is None:
                return None
            said = await connection.fetch(SQL["said"], which, after, limit)
            moves = await connection.fetch(SQL["open_moves"], which)
        return Seen(_kept(row), tuple(map(_utterance, said)), tuple(map(_open, moves)))

    async def see(self, tenant: str, which: str, event: str) -> None:
        """Note that an event happened while an orchestration goes on."""
        async with self._database.transaction(tenant=tenant) as connection:
            await connection.execute(SQL["see"], which, event)


class Change:
    """A change of one orchestration, in a transaction that holds its row.

    Args:
        connection: In the transaction.
        kept: The orchestration as it was.
    """

    def __init__(self, connection: Connection, kept: Kept) -> None:
        self.kept = kept
        self._connection = connection

    async def keep_moves(self, moves: Moves, timeout_s: float, at_once: int) -> None:
        """Write turns down, and where it stands; so many of them are begun at once."""
        rows = [
            (
                self.kept.id,
                move.key,
                place,
                move.stage,
                move.round,
                move.member,
                move.agent,
                move.item,
                encoded(Asked(move=move, timeout_s=timeout_s)),
                place < at_once,
            )
            for place, move in enumerate(moves.moves)
        ]
        await self._connection.executemany(SQL["keep_move"], rows)
        stage, elapsed_s = moves.stage, self.kept.elapsed_s
        await self._connection.execute(SQL["enter"], self.kept.id, stage, moves.round, elapsed_s)

    async def open_moves(self) -> list[Open]:
        """Return the turns that are to be had, or go on."""
        rows = await self._connection.fetch(SQL["open_moves"], self.kept.id)
        return [_open(row) for row in rows]

    async def begin_move(self, key: str) -> bool:
        """Note that a turn is begun; say whether it is to be."""
        if self.kept.has_ended:
            return False
        return bool(await self._connection.fetchval(SQL["begin_move"], self.kept.id, key))

    async def note_run(self, key: str, run: str) -> None:
        """Note which turn it is."""
        await self._connection.execute(SQL["note_run"], self.kept.id, key, run)

    async def finish_move(self, key: str) -> bool:
        """Note that a turn is over; say whether it was open."""
        return bool(await self._connection.fetchval(SQL["finish_move"], self.kept.id, key))

    async def finish_moves(self) -> None:
        """Note that no turn is open any more."""
        await self._connection.execute(SQL["finish_moves"], self.kept.id)

    async def utter(
        self, said: Utterance, *, key: str | None = None, message_id: str | None = None
    ) -> Utterance:
        """Keep what was said under the next number; ``key`` is that of the turn it came of."""
        number = self.kept.last_number + 1
        said_at = await self._connection.fetchval(
            SQL["utter"],
            self.kept.id,
            number,
            key,
            message_id,
            said.stage,
            said.round,
            said.member,
            said.agent,
            list(said.to),
            said.text,
            said.item,
            said.run_id,
            said.model,
            said.tokens,
            said.cost_usd,
            None if said.error is None else encoded(said.error),
            said.after,
        )
        is_known = key is None or said.error is not None or said.cost_usd is not None
        await self._connection.execute(
            SQL["count"],
            self.kept.id,
            number,
            0 if key is None else 1,
            said.tokens,
            said.cost_usd or 0.0,
            is_known,
        )
        return msgspec.structs.replace(said, number=number, said_at=said_at)

    async def count_all(self, totals: Totals) -> None:
        """Note what it has taken with all that its members asked."""
        await self._connection.execute(
            SQL["count_all"], self.kept.id, totals.tokens, totals.cost_usd
        )

    async def message(self, message_id: str) -> tuple[int, str] | None:
        """Return the number and the text of a person's message, if it is there."""
        row = await self._connection.fetchrow(SQL["message"], self.kept.id, message_id)
        return None if row is None else (row["number"], row["text"])

    async def said(self, after: int, limit: int) -> list[Utterance]:
        """Return what was said after a number."""
        rows = await self._connection.fetch(SQL["said"], self.kept.id, after, limit)
        return [_utterance(row) for row in rows]

    async def spend(self, error: ErrorBody) -> None:
        """Note that nothing is left to pay turns with."""
        await self._connection.execute(SQL["spend"], self.kept.id, encoded(error))

    async def pause(self) -> None:
        """Have no more turns begun."""
        await self._connection.execute(SQL["pause"], self.kept.id, self.kept.elapsed_s)

    async def resume(self) -> None:
        """Have it go on."""
        await self._connection.execute(SQL["resume"], self.kept.id)

    async def end(
        self,
        status: Status,
        reason: str,
        result: str = "",
        error: ErrorBody | None = None,
        totals: Totals = NOTHING,
    ) -> None:
        """Have it come to its end; ``totals`` is what it took with all that its members asked."""
        await self._connection.execute(
            SQL["end"],
            self.kept.id,
            status,
            reason,
            result,
            None if error is None else encoded(error),
            self.kept.elapsed_s,
            totals.tokens,
            totals.cost_usd,
        )

    async def now(self) -> Kept:
        """Return it as it is now."""
        row = await self._connection.fetchrow(SQL["find"], self.kept.id, None)
        assert row is not None  # nobody deletes what is locked
        return _kept(row)


def encoded(value: Any) -> str:
    """Return a value as JSON."""
    return msgspec.json.encode(value).decode()


def no_orchestration(which: str) -> NotFound:
    """Make the error for an orchestration that is not there."""
    return NotFound(f"there is no orchestration {which}: see orchestration:list")


def _kept(row: Any) -> Kept:
    error = row["error"]
    return Kept(
        tenant=row["tenant"],
        digest=row["digest"],
        context=msgspec.json.decode(row["context"], type=Context),
        score_text=row["score"],
        limits=msgspec.json.decode(row["limits"], type=RunLimits),
        elapsed_s=float(row["elapsed_s"]),
        stage_elapsed_s=max(float(row["elapsed_s"]) - row["stage_began_s"], 0.0),
        seen=tuple(row["seen"]),
        last_number=row["last_number"],
        told=Orchestration(
            id=row["id"],
            pattern=row["pattern"],
            topic=row["topic"],
            status=row["status"],
            run_id=row["run"],
            stage=row["stage"],
            round=row["round"],
            turns=row["turns"],
            tokens=row["tokens"],
            cost_usd=row["cost_usd"],
            is_cost_known=row["is_cost_known"],
            reason=row["reason"],
            result=row["result"],
            error=None if error is None else msgspec.json.decode(error, type=ErrorBody),
            created_at=row["created_at"],
            ended_at=row["ended_at"],
        ),
    )


def _open(row: Any) -> Open:
    asked = msgspec.json.decode(row["asked"], type=Asked)
    return Open(
        move=asked.move,
        timeout_s=asked.timeout_s,
        run=row["run"],
        is_begun=row["began_at"] is not None,
    )


def _utterance(row: Any) -> Utterance:
    error = row["error"]
    return Utterance(
        number=row["number"],
        stage=row["stage"],
        round=row["round"],
        member=row["member"],
        agent=row["agent"],
        to=tuple(row["hearers"]),
        text=row["text"],
        item=row["item"],
        run_id=row["run"],
        model=row["model"],
        tokens=row["tokens"],
        cost_usd=row["cost_usd"],
        error=None if error is None else msgspec.json.decode(error, type=ErrorBody),
        said_at=row["said_at"],
        after=row["after"],
    )

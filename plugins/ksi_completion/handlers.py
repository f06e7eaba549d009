"""Answers ``completion:*``."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import structs

from ksi_completion import events as e
from ksi_completion.acceptance import Acceptance, is_bound, said
from ksi_completion.following import ENDED, Following
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import Store, read_error, result_of
from ksi_completion.streams import Position
from ksi_completion.turns import Turns
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.protocol import Busy, Conflict, Context, InvalidData, NotFound
from ksi_models.events import Message, TextPart
from ksi_postgres.news import News
from ksi_tools.events import ToolAnswer
from ksi_workflows.api import Workflows

WAIT_MARGIN_S: Final = 3700.0
CHILDREN_MARGIN_S: Final = 70.0
MAX_CHILDREN: Final = 1000
LOOK_AGAIN_S: Final = 10.0  # where a word that was told got lost


class Handlers:
    """Takes turns on and tells of them; shows each caller what is his.

    Args:
        settings: The plugin's.
        store: Keeps the turns.
        acceptance: Takes them on.
        turns: Has them.
        news: Tells other daemons what is asked of them.
        workflows: Wakes a turn that waits.
        bus: Hands on answers.
    """

    def __init__(
        self,
        settings: CompletionSettings,
        store: Store,
        acceptance: Acceptance,
        turns: Turns,
        news: News,
        workflows: Workflows,
        bus: Bus,
    ) -> None:
        self._settings = settings
        self._store = store
        self._acceptance = acceptance
        self._turns = turns
        self._news = news
        self._workflows = workflows
        self._bus = bus
        self._following = Following(store, turns, settings.gather_s)
        self._streams = 0

    @event_handler("completion:async", scope="chat:write")
    async def accept(self, request: e.CompletionAsync) -> e.CompletionAccepted:
        """Have a turn in a conversation; once this is answered, the turn outlives the daemon."""
        return await self._acceptance.accept(request, _context())

    @event_handler("completion:stream", scope="chat:write")
    async def stream(self, request: e.CompletionStream) -> AsyncIterator[e.StreamChunk]:
        """Follow a turn from any offset on; it goes on whether somebody follows or not."""
        context = _context()
        if (request.run_id is None) == (request.start is None):
            raise InvalidData("a stream is of the turn run_id, or of a new one: start")
        if self._streams >= self._settings.max_streams:
            raise Busy(
                f"{self._settings.max_streams} streams are being served (completion.max_streams)",
                retry_after_s=1.0,
            )
        self._streams += 1
        try:
            accepted = await self._stream_of(request, context)
            yield accepted
            position = Position(request.offset, request.attempt)
            chunks = self._following.follow(context.tenant, accepted.run_id, position)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self._streams -= 1

    async def _stream_of(self, request: e.CompletionStream, context: Context) -> e.StreamAccepted:
        if request.start is not None:
            made = await self._acceptance.accept(request.start, context)
            return e.StreamAccepted(
                run_id=made.run_id,
                conversation_id=made.conversation_id,
                request_id=made.request_id,
            )
        assert request.run_id is not None
        row = await self._find(context, request.run_id)
        return e.StreamAccepted(
            run_id=row["run"], conversation_id=row["conversation"], request_id=row["request_id"]
        )

    @event_handler("completion:status", scope="chat:read")
    async def status(self, request: e.CompletionStatus) -> e.Turn:
        """Tell how a turn stands."""
        turn = turn_of(await self._find(_context(), request.run_id))
        work = self._turns.find(request.run_id)
        held_up = work.live.held_up() if work is not None and turn.status == "running" else None
        if held_up is None:
            return turn
        return structs.replace(turn, waits_for=held_up[0], waits_until=held_up[1])

    @event_handler("completion:wait", scope="chat:read", timeout_s=WAIT_MARGIN_S)
    async def wait(self, request: e.CompletionWait) -> e.CompletionResult:
        """Wait for a turn's end; past ``timeout_s`` the answer says how it stands."""
        context, loop = _context(), asyncio.get_running_loop()
        until = loop.time() + request.timeout_s
        while True:
            with self._turns.waiters.watching(request.run_id) as news:
                row = await self._find(context, request.run_id)
                left_s = until - loop.time()
                if row["status"] in ENDED or left_s <= 0:
                    return result_of(row)
                await asyncio.wait({news}, timeout=min(left_s, LOOK_AGAIN_S))

    @event_handler("completion:cancel", scope="chat:write")
    async def cancel(self, request: e.CompletionCancel) -> e.CompletionCancelled:
        """End a turn; what the user said stays."""
        context = _context()
        await self._find(context, request.run_id)
        why = request.reason or "cancelled"
        verdict, call_id = await self._store.cancel(context.tenant, request.run_id, why)
        if verdict == "stopping":
            await self._stop(context.tenant, request.run_id, why, call_id)
        row = await self._find(context, request.run_id)
        if row["status"] in ENDED:
            self._turns.tell_end(result_of(row))
        return e.CompletionCancelled(run_id=request.run_id, status=row["status"])

    async def _stop(self, tenant: str, run: str, why: str, call_id: str | None) -> None:
        """Reach who is at the turn, and give it a moment to end."""
        with self._turns.waiters.watching(run) as news:
            work = self._turns.find(run)
            if work is None:
                self._news.tell("cancel", run)
            else:
                work.stop(why)
            if call_id is not None:
                with suppress(NotFound, Conflict):  # it has ended meanwhile
                    await self._workflows.signal(run, f"tool:{call_id}", None, tenant=tenant)
            await asyncio.wait({news}, timeout=self._settings.cancel_wait_s)

    @event_handler("completion:list", scope="chat:read")
    async def list(self, request: e.CompletionList) -> e.CompletionListed:
        """List turns, the newest first."""
        context = _context()
        bound = context.conversation if is_bound(context) else None
        if context.agent is not None and request.agent not in (None, context.agent):
            return e.CompletionListed(turns=())
        if bound is not None and request.conversation_id not in (None, bound):
            return e.CompletionListed(turns=())
        rows = await self._store.turns(
            context,
            request.conversation_id or bound,
            request.agent or context.agent,
            request.status,
            _read_cursor(request.cursor),
            request.limit + 1,
        )
        shown = rows[: request.limit]
        cursor = None
        if len(rows) > request.limit:
            last = shown[-1]
            cursor = f"{last['accepted_at'].isoformat()} {last['run']}"
        return e.CompletionListed(turns=tuple(map(turn_of, shown)), cursor=cursor)

    @event_handler("completion:children", scope="chat:read", timeout_s=CHILDREN_MARGIN_S)
    async def children(self, request: e.CompletionChildren) -> e.CompletionChildrenListed:
        """List the turns that were asked for within a run; wait until there are more."""
        context, loop = _context(), asyncio.get_running_loop()
        until = loop.time() + request.wait_s
        while True:
            with self._turns.families.watching(request.run_id) as news:
                rows = await self._store.children(context.tenant, request.run_id, MAX_CHILDREN)
                left_s = until - loop.time()
                if len(rows) > request.known or left_s <= 0:
                    shown = (turn_of(row) for row in rows if is_visible(row, context))
                    return e.CompletionChildrenListed(turns=tuple(shown))
                await asyncio.wait({news}, timeout=min(left_s, LOOK_AGAIN_S))

    @event_handler("completion:inject", scope="chat:write")
    async def inject(self, request: e.CompletionInject) -> e.CompletionInjected:
        """Say something to a conversation that is at work: the model reads it before it goes on."""
        context = _context()
        row = await self._store.inject(
            context,
            request.conversation_id,
            request.request_id,
            said(Message("user", (TextPart(request.prompt),))),
            self._settings.max_waiting_turns,
        )
        if row["verdict"] == "not_found":
            raise NotFound(f"there is no conversation {request.conversation_id}")
        if row["verdict"] == "full":
            raise Busy(
                f"{self._settings.max_waiting_turns} messages wait for the turn at work "
                "(completion.max_waiting_turns)",
                retry_after_s=2.0,
            )
        if row["verdict"] != "idle":
            return e.CompletionInjected(
                conversation_id=request.conversation_id, run_id=row["run_id"], is_own_turn=False
            )
        turn = e.CompletionAsync(
            prompt=request.prompt,
            conversation_id=request.conversation_id,
            request_id=request.request_id,
        )
        accepted = await self._acceptance.accept(turn, context)
        return e.CompletionInjected(
            conversation_id=request.conversation_id, run_id=accepted.run_id, is_own_turn=True
        )

    @event_handler("completion:answer", scope="chat:write")
    async def answer(self, request: e.CompletionAnswer) -> e.CompletionAnswered:
        """Answer what a turn has asked a person."""
        row = await self._find(_context(), request.run_id)
        waiting = row["waits_call"]
        if row["status"] != "paused" or waiting is None:
            raise Conflict(f"the turn {request.run_id} asks nothing: it is {row['status']}")
        if request.call_id not in (None, waiting):
            raise NotFound(f"the turn waits for an answer to {waiting}, not {request.call_id}")
        if not (row["waits_for"] or "").startswith("answer"):
            raise Conflict(
                "the turn waits for a decision about a call in doubt: send tool:resolve "
                "(ksi tool resolve)",
                details={"call_id": waiting},
            )
        await self._bus.request("tool:answer", ToolAnswer(call_id=waiting, content=request.content))
        return e.CompletionAnswered(run_id=request.run_id, call_id=waiting)

    async def _find(self, context: Context, run: str) -> Any:
        row = await self._store.outcome(context.tenant, run)
        if row is None or not is_visible(row, context):
            raise NotFound(f"there is no turn {run}")
        return row


def is_visible(row: Any, context: Context) -> bool:
    """Say whether a turn is the caller's: of that user, and of that agent or asked for by it."""
    if context.user is not None and row["owner"] != context.user:
        return False
    if is_bound(context) and context.conversation not in (None, row["conversation"]):
        return False
    if context.agent is None or row["agent"] == context.agent:
        return True
    return context.run is not None and row["parent"] == context.run


def turn_of(row: Any) -> e.Turn:
    """Return a turn of its row, without its texts."""
    return e.Turn(
        run_id=row["run"],
        conversation_id=row["conversation"],
        request_id=row["request_id"],
        turn=row["number"],
        status=row["status"],
        model=row["model"],
        agent=row["agent"],
        waits_for=row["waits_for"],
        error=read_error(row["error"]),
        accepted_at=row["accepted_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )


def _context() -> Context:
    return current_context() or Context("")


def _read_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    at, _, run = cursor.partition(" ")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        moment = None
    if moment is None or not run:
        raise InvalidData("the cursor is not one that completion:list has answered")
    return moment.astimezone(UTC), run

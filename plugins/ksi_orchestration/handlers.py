"""Answers ``orchestration:*``, as far as it is about orchestrations; shows each caller his own."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from datetime import datetime
from typing import Final

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import Busy, Cancelled, Conflict, Context, Denied, InvalidData, KsiError
from ksi_orchestration import events as e
from ksi_orchestration.following import Following
from ksi_orchestration.pattern import Pattern
from ksi_orchestration.patterns import Patterns
from ksi_orchestration.performing import ORDERS, Performing
from ksi_orchestration.play import Score, hearers, result_so_far
from ksi_orchestration.settings import OrchestrationSettings
from ksi_orchestration.starting import Checking, agreed, digest_of, run_limits
from ksi_orchestration.store import (
    ALL,
    Change,
    Kept,
    Member,
    New,
    Open,
    Store,
    no_orchestration,
)
from ksi_orchestration.telling import Telling
from ksi_orchestration.turns import Turns, conversation_of
from ksi_postgres.patience import AWAY
from ksi_workflows.api import Workflows

PERSON: Final = "person"
STOPPED: Final = "stopped"
WAS_STOPPED: Final = "the orchestration was stopped"
WAIT_MARGIN_S: Final = 90.0


class OrchestrationHandlers:
    """Has orchestrations, and tells of them.

    Args:
        settings: The plugin's.
        patterns: What they can be by.
        store: Keeps them.
        performing: Works on them.
        turns: Has their turns.
        following: Reads them for those who follow.
        telling: Tells of what changes.
        workflows: Give orders to those at work.
        bus: Knows agents and models.
    """

    def __init__(
        self,
        settings: OrchestrationSettings,
        patterns: Patterns,
        store: Store,
        performing: Performing,
        turns: Turns,
        following: Following,
        telling: Telling,
        workflows: Workflows,
        bus: Bus,
    ) -> None:
        self._settings = settings
        self._patterns = patterns
        self._store = store
        self._performing = performing
        self._turns = turns
        self._following = following
        self._telling = telling
        self._workflows = workflows
        self._checking = Checking(bus)

    # -- starting -------------------------------------------------------------------------------

    @event_handler("orchestration:start", scope="orchestrations:write")
    async def start(self, request: e.OrchestrationStart) -> e.Orchestration:
        """Have several agents work on something; once this is answered, it outlives the daemon."""
        context, digest = _context(), digest_of(request)
        if context.agent is not None and is_bearers(context):
            raise Denied(f"a token of the agent {context.agent} can't have other agents work")
        if request.id is not None:
            known = await self._store.find(context.tenant, None, request.id)
            if known is not None:
                return _same(known, digest, context)
        pattern = await self._pattern(request)
        score = agreed(pattern, request, self._settings.max_heard_characters)
        await self._checking.check(score)
        new = _new(request, score, digest, context)
        verdict = await self._store.accept(new, self._settings.max_orchestrations)
        if verdict == "full":
            raise Busy(
                f"{self._settings.max_orchestrations} orchestrations have not ended "
                "(orchestration.max_orchestrations)",
                retry_after_s=5.0,
                details={"setting": "orchestration.max_orchestrations"},
            )
        kept = await self._find(context, new.id, shows_all=True)
        if verdict == "known":
            return _same(kept, digest, context)
        self._telling.changed(kept)
        with suppress(*AWAY):  # it is accepted: it is begun as soon as that can be
            await self._performing.begin(context.tenant, new.id, new.run, context)
        return kept.told

    async def _pattern(self, request: e.OrchestrationStart) -> Pattern:
        if (request.pattern is None) == (request.document is None):
            raise InvalidData("give either a pattern's name, or the document of one of your own")
        if request.document is not None:
            return self._patterns.read(request.document, "document")
        assert request.pattern is not None
        return (await self._patterns.find(request.pattern)).pattern

    # -- looking at them ------------------------------------------------------------------------

    @event_handler("orchestration:status", scope="orchestrations:read")
    async def status(self, request: e.OrchestrationStatus) -> e.StatusTold:
        """Tell how an orchestration stands, what came of it, and what its members do."""
        context = _context()
        seen = await self._store.look(context.tenant, context.user, request.id, limit=0)
        if seen is None:
            raise no_orchestration(request.id)
        done = await self._store.members(context.tenant, request.id)
        members = _members(seen.kept, done, seen.moves)
        return e.StatusTold(orchestration=seen.kept.told, members=members)

    @event_handler("orchestration:list", scope="orchestrations:read")
    async def list(self, request: e.OrchestrationList) -> e.OrchestrationsListed:
        """List orchestrations, the newest first."""
        context = _context()
        found = await self._store.page(
            context.tenant,
            context.user,
            request.status,
            request.pattern,
            None if request.cursor is None else decode_cursor(request.cursor),
            request.limit + 1,
        )
        page = found[: request.limit]
        return e.OrchestrationsListed(
            orchestrations=tuple(page),
            cursor=encode_cursor(page[-1]) if len(found) > len(page) else None,
        )

    @event_handler("orchestration:transcript", scope="orchestrations:read", timeout_s=WAIT_MARGIN_S)
    async def transcript(self, request: e.OrchestrationTranscript) -> e.TranscriptTold:
        """Tell what was said, after a number; with ``wait_s`` wait until there is something."""
        return await self._following.transcript(
            _context(), request.id, request.after, request.limit, request.wait_s
        )

    @event_handler("orchestration:follow", scope="orchestrations:read")
    async def follow(self, request: e.OrchestrationFollow) -> AsyncIterator[e.FollowChunk]:
        """Stream what is said, until it has ended; whichever daemon works on it."""
        chunks = self._following.follow(_context(), request.id, request.after)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    # -- having a say ---------------------------------------------------------------------------

    @event_handler("orchestration:message", scope="orchestrations:write")
    async def message(self, request: e.OrchestrationMessage) -> e.Utterance:
        """Say something in an orchestration; members hear it with their next turns."""
        context = _context()
        async with self._changing(context, request.id) as change:
            kept = change.kept
            to = hearers(kept.score, PERSON, request.to)
            if request.message_id is not None:
                known = await change.message(request.message_id)
                if known is not None:
                    return await _known_message(change, known, request)
            if kept.has_ended:
                raise _ended(kept)
            said = e.Utterance(
                number=0,
                stage=kept.told.stage,
                round=kept.told.round,
                member=PERSON,
                to=to,
                text=request.text,
            )
            said = await change.utter(said, message_id=request.message_id)
        self._telling.said(kept, said)
        return said

    @event_handler("orchestration:pause", scope="orchestrations:write")
    async def pause(self, request: e.OrchestrationPause) -> e.Orchestration:
        """Begin no more turns; those that run are finished."""
        context = _context()
        async with self._changing(context, request.id) as change:
            if change.kept.has_ended:
                raise _ended(change.kept)
            if change.kept.told.status == "running":
                await change.pause()
            now = await change.now()
        self._telling.changed(now)
        return now.told

    @event_handler("orchestration:resume", scope="orchestrations:write")
    async def resume(self, request: e.OrchestrationResume) -> e.Orchestration:
        """Go on where it was paused."""
        context = _context()
        async with self._changing(context, request.id) as change:
            if change.kept.has_ended:
                raise _ended(change.kept)
            was_paused = change.kept.told.status == "paused"
            if was_paused:
                await change.resume()
            now = await change.now()
        if was_paused:
            await self._order(now)
            self._telling.changed(now)
        return now.told

    @event_handler("orchestration:stop", scope="orchestrations:write")
    async def stop(self, request: e.OrchestrationStop) -> e.Orchestration:
        """End it, and the turns that run; one that has ended stays as it is."""
        context = _context()
        async with self._changing(context, request.id) as change:
            was = change.kept
            if not was.has_ended:
                score, said = was.score, await change.said(0, ALL)
                why = Cancelled(request.reason).body if request.reason else None
                await change.end(STOPPED, STOPPED, result_so_far(score, tuple(said)), why)
            moves, now = await change.open_moves(), await change.now()
        if not was.has_ended:
            await self._order(now)
            self._telling.changed(now)
        for each in moves:
            if each.run is not None and now.told.status == STOPPED:
                await self._turns.cancel(
                    each.run, request.reason or "the orchestration was stopped"
                )
        return now.told

    async def _order(self, kept: Kept) -> None:
        """Have the workflow look how it stands, if it waits for that."""
        try:
            await self._workflows.signal(kept.told.run_id, ORDERS, tenant=kept.tenant)
        except KsiError:
            return  # it has not begun yet, or is over: it looks by itself

    def _changing(self, context: Context, which: str) -> AbstractAsyncContextManager[Change]:
        return self._store.changing(context.tenant, context.user, which)

    async def _find(self, context: Context, which: str, *, shows_all: bool = False) -> Kept:
        user = None if shows_all else context.user
        kept = await self._store.find(context.tenant, user, which)
        if kept is None:
            raise no_orchestration(which)
        return kept


def _new(request: e.OrchestrationStart, score: Score, digest: str, context: Context) -> New:
    run = f"orchestration-{secrets.token_hex(8)}"
    return New(
        id=request.id or secrets.token_hex(6),
        digest=digest,
        score=score,
        limits=run_limits(score, request.budget),
        context=context,
        run=run if context.tenant == "default" else f"{context.tenant}:{run}",
    )


def _same(known: Kept, digest: str, context: Context) -> e.Orchestration:
    """Return an orchestration that was started before, if it is the one that is wanted."""
    if known.digest != digest or context.user not in (None, known.context.user):
        raise Conflict(f"the id {known.id} is that of another orchestration")
    return known.told


async def _known_message(
    change: Change, known: tuple[int, str], request: e.OrchestrationMessage
) -> e.Utterance:
    number, text = known
    if text != request.text:
        raise Conflict(f"the message_id {request.message_id} was that of another message")
    return (await change.said(number - 1, 1))[0]


def _ended(kept: Kept) -> Conflict:
    it = kept.told
    why = f": {it.reason}" if it.reason not in ("", it.status) else ""
    return Conflict(f"the orchestration {it.id} has ended ({it.status}{why})")


def _members(
    kept: Kept, done: dict[str, Member], moves: Sequence[Open]
) -> tuple[e.MemberState, ...]:
    runs = {each.move.member: each.run for each in moves if each.run is not None}
    told = []
    for member in kept.score.members:
        has = done.get(member.name, Member())
        told.append(
            e.MemberState(
                name=member.name,
                role=member.role,
                agent=member.agent,
                conversation_id=conversation_of(kept.id, member.name),
                model=member.models[0] if member.models else None,
                turns=has.turns,
                failures=has.failures,
                cost_usd=has.cost_usd,
                run_id=None if kept.has_ended else runs.get(member.name),
            )
        )
    return tuple(told)


def encode_cursor(last: e.Orchestration) -> str:
    """Return where the next page begins."""
    assert last.created_at is not None
    return f"{last.created_at.isoformat()} {last.id}"


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Return what `encode_cursor` was given.

    Raises:
        InvalidData: It is no cursor.
    """
    at, _, last = cursor.partition(" ")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not last or "\0" in last:
        message = "this is no cursor: give back the one that the page before had"
        raise InvalidData(message, details={"path": "$.cursor"})
    return moment, last


def _context() -> Context:
    context = current_context()
    assert context is not None  # events come with one
    return context

"""Answers ``memory:moments``, ``memory:compact`` and ``memory:dream``."""

from datetime import datetime
from typing import Final
from uuid import UUID

from ksi_completion.events import Conversation, ConversationGet
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import InvalidData
from ksi_memory import events as e
from ksi_memory.conversations import dreaming
from ksi_memory.conversations.dreaming import Dreaming
from ksi_memory.conversations.remembering import Outcome, Remember, Remembering
from ksi_memory.conversations.store import ConversationStore
from ksi_memory.whose import current_whose
from ksi_workflows.api import Workflows

COMPACT_S: Final = 600.0


class MomentHandlers:
    """What people and agents have to do with moments, and with dreams.

    Args:
        store: Lists moments.
        remembering: Reads conversations.
        dreaming: Dreams.
        bus: Asks whose a conversation is.
        workflows: Waits for runs.
    """

    def __init__(
        self,
        store: ConversationStore,
        remembering: Remembering,
        dreaming: Dreaming,
        bus: Bus,
        workflows: Workflows,
    ) -> None:
        self._store = store
        self._remembering = remembering
        self._dreaming = dreaming
        self._bus = bus
        self._workflows = workflows

    @event_handler("memory:moments", scope="memory:read")
    async def moments(self, request: e.MemoryMoments) -> e.MemoryListed:
        """List moments, the newest first."""
        found = await self._store.moments(
            current_whose(),
            type=request.type,
            conversation=request.conversation_id,
            person=request.person,
            topic=request.topic,
            since=request.since,
            until=request.until,
            before=None if request.cursor is None else _before(request.cursor),
            limit=request.limit + 1,
        )
        page = found[: request.limit]
        return e.MemoryListed(
            items=tuple(page), next=_cursor(page[-1]) if len(found) > len(page) else None
        )

    @event_handler("memory:compact", scope="memory:write", timeout_s=COMPACT_S)
    async def compact(self, request: e.MemoryCompact) -> e.MemoryCompacted:
        """Sum up what a conversation's moments don't cover yet, if it is more than a threshold."""
        conversation = request.conversation_id
        await self._bus.request(  # who may not see it, finds it not there
            "conversation:get",
            ConversationGet(conversation_id=conversation),
            result_type=Conversation,
        )
        run = await self._remembering.start(Remember(conversation, request.threshold_tokens))
        outcome: Outcome = await self._workflows.result(
            run, timeout_s=COMPACT_S, result_type=Outcome
        )
        whose = current_whose()
        known = await self._store.coverage(whose.tenant, conversation)
        return e.MemoryCompacted(
            conversation_id=conversation,
            moments=outcome.moments,
            up_to=0 if known is None else known.covered,
            uncovered_tokens=0 if known is None else known.uncovered_tokens,
        )

    @event_handler("memory:dream", timeout_s=0)
    async def dream(self, request: e.MemoryDream) -> e.MemoryDreamt:
        """Go over the recent past: write moments, strengthen and merge, propose patterns."""
        at = dreaming.now()
        if request.since is not None and (request.since.tzinfo is None or request.since > at):
            raise InvalidData("since is a time that has been, with its zone", details=SINCE)
        dream = self._dreaming.dream_at(
            at,
            since=request.since,
            owner=current_whose().user,
            max_tokens=request.max_tokens,
            max_cost_usd=request.max_cost_usd,
        )
        if request.dry_run:
            return await self._dreaming.rehearse(dream)
        run = await self._workflows.start(self._dreaming.dream, dream)
        dreamt: e.MemoryDreamt = await self._workflows.result(run, result_type=e.MemoryDreamt)
        return dreamt


SINCE: Final = {"path": "$.since"}


def _cursor(last: e.Item) -> str:
    """Return where the next page begins."""
    return f"{(last.starts_at or last.valid_from).isoformat()} {last.id}"


def _before(cursor: str) -> tuple[datetime, UUID]:
    """Return what `_cursor` was given.

    Raises:
        InvalidData: It is no cursor.
    """
    at, _, item = cursor.partition(" ")
    try:
        moment, last = datetime.fromisoformat(at), UUID(item)
    except ValueError as error:
        raise _no_cursor() from error
    if moment.tzinfo is None:
        raise _no_cursor()
    return moment, last


def _no_cursor() -> InvalidData:
    message = "this is no cursor: give back the one that the page before had"
    return InvalidData(message, details={"path": "$.cursor"})

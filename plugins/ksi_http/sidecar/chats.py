"""What the rooms of chats look up: agents, conversations, and turns that wait for somebody.

Whoever may chat may have this looked up for the chat, whether or not the key may read chats: it is
asked in the caller's name, so that nobody is shown what is another's.
"""

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ksi_agents.events import AgentDefinition, AgentGet
from ksi_client import AsyncClient
from ksi_completion.events import (
    CompletionChildren,
    CompletionChildrenListed,
    CompletionList,
    CompletionListed,
    Conversation,
    ConversationGet,
    ConversationHistory,
    ConversationRead,
    Turn,
)
from ksi_daemon.protocol import NotFound
from ksi_models.events import TextPart, ToolResultPart

if TYPE_CHECKING:
    from ksi_http.sidecar.callers import Caller

KNOWN_S: Final = 30.0
MAX_KNOWN: Final = 1000
MAX_DEPTH: Final = 16
LOOKED_THROUGH: Final = 100  # messages

_CONVERSATION: Final = re.compile(r"[^\s\x00-\x1f]{1,200}")

Taken = Callable[[], AbstractAsyncContextManager[AsyncClient]]


def conversation_of(name: str) -> str:
    """Return the conversation that a name means, which may be any text elsewhere."""
    if _CONVERSATION.fullmatch(name):
        return name
    return f"key-{hashlib.sha256(msgspec.json.encode((name,))).hexdigest()[:40]}"


class Chats:
    """Looks up what chats need.

    Args:
        taken: Gives a connection to the daemon.
    """

    def __init__(self, taken: Taken) -> None:
        self._taken = taken
        self._agents: dict[tuple[str, str], float] = {}

    async def look(self, caller: "Caller", event: str, data: Any, kind: Any = None) -> Any:
        """Ask in a caller's name, whatever scopes the key has."""
        async with self._taken() as client:
            return await client.request(event, data, result_type=kind, context=caller.context)

    async def check_agent(self, caller: "Caller", name: str) -> None:
        """Go on only if there is such an agent; that is known for a while.

        Raises:
            NotFound: There is none; the message names the nearest.
        """
        now, key = time.monotonic(), (caller.tenant, name)
        if self._agents.get(key, 0.0) > now:
            return
        try:
            await self.look(caller, "agent:get", AgentGet(name=name))
        except NotFound:
            await self.look(caller, "agent:definition", AgentDefinition(name=name))
        if len(self._agents) >= MAX_KNOWN:
            self._agents.clear()
        self._agents[key] = now + KNOWN_S

    async def conversation(self, caller: "Caller", name: str) -> Conversation | None:
        """Return a conversation of the caller's, if there is one of that name."""
        try:
            found: Conversation = await self.look(
                caller, "conversation:get", ConversationGet(conversation_id=name), Conversation
            )
        except NotFound:
            return None
        return found

    async def at_work(self, caller: "Caller", conversation: str) -> Turn | None:
        """Return the turn that is at work in a conversation, or waits there for somebody."""
        asked = CompletionList(conversation_id=conversation, status=("paused", "running"), limit=10)
        listed: CompletionListed = await self.look(
            caller, "completion:list", asked, CompletionListed
        )
        return min(listed.turns, key=lambda turn: turn.turn, default=None)

    async def within(
        self, caller: "Caller", run: str, known: int = 0, wait_s: float = 0.0
    ) -> tuple[Turn, ...]:
        """Return the turns that were asked for within one; wait until there are more than known."""
        asked = CompletionChildren(run_id=run, known=known, wait_s=wait_s)
        listed: CompletionChildrenListed = await self.look(
            caller, "completion:children", asked, CompletionChildrenListed
        )
        return listed.turns

    async def was_said(self, caller: "Caller", conversation: str, run: str, text: str) -> bool:
        """Say whether a user has said just this within a turn: besides, or as an answer."""
        asked = ConversationHistory(conversation_id=conversation, limit=LOOKED_THROUGH)
        try:
            read: ConversationRead = await self.look(
                caller, "conversation:history", asked, ConversationRead
            )
        except NotFound:
            return False
        said = [each for each in read.messages if each.run_id == run]
        return any(
            (isinstance(part, TextPart) and part.text == text)
            or (isinstance(part, ToolResultPart) and part.content == text)
            for each in said[1:]  # it begins with what was asked
            if each.role != "assistant"
            for part in each.parts
        )

    async def waits_for_a_person(
        self, caller: "Caller", conversation: str, *, but_for: str
    ) -> bool:
        """Say whether the turn at work in a conversation, or one within it, waits for a person.

        Args:
            caller: Whose conversation it is.
            conversation: Its id.
            but_for: A turn that does not count.
        """
        turn = await self.at_work(caller, conversation)
        turns = [] if turn is None or turn.run_id == but_for else [turn]
        for _ in range(MAX_DEPTH):
            if any(each.status == "paused" for each in turns):
                return True
            turns = [
                within
                for each in turns
                if each.status == "running"
                for within in await self.within(caller, each.run_id)
            ]
        return False

"""Reads what was said in a conversation, as its own events tell it."""

from collections.abc import AsyncIterator, Iterable
from typing import Final

from ksi_completion.events import ConversationHistory, ConversationRead, NumberedMessage
from ksi_daemon.bus import Bus
from ksi_memory.language.extracts import Said
from ksi_models.events import TextPart

PAGE: Final = 200
OBJECTION: Final = "The answer does not fit the JSON Schema that it is to follow: "


async def messages(
    bus: Bus, conversation: str, after: int, through: int
) -> AsyncIterator[NumberedMessage]:
    """Yield messages by their numbers: those after one, through another.

    Raises:
        NotFound: There is no such conversation any more.
    """
    while after < through:
        ask = ConversationHistory(conversation_id=conversation, after=after, limit=PAGE)
        page = await bus.request("conversation:history", ask, result_type=ConversationRead)
        for message in page.messages:
            if message.number > through:
                return
            yield message
        if page.after is None or not page.messages:
            return
        after = page.after


def text_of(message: NumberedMessage) -> str:
    """Return a message's text; of a tool's, and of what a model is told of its answer, nothing."""
    if message.role not in ("user", "assistant"):
        return ""
    text = "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
    return "" if message.role == "user" and text.startswith(OBJECTION) else text


def said_in(some: Iterable[NumberedMessage]) -> list[Said]:
    """Return what messages say, of those that say anything."""
    texts = ((each, text_of(each)) for each in some)
    return [
        Said(each.number, each.role, text, each.created_at) for each, text in texts if text.strip()
    ]

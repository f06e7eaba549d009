"""Tells where something comes from: its versions, what these rest on, and what was said there."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from ksi_completion.events import ConversationHistory, ConversationRead, NumberedMessage
from ksi_daemon.bus import Bus
from ksi_daemon.protocol import KsiError
from ksi_memory import events as e
from ksi_memory.items.store import Items
from ksi_memory.whose import Whose
from ksi_models.events import TextPart

MAX_MESSAGES: Final = 40  # that are read for one answer
MAX_CHARACTERS: Final = 1000  # that are shown of each text

Version: TypeAlias = tuple[str, int]
Place: TypeAlias = tuple[str, int]


class Reasons:
    """Follows sources.

    Args:
        items: What is remembered.
        bus: Asks for messages, in the name of who asks.
    """

    def __init__(self, items: Items, bus: Bus) -> None:
        self._items = items
        self._bus = bus

    async def of(self, whose: Whose, item_id: str) -> e.MemoryReasons:
        """Return the chain of an item: bounded, each version told once."""
        chain = await self._items.chain(whose, item_id)
        said = await self._messages(chain)
        tree = _Tree({(each.id, each.version): each for each in chain}, said)
        own = [each for each in chain if each.id == item_id]
        return e.MemoryReasons(
            id=item_id,
            versions=tuple(
                tree.version((each.id, each.version), None)
                for each in sorted(own, key=lambda each: -each.version)
            ),
            derived=await self._items.resting_on(whose, item_id),
        )

    async def _messages(self, chain: Sequence[e.Item]) -> dict[Place, NumberedMessage]:
        wanted: dict[Place, None] = {}
        for item in chain:
            for source in item.sources:
                if source.conversation_id is not None and source.message is not None:
                    wanted[source.conversation_id, source.message] = None
        found = {}
        for conversation, number in list(wanted)[:MAX_MESSAGES]:
            message = await self._message(conversation, number)
            if message is not None:
                found[conversation, number] = message
        return found

    async def _message(self, conversation: str, number: int) -> NumberedMessage | None:
        """Return a message, if the asker may see it."""
        ask = ConversationHistory(conversation_id=conversation, after=number - 1, limit=1)
        try:
            read = await self._bus.request(
                "conversation:history", ask, result_type=ConversationRead
            )
        except KsiError:  # it is another's, or in a conversation where the asker has no say
            return None
        return next((each for each in read.messages if each.number == number), None)


class _Tree:
    """Makes the tree of a chain.

    Args:
        items: By id and version.
        said: Messages by conversation and number.
    """

    def __init__(self, items: dict[Version, e.Item], said: dict[Place, NumberedMessage]) -> None:
        self._items = items
        self._said = said
        self._told: set[Version] = set()

    def version(self, at: Version, source: e.Source | None) -> e.Because:
        """Tell of a version; what it rests on is told where it comes up first."""
        item = self._items.get(at)
        if item is None:
            return e.Because(what=f"version {at[1]} of the item {at[0]}", text="", source=source)
        is_new = at not in self._told
        self._told.add(at)
        return e.Because(
            what=f"version {item.version} of {item.table}/{item.key}",
            text=_short(item.body or item.title),
            at=item.valid_from,
            item=msgspec.structs.replace(item, body=_short(item.body)),
            source=source,
            rests_on=tuple(map(self._source, item.sources)) if is_new else (),
        )

    def _source(self, source: e.Source) -> e.Because:
        if source.item is not None and source.version is not None:
            return self.version((source.item, source.version), source)
        if source.conversation_id is not None:
            return self._message(source.conversation_id, source)
        if source.run_id is not None:
            return e.Because(what=f"run {source.run_id}", text=source.told, source=source)
        return e.Because(what=source.told or "somebody", text="", source=source)

    def _message(self, conversation: str, source: e.Source) -> e.Because:
        if source.message is None:
            return e.Because(what=f"conversation {conversation}", text=source.told, source=source)
        what = f"message {source.message} of {conversation}"
        message = self._said.get((conversation, source.message))
        if message is None:
            return e.Because(what=what, text=source.told, source=source)
        text = "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
        return e.Because(
            what=f"{what}, by the {message.role}",
            text=_short(text),
            at=message.created_at,
            source=source,
        )


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"

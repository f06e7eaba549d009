"""Puts an answer together out of the pieces that it comes in."""

from typing import Final

from msgspec import Struct

from ksi_models.events import (
    Finish,
    Message,
    Part,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    ToolCallDelta,
    ToolCallPart,
    Usage,
)
from ksi_models.failures import AnswerTooLong
from ksi_models.provider import Answered, ProviderError

MAX_ANSWER_CHARACTERS: Final = 8 * 1024 * 1024
MAX_CALLS: Final = 256

Piece = TextDelta | ThinkingDelta | ToolCallDelta


class _Call(Struct):
    id: str
    name: str
    arguments: list[str]


class AnswerBuilder:
    """Takes the pieces of an answer; those that come together leave as one of each kind.

    `take` returns what came since it was last called, in its order, neighbours of one kind joined.

    Raises:
        ProviderError: ``answer_too_long``, or ``malformed`` where it makes too many calls.
    """

    def __init__(self, max_characters: int = MAX_ANSWER_CHARACTERS) -> None:
        self.max_characters = max_characters
        self.characters = 0
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[_Call] = []
        self._fresh: list[Piece] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come yet."""
        return not self.characters and not self._calls

    @property
    def calls(self) -> int:
        """How many tool calls have begun."""
        return len(self._calls)

    def call_id(self, index: int) -> str:
        """Return the id of a call."""
        return self._calls[index].id

    def text(self, text: str) -> None:
        """Add text."""
        self._count(text)
        self._text.append(text)
        last = self._fresh[-1] if self._fresh else None
        if type(last) is TextDelta:
            self._fresh[-1] = TextDelta(last.text + text)
        else:
            self._fresh.append(TextDelta(text))

    def thinking(self, text: str) -> None:
        """Add what the model thinks."""
        self._count(text)
        self._thinking.append(text)
        last = self._fresh[-1] if self._fresh else None
        if type(last) is ThinkingDelta:
            self._fresh[-1] = ThinkingDelta(last.text + text)
        else:
            self._fresh.append(ThinkingDelta(text))

    def begin_call(self, call_id: str, name: str) -> int:
        """Begin a tool call; returns its place."""
        if len(self._calls) >= MAX_CALLS:
            raise ProviderError("malformed", f"the answer has more than {MAX_CALLS} tool calls")
        index = len(self._calls)
        self._calls.append(_Call(call_id or f"call_{index}", name, []))
        self._fresh.append(ToolCallDelta(index, self._calls[index].id, name, ""))
        return index

    def arguments(self, index: int, text: str, name: str = "") -> None:
        """Add to the arguments of a tool call; a name that comes late is taken."""
        self._count(text)
        call = self._calls[index]
        call.name = call.name or name
        call.arguments.append(text)
        last = self._fresh[-1] if self._fresh else None
        if type(last) is ToolCallDelta and last.index == index:
            text = last.arguments + text
            self._fresh.pop()
        self._fresh.append(ToolCallDelta(index, call.id, call.name, text))

    def take(self) -> list[Piece]:
        """Return what has come since the last time."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def message(self, signature: str | None = None) -> Message:
        """Return the whole message; ``signature`` is that of its thinking."""
        parts: list[Part] = []
        if self._thinking:
            parts.append(ThinkingPart("".join(self._thinking), signature))
        if self._text:
            parts.append(TextPart("".join(self._text)))
        parts.extend(ToolCallPart(c.id, c.name, "".join(c.arguments)) for c in self._calls)
        return Message("assistant", tuple(parts))

    def answered(
        self,
        finish: Finish,
        usage: Usage | None,
        *,
        served: str | None = None,
        signature: str | None = None,
    ) -> Answered:
        """Return the end of the answer."""
        if self._calls and finish in ("stop", "other"):
            finish = "tool_calls"
        message = self.message(signature)
        return Answered(message=message, finish=finish, usage=usage, served=served)

    def _count(self, text: str) -> None:
        self.characters += len(text)
        if self.characters > self.max_characters:
            raise AnswerTooLong(self.max_characters)

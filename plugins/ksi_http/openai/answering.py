"""Follows a turn for a client of OpenAI's shape, until it ends or waits for that client."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ksi_client import turns as c
from ksi_completion.events import CompletionAnswer
from ksi_http.openai.shapes import FinishReason

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

BETWEEN: Final = "\n\n"
FOLLOWED: Final = "completion:stream"
ANSWERED: Final = "completion:answer"


class Text(Struct, frozen=True):
    """More of the answer."""

    text: str


class Thinking(Struct, frozen=True):
    """More of what the model thinks."""

    text: str


class Void(Struct, frozen=True):
    """Some of what was said of the answer is void, and comes anew."""


class End(Struct, frozen=True):
    """The end of the answer, with the calls that are the client's to make."""

    reason: FinishReason
    calls: tuple[c.ToolCallChunk, ...] = ()


Piece = Text | Thinking | Void | End


class Said(Struct, frozen=True):
    """A piece that was shown, and where it stands in the turn."""

    offset: int
    piece: Text | Thinking


class Answering:
    """One answer: what a turn says from where the client had it.

    Args:
        app: The server.
        caller: Who has it.
        run: The turn.
        answers: What came of the calls that the client was asked to make, by their ids.
        past: Those whose results have to come before anything is news to the client.
        client_tools: What the client can do.

    Attributes:
        usage: What the models took for it.
    """

    def __init__(
        self,
        app: "Sidecar",
        caller: "Caller",
        run: str,
        answers: dict[str, str],
        past: set[str],
        client_tools: frozenset[str],
    ) -> None:
        self.usage = c.TokenUsage()
        self._app = app
        self._caller = caller
        self._run = run
        self._answers = answers
        self._past = set(past)
        self._client_tools = client_tools
        self._calls: dict[str, c.ToolCallChunk] = {}
        self._said: list[Said] = []
        self._is_new_step = False

    @property
    def text(self) -> str:
        """What it says, without what is void."""
        return "".join(each.piece.text for each in self._said if isinstance(each.piece, Text))

    @property
    def thinking(self) -> str:
        """What the model thought."""
        return "".join(each.piece.text for each in self._said if isinstance(each.piece, Thinking))

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Yield the answer, to its end; use `aclosing`.

        Raises:
            KsiError: The turn failed, or there is none that the caller may see.
        """
        async with self._app.client_for(self._caller, FOLLOWED) as client:
            chunks = client.follow_completion(self._run, context=self._caller.context)
            async with aclosing(chunks):
                async for chunk in chunks:
                    for piece in await self._take(chunk):
                        yield piece
                        if isinstance(piece, End):
                            return

    async def _take(self, chunk: c.CompletionChunk) -> list[Piece]:
        if isinstance(chunk, c.StatusChunk):
            return await self._wait(chunk)
        if isinstance(chunk, c.Completion):
            return [End("stop")]
        if isinstance(chunk, c.RestartedChunk):
            return self._void(chunk.offset)
        if isinstance(chunk, c.TextChunk | c.ThinkingChunk):
            return [] if self._past else self._say(chunk)
        self._note(chunk)
        return []

    def _note(self, chunk: c.CompletionChunk) -> None:
        if isinstance(chunk, c.ToolCallChunk):
            self._calls[chunk.call_id] = chunk
        elif isinstance(chunk, c.ToolResultChunk):
            self._calls.pop(chunk.call_id, None)
            self._past.discard(chunk.call_id)
        elif isinstance(chunk, c.StepChunk):
            self._is_new_step = bool(self.text)
            if not self._past:
                self.usage = _sum(self.usage, chunk.usage)

    def _say(self, chunk: c.TextChunk | c.ThinkingChunk) -> list[Piece]:
        text = chunk.text
        if isinstance(chunk, c.ThinkingChunk):
            return [self._shown(chunk.offset, Thinking(text))]
        if self._is_new_step:
            self._is_new_step, text = False, BETWEEN + text
        return [self._shown(chunk.offset, Text(text))]

    def _shown(self, offset: int, piece: Text | Thinking) -> Piece:
        self._said.append(Said(offset, piece))
        return piece

    def _void(self, offset: int) -> list[Piece]:
        before = self.text
        self._said = [each for each in self._said if each.offset < offset]
        self._calls = {key: each for key, each in self._calls.items() if each.offset < offset}
        self._is_new_step = bool(self.text)
        return [Void()] if self.text != before else []

    async def _wait(self, status: c.StatusChunk) -> list[Piece]:
        call = status.call_id or ""
        if status.waits_for not in ("answer", "decision"):
            return []
        content = self._answers.pop(call, None)
        if content is not None:
            asked = CompletionAnswer(run_id=self._run, content=content, call_id=call)
            await self._app.request(self._caller, ANSWERED, asked)
            return []
        if call in self._past:
            return []  # it has been answered, and goes on in a moment
        if call in self._calls and self._calls[call].name in self._client_tools:
            theirs = [each for each in self._calls.values() if each.name in self._client_tools]
            return [End("tool_calls", tuple(theirs))]
        text = (BETWEEN if self.text else "") + status.message
        return [self._shown(2**62, Text(text)), End("stop")]


def _sum(one: c.TokenUsage, other: c.TokenUsage) -> c.TokenUsage:
    sums: dict[str, Any] = {
        name: getattr(one, name) + getattr(other, name) for name in one.__struct_fields__
    }
    return c.TokenUsage(**sums)

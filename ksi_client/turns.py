"""What a turn of a conversation looks like to its client, and how a cut stream is taken up again.

These are the daemon's own payloads as a client needs them, without the plugin that sends them.
"""

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict

from msgspec import Struct
from msgspec.structs import replace

from ksi_daemon.protocol import Cancelled, ErrorBody, Failed, KsiError
from ksi_daemon.protocol.errors import error_from

OPEN: Final = frozenset({"waiting", "running", "paused"})
RECONNECT_S: Final = 60.0


class TokenUsage(Struct, frozen=True, kw_only=True):
    """Tokens by kind; ``input_tokens`` includes those of the caches."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    thinking_tokens: int = 0


class AcceptedChunk(Struct, frozen=True, kw_only=True, tag="accepted", tag_field="kind"):
    """The turn is recorded, and outlives the daemon from now on."""

    run_id: str
    conversation_id: str
    request_id: str


class TextChunk(Struct, frozen=True, kw_only=True, tag="text", tag_field="kind"):
    """More of the answer's text."""

    attempt: int
    offset: int
    text: str


class ThinkingChunk(Struct, frozen=True, kw_only=True, tag="thinking", tag_field="kind"):
    """More of what the model thinks."""

    attempt: int
    offset: int
    text: str


class ToolCallChunk(Struct, frozen=True, kw_only=True, tag="tool_call", tag_field="kind"):
    """The model calls a tool; ``arguments`` is the JSON that it wrote."""

    attempt: int
    offset: int
    call_id: str
    name: str
    arguments: str


class ToolResultChunk(Struct, frozen=True, kw_only=True, tag="tool_result", tag_field="kind"):
    """What came of a tool call."""

    attempt: int
    offset: int
    call_id: str
    name: str
    content: str
    is_error: bool = False


class StepChunk(Struct, frozen=True, kw_only=True, tag="step", tag_field="kind"):
    """A model call of the turn is over, and what it took."""

    attempt: int
    offset: int
    model: str
    usage: TokenUsage
    cost_usd: float | None


class RestartedChunk(Struct, frozen=True, kw_only=True, tag="restarted", tag_field="kind"):
    """What came from ``offset`` on is void, and comes anew."""

    attempt: int
    offset: int
    why: str


class StatusChunk(Struct, frozen=True, kw_only=True, tag="status", tag_field="kind"):
    """What the turn waits for just now.

    ``waits_for`` is ``turn``, ``slot``, ``rate``, ``retry``, ``circuit``, ``fallback``, ``model``,
    ``summary`` (what falls out of the model's window is summed up), ``tool``, ``answer`` (a person
    is asked; see ``answer_completion``) or ``decision`` (a call is in doubt; see
    ``tool:resolve``). The client itself adds ``daemon``: the connection is lost, and it tries to
    find the daemon again.
    """

    waits_for: str
    message: str
    delay_s: float | None = None
    call_id: str | None = None


class Completion(Struct, frozen=True, kw_only=True, tag="result", tag_field="kind"):
    """A turn that has ended, or how it stands.

    Attributes:
        run_id: Names the turn.
        conversation_id: What to go on with.
        request_id: What makes the request safe to repeat.
        turn: Its number in the conversation.
        status: ``succeeded``, ``failed``, ``cancelled``; or ``waiting``, ``running``, ``paused``.
        text: The answer, as far as there is one.
        output: The answer's value where an ``output_schema`` was given.
        model: Which one answered.
        usage: The tokens of all its model calls.
        cost_usd: What they cost; ``None`` where a price is not known.
        steps: How many model calls there were.
        tool_calls: How many tool calls there were.
        error: Why it failed.
    """

    run_id: str
    conversation_id: str
    request_id: str
    turn: int
    status: str
    text: str = ""
    output: Any = None
    model: str | None = None
    usage: TokenUsage = TokenUsage()
    cost_usd: float | None = None
    steps: int = 0
    tool_calls: int = 0
    error: ErrorBody | None = None
    accepted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether the turn has not ended yet."""
        return self.status in OPEN


class TurnAccepted(Struct, frozen=True, kw_only=True):
    """The turn is recorded: the answer of ``completion:async``, as far as it is needed."""

    run_id: str


CompletionChunk = (
    AcceptedChunk
    | TextChunk
    | ThinkingChunk
    | ToolCallChunk
    | ToolResultChunk
    | StepChunk
    | RestartedChunk
    | StatusChunk
    | Completion
)
Offset = TextChunk | ThinkingChunk | ToolCallChunk | ToolResultChunk | StepChunk


class TurnOptions(TypedDict, total=False):
    """How a turn is to be had; `AsyncClient.create_completion` and its likes take these.

    Attributes:
        messages: Instead of a prompt: messages, the last of them the user's.
        model: Which one is asked; the conversation's, or the default, unless given.
        conversation_id: Which conversation to go on with; a new one unless given.
        agent: In whose name.
        system: The system prompt.
        instructions: What is told after the system prompt, in this turn alone.
        tools: Globs that narrow which tools the model may call.
        settings: Such as ``{"temperature": 0.2}``.
        output_schema: A JSON Schema; the answer's value is then ``output``.
        client_tools: What the program at this end can do: ``tool:answer`` tells what came of it.
        priority: Among those that wait for the model; 1 is first.
        timeout_s: How long the turn may take in the daemon.
        request_id: With the same one, asking twice is asking once.
    """

    messages: Sequence[Any]
    model: str | None
    conversation_id: str | None
    agent: str | None
    system: str | None
    instructions: str | None
    tools: Sequence[str] | None
    settings: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    client_tools: Sequence[Any]
    priority: int | None
    timeout_s: float | None
    request_id: str | None


def turn_request(prompt: str | None, options: TurnOptions) -> dict[str, Any]:
    """Return the payload of ``completion:async``: what is given, and a request's id.

    Raises:
        TypeError: There is no such option.
    """
    unknown = options.keys() - TurnOptions.__optional_keys__
    if unknown:
        raise TypeError(f"a turn has no option {min(unknown)!r}")
    given = {"prompt": prompt, **options}
    payload = {name: value for name, value in given.items() if value is not None and value != ()}
    payload.setdefault("request_id", f"client-{uuid.uuid4().hex}")
    return payload


def succeeded(completion: Completion) -> Completion:
    """Return a turn that did not fail.

    Raises:
        KsiError: It did; its ``details`` name the turn.
    """
    if completion.status == "succeeded" or completion.is_open:
        return completion
    ids = {
        "run_id": completion.run_id,
        "conversation_id": completion.conversation_id,
        "request_id": completion.request_id,
    }
    body = completion.error
    if body is None:
        if completion.status == "cancelled":
            raise Cancelled("the turn was cancelled", details=ids)
        raise Failed("the turn failed, and gave no reason", details=ids)
    details = {**(body.details or {}), **ids}
    raise error_from(ErrorBody(body.code, body.message, body.retry_after_s, details))


class Following:
    """Keeps the place in a turn's stream, so that it can be read on after a cut.

    Args:
        start: The payload of ``completion:async``, or ``None`` where the turn exists already.
        run_id: The turn that exists.
        offset: Where to begin.
    """

    def __init__(
        self,
        start: Mapping[str, Any] | None,
        *,
        run_id: str | None = None,
        offset: int = 0,
    ) -> None:
        self.run_id = run_id
        self.offset: int = offset
        self._start = start
        self._attempt = 1
        self._has_begun = False

    @property
    def request(self) -> dict[str, Any]:
        """The payload of ``completion:stream`` that reads on; it may be sent again."""
        if self.run_id is None:
            return {"start": self._start}
        return {"run_id": self.run_id, "offset": self.offset, "attempt": self._attempt}

    @staticmethod
    def lost(error: KsiError) -> StatusChunk:
        """Return what to tell of a cut."""
        return StatusChunk(waits_for="daemon", message=f"{error.message}; looking for the daemon")

    def take(self, chunk: CompletionChunk) -> Iterator[CompletionChunk]:
        """Take what came, and yield what of it is new."""
        if isinstance(chunk, AcceptedChunk):
            is_known, self.run_id = self.run_id == chunk.run_id, chunk.run_id
            if is_known and self._has_begun:
                return
            self._has_begun = True
            yield chunk
        elif isinstance(chunk, StatusChunk | Completion):
            yield chunk
        elif isinstance(chunk, RestartedChunk):
            self._attempt, self.offset = chunk.attempt, chunk.offset
            yield chunk
        else:
            self._attempt = chunk.attempt
            yield from self._advance(chunk)

    def _advance(self, chunk: Offset) -> Iterator[CompletionChunk]:
        had = max(self.offset - chunk.offset, 0)
        if not isinstance(chunk, TextChunk | ThinkingChunk):
            if had == 0:
                self.offset = chunk.offset + 1
                yield chunk
        elif had < len(chunk.text):
            self.offset = chunk.offset + len(chunk.text)
            rest = chunk.text[had:]
            yield replace(chunk, offset=chunk.offset + had, text=rest) if had else chunk


def delays_s(first: float = 0.05, last: float = 1.0) -> Iterator[float]:
    """Yield how long to wait before each further try."""
    return (min(first * 2**number, last) for number in itertools.count())

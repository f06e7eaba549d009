"""Makes AG-UI's events of what a turn says; it asks nobody, and remembers what it has said.

A client can go on where its stream was cut: each event has a place, which is where it stands in the
turn's own stream. Whoever translates that stream again, in another process and in other pieces,
comes to the same events at the same places.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from ksi_client import turns as c
from ksi_daemon.protocol import InvalidData
from ksi_http.agui import events as a

Kind = Literal["t", "r"]  # text, or what the model thinks
Open = Literal["t", "r", "p"]  # and the place for that, which is opened before and closed after
Snapshot = Callable[[], a.MessagesSnapshot]

_PLACE: Final = re.compile(
    r"(?P<attempt>\d{1,9})\.(?P<offset>\d{1,15})\.(?P<index>\d{1,9})\."
    r"(?P<open>s?(?:[trp]\d{1,9}-\d{1,9}-\d{1,9})?)~(?P<run>[^\s~]{1,200})"
)


class Place(Struct, frozen=True, order=True):
    """Where an event stands: how much of the turn's stream is over, and how many came since then.

    Attributes:
        offset: In the turn's stream.
        index: Of the events that come at that offset.
        attempt: How often something of the stream was void before.
        open: What is open after the event: ``s`` for a step, then a message's kind and the end of
            its id.
        run: The turn.
    """

    offset: int
    index: int
    attempt: int = 1
    open: str = ""
    run: str = ""

    def __str__(self) -> str:
        return f"{self.attempt}.{self.offset}.{self.index}.{self.open}~{self.run}"


def read_place(text: str) -> Place:
    """Read what a client sends as ``Last-Event-ID``.

    Raises:
        InvalidData: It is none that was sent.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise InvalidData("Last-Event-ID is none that was sent here: begin without it")
    return Place(
        offset=int(found["offset"]),
        index=int(found["index"]),
        attempt=int(found["attempt"]),
        open=found["open"],
        run=found["run"],
    )


class Sent(Struct, frozen=True):
    """An event, and its place where it has one: what is told in passing has none."""

    event: a.AgUiEvent
    place: Place | None = None


class Call(Struct, frozen=True):
    """A call of a tool that has been made; ``start`` is its place in the turn's stream."""

    id: str
    name: str
    arguments: str
    start: int


class Message(Struct):
    """A message as far as it was said; ``start`` is its place in the turn's stream."""

    id: str
    role: Literal["assistant", "reasoning", "tool"]
    start: int
    pieces: list[str] = []
    calls: list[Call] = []
    call_id: str = ""

    @property
    def content(self) -> str:
        """What it says."""
        return "".join(self.pieces)

    def as_input(self) -> dict[str, Any]:
        """Return it as the protocol writes messages."""
        written: dict[str, Any] = {"id": self.id, "role": self.role, "content": self.content}
        if self.role == "tool":
            written["toolCallId"] = self.call_id
        if self.calls:
            written["toolCalls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        return written


class Translation:
    """Translates one turn's stream.

    Args:
        run: The turn.
        snapshot: Gives all messages, where some that were sent are void.
        owner: The id under which it is a sub-agent; ``None`` for the turn that was asked for.

    Attributes:
        calls: The calls that came to nothing yet, by id.
        usage: What its models took.
        messages: What it has said.
    """

    def __init__(self, run: str, snapshot: Snapshot, owner: str | None = None) -> None:
        self.run = run
        self.owner = owner
        self.calls: dict[str, Call] = {}
        self.usage: dict[str, a.Usage] = {}
        self.messages: list[Message] = []
        self._snapshot = snapshot
        self._step = 1
        self._is_in_step = False
        self._opened = 0  # messages of the step
        self._open: tuple[Open, str] | None = None
        self._offset = 0
        self._index = 0
        self._attempt = 1

    # -- chunks ---------------------------------------------------------------------------------

    def feed(self, chunk: c.CompletionChunk) -> Iterator[Sent]:
        """Yield the events for a chunk; its end is another's business."""
        if isinstance(chunk, c.TextChunk):
            yield from self._say("t", chunk)
        elif isinstance(chunk, c.ThinkingChunk):
            yield from self._say("r", chunk)
        elif isinstance(chunk, c.ToolCallChunk):
            yield from self._call(chunk)
        elif isinstance(chunk, c.ToolResultChunk):
            yield from self._result(chunk)
        elif isinstance(chunk, c.StepChunk):
            yield from self._end_step(chunk)
        elif isinstance(chunk, c.RestartedChunk):
            yield from self.void(chunk)
        elif isinstance(chunk, c.StatusChunk):
            value = {"waitsFor": chunk.waits_for, "message": chunk.message}
            if chunk.delay_s is not None:
                value["delayS"] = f"{chunk.delay_s:g}"
            yield Sent(a.Custom(name=a.STATUS, value=value, subagent_run_id=self.owner))

    def close(self) -> Iterator[Sent]:
        """Yield the ends of what is open."""
        yield from self._close_message()
        if self._is_in_step:
            self._is_in_step = False
            yield self._at_place(a.StepFinished(step_name=self._name, subagent_run_id=self.owner))

    def void(self, chunk: c.RestartedChunk) -> Iterator[Sent]:
        """Yield the end of what is void, and all messages without it."""
        yield from self.close()
        gone = [each.id for each in self.messages if each.start >= chunk.offset]
        self._forget(chunk.offset)
        self._attempt, self._index, self._opened = chunk.attempt, 0, 0
        value = {"why": chunk.why, "messageIds": gone}
        yield Sent(a.Custom(name=a.VOID, value=value, subagent_run_id=self.owner))
        yield Sent(self._snapshot())

    def reopen(self, place: Place) -> None:
        """Take what a client has open for what is open."""
        self._is_in_step = place.open.startswith("s")
        written = place.open.removeprefix("s")
        if written:
            kinds: dict[str, Open] = {"t": "t", "r": "r", "p": "p"}
            self._open = (kinds[written[0]], f"{self.run}-{written[1:]}")

    @property
    def place(self) -> Place:
        """Where the last event stood."""
        return Place(self._offset, self._index, self._attempt, self._written, self.run)

    # -- words ----------------------------------------------------------------------------------

    def _say(self, kind: Kind, chunk: c.TextChunk | c.ThinkingChunk) -> Iterator[Sent]:
        self._attempt = chunk.attempt
        yield from self._begin_step()
        if self._open is None or self._open[0] != kind:
            yield from self._close_message()
            yield from self._open_message(kind, chunk.offset)
        assert self._open is not None
        self.messages[-1].pieces.append(chunk.text)
        event = a.TextMessageContent if kind == "t" else a.ReasoningMessageContent
        content = event(message_id=self._open[1], delta=chunk.text, subagent_run_id=self.owner)
        yield self._at_place(content, chunk.offset + len(chunk.text))

    def _open_message(self, kind: Kind, start: int) -> Iterator[Sent]:
        self._opened += 1
        name = f"{self.run}-{self._step}-{self._opened}-{self._attempt}"
        self._open = ("t" if kind == "t" else "p", name)
        role: Literal["assistant", "reasoning"] = "assistant" if kind == "t" else "reasoning"
        self.messages.append(Message(name, role, start))
        owner = self.owner
        if kind == "t":
            start_of = a.TextMessageStart(message_id=name, role="assistant", subagent_run_id=owner)
            yield self._at_place(start_of)
            return
        yield self._at_place(a.ReasoningStart(message_id=name, subagent_run_id=owner))
        self._open = ("r", name)
        begun = a.ReasoningMessageStart(message_id=name, role="reasoning", subagent_run_id=owner)
        yield self._at_place(begun)

    def _close_message(self) -> Iterator[Sent]:
        if self._open is None:
            return
        (kind, name), owner = self._open, self.owner
        if kind == "t":
            self._open = None
            yield self._at_place(a.TextMessageEnd(message_id=name, subagent_run_id=owner))
            return
        if kind == "r":
            self._open = ("p", name)
            yield self._at_place(a.ReasoningMessageEnd(message_id=name, subagent_run_id=owner))
        self._open = None
        yield self._at_place(a.ReasoningEnd(message_id=name, subagent_run_id=owner))

    # -- calls ----------------------------------------------------------------------------------

    def _call(self, chunk: c.ToolCallChunk) -> Iterator[Sent]:
        self._attempt = chunk.attempt
        yield from self._begin_step()
        yield from self._close_message()
        call = Call(chunk.call_id, chunk.name, chunk.arguments, chunk.offset)
        self.calls[call.id] = call
        parent = self._bearer(chunk.offset)
        parent.calls.append(call)
        yield self._at_place(
            a.ToolCallStart(
                tool_call_id=call.id,
                tool_call_name=call.name,
                parent_message_id=parent.id,
                subagent_run_id=self.owner,
            )
        )
        arguments = a.ToolCallArgs(
            tool_call_id=call.id, delta=call.arguments, subagent_run_id=self.owner
        )
        yield self._at_place(arguments)
        end = a.ToolCallEnd(tool_call_id=call.id, subagent_run_id=self.owner)
        yield self._at_place(end, chunk.offset + 1)

    def _bearer(self, start: int) -> Message:
        """Return the step's message that bears its calls, made where the model said nothing."""
        prefix = f"{self.run}-{self._step}-"
        for each in reversed(self.messages):
            if each.role == "assistant" and each.id.startswith(prefix):
                return each
        self._opened += 1
        made = Message(f"{prefix}{self._opened}-{self._attempt}", "assistant", start)
        self.messages.append(made)
        return made

    def _result(self, chunk: c.ToolResultChunk) -> Iterator[Sent]:
        self._attempt = chunk.attempt
        self.calls.pop(chunk.call_id, None)
        name = f"{chunk.call_id}:result"
        self.messages.append(
            Message(name, "tool", chunk.offset, [chunk.content], call_id=chunk.call_id)
        )
        result = a.ToolCallResult(
            message_id=name,
            tool_call_id=chunk.call_id,
            content=chunk.content,
            role="tool",
            metadata={"isError": True} if chunk.is_error else None,
            subagent_run_id=self.owner,
        )
        yield self._at_place(result, chunk.offset + 1)

    # -- steps ----------------------------------------------------------------------------------

    def _begin_step(self) -> Iterator[Sent]:
        if not self._is_in_step:
            self._is_in_step = True
            yield self._at_place(a.StepStarted(step_name=self._name, subagent_run_id=self.owner))

    def _end_step(self, chunk: c.StepChunk) -> Iterator[Sent]:
        self._attempt = chunk.attempt
        yield from self._begin_step()
        yield from self._close_message()
        self._count(chunk)
        end = a.StepFinished(step_name=self._name, subagent_run_id=self.owner)
        self._is_in_step, self._step, self._opened = False, self._step + 1, 0
        yield self._at_place(end, chunk.offset + 1)

    @property
    def _name(self) -> str:
        return f"step {self._step}"

    def _count(self, chunk: c.StepChunk) -> None:
        before, usage = self.usage.get(chunk.model, a.Usage(model=chunk.model)), chunk.usage
        self.usage[chunk.model] = replace(
            before,
            input_tokens=before.input_tokens + usage.input_tokens,
            output_tokens=before.output_tokens + usage.output_tokens,
            total_tokens=before.total_tokens + usage.input_tokens + usage.output_tokens,
            reasoning_tokens=before.reasoning_tokens + usage.thinking_tokens,
            cached_input_tokens=before.cached_input_tokens + usage.cache_read_tokens,
            cache_write_input_tokens=before.cache_write_input_tokens + usage.cache_write_tokens,
        )

    # -- places ---------------------------------------------------------------------------------

    def _at_place(self, event: a.AgUiEvent, offset: int | None = None) -> Sent:
        """Give an event its place: the last one of a chunk stands where the chunk ends."""
        if offset is None:
            self._index += 1
        else:
            self._offset, self._index = offset, 0
        return Sent(event, self.place)

    @property
    def _written(self) -> str:
        step = "s" if self._is_in_step else ""
        if self._open is None:
            return step
        kind, name = self._open
        return f"{step}{kind}{name.removeprefix(f'{self.run}-')}"

    def _forget(self, offset: int) -> None:
        """Forget what was said from an offset on."""
        self.messages = [each for each in self.messages if each.start < offset]
        self.calls = {key: call for key, call in self.calls.items() if call.start < offset}
        for each in self.messages:
            each.calls = [call for call in each.calls if call.start < offset]
            if each.role != "tool":
                each.pieces = [each.content[: offset - each.start]]
        self._offset = min(self._offset, offset)


class Resumption:
    """Translates a turn's stream again, and yields what a client has not had of it.

    Args:
        translation: Of the turn, from its beginning.
        place: That of the last event that the client had.
    """

    def __init__(self, translation: Translation, place: Place) -> None:
        self._translation = translation
        self._place = place
        self.is_over = False  # whether all that the client has had is behind

    @property
    def is_at_end(self) -> bool:
        """Whether the client has had no more than what is behind."""
        return self.is_over or _key(self._translation.place) >= _key(self._place)

    def feed(self, chunk: c.CompletionChunk) -> Iterator[Sent]:
        """Yield the events for a chunk that the client has not had."""
        if self.is_over:
            yield from self._translation.feed(chunk)
            return
        if _is_void(chunk, self._place):
            self.is_over = True
            assert not isinstance(chunk, c.AcceptedChunk | c.StatusChunk | c.Completion)
            for _ in self._translation.close():
                pass
            self._translation.reopen(self._place)
            why = "the stream was cut, and what came before was made anew"
            restarted = c.RestartedChunk(attempt=chunk.attempt, offset=chunk.offset, why=why)
            yield from self._translation.void(restarted)
            yield from self._translation.feed(chunk)
            return
        for piece in _split(chunk, self._place.offset):
            for sent in self._translation.feed(piece):
                if sent.place is not None and not self.is_over:
                    self.is_over = _key(sent.place) > _key(self._place)
                if self.is_over:
                    yield sent


def _key(place: Place) -> tuple[int, int]:
    return place.offset, place.index


def _is_void(chunk: c.CompletionChunk, place: Place) -> bool:
    """Say whether a client has had something in the place of a chunk that is void since."""
    if isinstance(chunk, c.AcceptedChunk | c.StatusChunk | c.Completion):
        return False
    return chunk.attempt > place.attempt and (chunk.offset, 0) < _key(place)


def _split(chunk: c.CompletionChunk, offset: int) -> Sequence[c.CompletionChunk]:
    """Return a chunk in two, where a client has had the first part of it."""
    if not isinstance(chunk, c.TextChunk | c.ThinkingChunk):
        return (chunk,)
    if not chunk.offset < offset < chunk.offset + len(chunk.text):
        return (chunk,)
    cut = offset - chunk.offset
    return (
        replace(chunk, text=chunk.text[:cut]),
        replace(chunk, text=chunk.text[cut:], offset=offset),
    )

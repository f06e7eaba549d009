"""Hands what turns say to whoever follows them, in memory, past all that is recorded.

A turn's stream is a sequence of units: a character of text or of thinking is one, a tool call, its
result and the end of a step are one each. What is kept of it here is the part that is not yet, or
was only just, in the conversation; the rest can be read there, at the same offsets.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from ksi_completion.events import (
    CompletionResult,
    StreamChunk,
    StreamRestarted,
    StreamStatus,
    StreamStep,
    StreamText,
    StreamThinking,
    StreamToolCall,
    StreamToolResult,
)

HELD_UP: Final = ("retry", "rate", "circuit")

Single = StreamToolCall | StreamToolResult | StreamStep
Kind = type[StreamText] | type[StreamThinking]


class Entry:
    """A run of text of one kind, in the pieces in which it came, or one other chunk."""

    __slots__ = ("attempt", "kind", "pieces", "single", "start", "units")

    def __init__(self, start: int, attempt: int, kind: Kind | None, single: Single | None) -> None:
        self.start = start
        self.attempt = attempt
        self.kind = kind
        self.single = single
        self.pieces: list[str] = []
        self.units = 0 if single is None else 1

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.start + self.units


class Position:
    """How far a follower has come.

    Attributes:
        offset: In units.
        attempt: Of what it was told last.
        is_checked: Whether it is known that nothing it was told before is void.
    """

    __slots__ = (
        "attempt",
        "entry",
        "is_checked",
        "offset",
        "piece",
        "relayed",
        "status",
        "was_told_to_wait",
    )

    def __init__(self, offset: int = 0, attempt: int = 1) -> None:
        self.offset = offset
        self.attempt = attempt
        self.is_checked = offset == 0
        self.entry: Entry | None = None
        self.piece = 0
        self.status = 0
        self.was_told_to_wait = False
        self.relayed = 0


class Live:
    """The stream of one turn, as far as it is in memory.

    Attributes:
        base: The offset at which the step at work begins.
        attempt: How often the stream was begun anew, and what came of it since is void.
        result: How the turn ended, once it has.
    """

    def __init__(self, run: str, max_bytes: int) -> None:
        self.run = run
        self.base = 0
        self.attempt = 1
        self.why = ""
        self.result: CompletionResult | None = None
        self._voids: list[tuple[int, int]] = []  # attempts, and from where on they are anew
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: list[Entry] = []
        self._first = 0  # the offset from which on all is there
        self._end = 0
        self._status: StreamStatus | None = None
        self._status_number = 0
        self._shown_at = datetime.now(UTC)
        self._shown_end = 0  # where its text ended then
        self._news: set[asyncio.Future[None]] = set()

    # -- said by who is at work -----------------------------------------------------------------

    def open_step(self, base: int, attempt: int, why: str = "") -> None:
        """Begin a step at an offset; what was said from there on is void."""
        if base < self._end:
            self._cut(base)
        if base > self._end:  # what lies between is in the conversation
            self._entries.clear()
            self._bytes = 0
            self._first = base
        self.base = self._end = base
        self.attempt = attempt
        if why:
            self.why = why
            self._voids.append((attempt, base))
        self._trim()
        self.wake()

    def restart(self, attempt: int, why: str) -> None:
        """Begin the step anew."""
        self._cut(self.base)
        self._end = self.base
        self.attempt, self.why = attempt, why
        self._voids.append((attempt, self.base))
        self.wake()

    def say(self, kind: Kind, text: str) -> None:
        """Add text."""
        if not text:
            return
        last = self._entries[-1] if self._entries else None
        if last is None or last.kind is not kind or last.start < self.base:
            last = Entry(self._end, self.attempt, kind, None)
            self._entries.append(last)
        last.pieces.append(text)
        last.units += len(text)
        self._end += len(text)
        self._bytes += len(text)
        if self._news:
            self.wake()

    def add(self, single: Single) -> None:
        """Add a chunk that counts one."""
        self._entries.append(Entry(self._end, self.attempt, None, single))
        self._end += 1
        self._bytes += 200
        if self._news:
            self.wake()

    def show(self, status: StreamStatus) -> None:
        """Tell what the turn waits for just now."""
        self._status = status
        self._status_number += 1
        self._shown_at, self._shown_end = datetime.now(UTC), self._end
        self.wake()

    def held_up(self) -> tuple[str, datetime | None] | None:
        """Return why no model answers just now, and until when that is so, if it is known."""
        status = self._status
        if status is None or status.waits_for not in HELD_UP or self._end > self._shown_end:
            return None
        until = None
        if status.delay_s is not None:
            until = self._shown_at + timedelta(seconds=status.delay_s)
            if until < datetime.now(UTC):
                return None
        return f"{status.waits_for}: {status.message}", until

    def finish(self, result: CompletionResult) -> None:
        """Tell how it ended."""
        self.result = result
        self.wake()

    @property
    def end(self) -> int:
        """The offset up to which something was said."""
        return self._end

    def said(self) -> list[tuple[Kind, str]]:
        """Return the texts of the step at work."""
        return [
            (entry.kind, "".join(entry.pieces))
            for entry in self._entries
            if entry.kind is not None and entry.start >= self.base
        ]

    def _cut(self, offset: int) -> None:
        while self._entries and self._entries[-1].start >= offset:
            self._entries.pop()
        self._first = min(self._first, offset)

    def _trim(self) -> None:
        """Forget what is in the conversation, oldest first."""
        while self._bytes > self._max_bytes and self._entries and self._entries[0].end <= self.base:
            gone = self._entries.pop(0)
            self._first = gone.end
            self._bytes -= gone.units

    # -- asked by followers ---------------------------------------------------------------------

    @property
    def first(self) -> int:
        """The offset from which on all is here."""
        return self._first

    def read(self, position: Position) -> Iterator[StreamChunk]:
        """Yield what is new to a follower, and move its position on.

        All that has come of a text since is one chunk: a follower that is slow gets the rest at
        once. Its position must not be before `first`.
        """
        voids = [(at, -attempt) for attempt, at in self._voids if attempt > position.attempt]
        if voids:
            void, attempt = min(voids)  # what is said from there on is of that attempt, or later
            if position.offset > void:
                position.offset, position.entry = void, None
                yield StreamRestarted(attempt=-attempt, offset=void, why=self.why)
        position.attempt = self.attempt
        yield from self._texts(position)
        if self._status is not None and position.status != self._status_number:
            position.status = self._status_number
            if position.offset >= self._end:
                yield self._status

    def _texts(self, position: Position) -> Iterator[StreamChunk]:
        for entry in self._from(position):
            if entry.single is not None:
                position.offset = entry.end
                yield entry.single
                continue
            text = self._rest(entry, position)
            if text:
                offset = position.offset
                position.offset = entry.end
                assert entry.kind is not None
                yield entry.kind(attempt=entry.attempt, offset=offset, text=text)

    def _from(self, position: Position) -> list[Entry]:
        entries = self._entries
        place = len(entries)
        while place and entries[place - 1].end > position.offset:
            place -= 1
        return entries[place:]

    def _rest(self, entry: Entry, position: Position) -> str:
        if position.entry is entry:
            text = "".join(entry.pieces[position.piece :])
        else:
            text = "".join(entry.pieces)[position.offset - entry.start :]
        position.entry, position.piece = entry, len(entry.pieces)
        return text

    def has_news(self, position: Position) -> bool:
        """Say whether there is something that a follower was not told."""
        is_old = position.attempt == self.attempt and position.status == self._status_number
        return not is_old or position.offset < self._end

    async def news(self, *, at_most_s: float | None = None) -> None:
        """Wait until something may be new, for so long."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.add(future)
        try:
            await asyncio.wait({future}, timeout=at_most_s)
        finally:
            self._news.discard(future)

    def wake(self) -> None:
        """Have those who follow look."""
        waiting, self._news = self._news, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Hub:
    """The streams of the turns that are at work here.

    Args:
        max_bytes: How much of each is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lives: dict[str, Live] = {}

    def find(self, run: str) -> Live | None:
        """Return the stream of a turn, if something is known of it here."""
        return self._lives.get(run)

    def begin(self, run: str) -> Live:
        """Begin the stream of a turn."""
        live = self._lives[run] = Live(run, self._max_bytes)
        return live

    def drop(self, live: Live) -> None:
        """Forget a stream; who follows it has it still."""
        if self._lives.get(live.run) is live:
            del self._lives[live.run]
        live.wake()

"""Cuts what a program says into lines, in bounded memory, and tells which take too long to read."""

import asyncio
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec import Struct

SHOWN_BYTES: Final = 300
_ID: Final = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*[,}]')
_ANSWER: Final = re.compile(rb'"(?:result|error)"\s*:')
# A text as a whole, also where it has no end; or what begins a value or stands between two.
_PART: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([\[{,])')


class Bounds(NamedTuple):
    """How long a message may be, and how many values it may have, as JSON."""

    max_bytes: int
    max_values: int = 100_000


class TooLong(Struct, frozen=True):
    """A line that was thrown away: how long it was, its beginning, and its end."""

    size: int
    head: bytes
    tail: bytes = b""


class Lines:
    """Takes bytes as they come.

    Args:
        max_bytes: How long a line may be; of one that is longer its ends are kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail = b""

    def feed(self, data: bytes) -> Iterator[bytes | TooLong]:
        """Yield the lines that are whole now."""
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._take(part)
            yield self._line()
        self._take(rest)

    def _take(self, part: bytes) -> None:
        if len(self._head) < SHOWN_BYTES:
            self._head += part[: SHOWN_BYTES - len(self._head)]
        self._tail = (self._tail + part[-SHOWN_BYTES:])[-SHOWN_BYTES:]
        self._size += len(part)
        if self._size > self._max_bytes:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _line(self) -> bytes | TooLong:
        line: bytes | TooLong = b"".join(self._parts)
        if self._size > self._max_bytes:
            line = TooLong(self._size, self._head, self._tail)
        self._parts, self._size, self._head, self._tail = [], 0, b"", b""
        return line


def answered_id(head: bytes) -> int | None:
    """Return which request a line answers that can't be read, as far as its beginning tells."""
    found = _ID.search(head)
    if found is None or _ANSWER.search(head) is None:
        return None
    return int(found[1])


async def why_not(line: bytes | TooLong, bounds: Bounds) -> str | None:
    """Return why a message is not to be read, if it isn't: others wait while one is read."""
    if isinstance(line, TooLong):
        return f"a message of {line.size} bytes is too large (mcp.max_result_bytes)"
    most = bounds.max_values
    if len(line) > most and await asyncio.to_thread(_has_more, line, most):
        return f"a message has more than {most} values (mcp.max_result_values)"
    return None


def head_of(line: bytes | TooLong) -> bytes:
    """Return how a line begins."""
    return line.head if isinstance(line, TooLong) else line[:SHOWN_BYTES]


def _has_more(line: bytes, max_values: int) -> bool:
    count = 0
    for part in _PART.finditer(line):
        count += part.lastindex or 0
        if count >= max_values:
            return True
    return False

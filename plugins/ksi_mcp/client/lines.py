"""Cuts what a program says into lines, however long they are, in bounded memory."""

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

SHOWN_BYTES: Final = 300
_ID: Final = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*[,}]')
_ANSWER: Final = re.compile(rb'"(?:result|error)"\s*:')


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

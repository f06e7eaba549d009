"""Cuts Markdown that comes bit by bit into blocks that are complete."""

import re
from typing import Final

_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")
_BLANK: Final = re.compile(r"\s*\Z")


class MarkdownFlow:
    """Takes text as it comes; ``tail`` is what is no complete block yet.

    A block ends where a blank line outside a fence is followed by a line that is not indented:
    what is indented may belong to a list's item above it.
    """

    def __init__(self) -> None:
        self.tail = ""
        self._lines = 0  # how much of the tail was looked at, in characters
        self._fence = ""
        self._blank_at: int | None = None

    def feed(self, text: str) -> list[str]:
        """Take more text; return the blocks that are complete now."""
        self.tail += text
        blocks = []
        while (block := self._next()) is not None:
            blocks.append(block)
        return blocks

    def finish(self) -> str:
        """Return what is left, as the last block."""
        rest, self.tail = self.tail, ""
        self._lines, self._fence, self._blank_at = 0, "", None
        return rest

    def _next(self) -> str | None:
        while True:
            if self._blank_at is not None and self._lines < len(self.tail):
                first = self.tail[self._lines]
                if first not in " \t\r\n":
                    return self._cut()
            end = self.tail.find("\n", self._lines)
            if end < 0:
                return None
            self._look_at(self.tail[self._lines : end])
            self._lines = end + 1

    def _look_at(self, line: str) -> None:
        """Note what a complete line does to the block that it stands in."""
        if self._fence:
            mark = _FENCE.match(line)
            if mark and mark[1].startswith(self._fence) and _BLANK.match(line, mark.end()):
                self._fence = ""
        elif _BLANK.match(line):
            self._blank_at = self._lines
        else:
            self._blank_at = None
            if mark := _FENCE.match(line):
                self._fence = mark[1]

    def _cut(self) -> str:
        block, self.tail = self.tail[: self._lines], self.tail[self._lines :]
        self._lines, self._blank_at = 0, None
        return block

"""Cuts a text into chunks: by its structure first, and never in the middle of a word.

The chunks lie one after the other without a gap: what each has beyond the overlap, joined, is the
text. A heading begins a chunk, and what stands before it is not repeated in it. Within a section a
chunk ends where a paragraph, a list's entry or a block of code does, or else a line of code or a
sentence, or else a word. Only a word that is itself longer than a chunk is cut, and even then no
character from its accents. Characters of scripts that set no blanks count as words of their own.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

from msgspec import Struct

__all__ = ["Chunk", "Form", "Heading", "chunks_of", "headings_of", "without_fences"]

Form = Literal["markdown", "text", "code"]

# How much of a window must be used before a block that would fit whole into the next chunk is cut.
FULL_ENOUGH: Final = 0.5

_ATX: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT: Final = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")
_ENTRY: Final = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")
_SENTENCE: Final = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=\S)|[。！？；]|\n")
_TOP_LEVEL: Final = re.compile(r"[^\s)}\]#]")
# Han, kana and what stands with them; Thai, Lao, Khmer, Burmese.
_WITHOUT_BLANKS: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_JOINERS: Final = "\u200c\u200d"
_IN_WORD: Final = "'’"


class Heading(Struct, frozen=True):
    """A heading, its depth from 1 on, where its line begins and where what it heads does."""

    offset: int
    depth: int
    title: str
    end: int


class Chunk(Struct, frozen=True):
    """A part of a text.

    Attributes:
        text: What stands from ``start`` to ``end``.
        start: Where it begins, in characters.
        end: Where it ends.
        overlap: How many of its characters the chunk before has, too.
        headings: Under which headings it stands, the outermost first.
    """

    text: str
    start: int
    end: int
    overlap: int = 0
    headings: tuple[str, ...] = ()


class _Structure(Struct, frozen=True):
    """Where a text may best be cut: where blocks begin, and which of them are headings."""

    blocks: tuple[int, ...]
    headings: tuple[Heading, ...]
    fences: tuple[tuple[int, int], ...] = ()


def chunks_of(
    text: str, *, form: Form = "text", size: int = 1500, overlap: int = 200
) -> tuple[Chunk, ...]:
    """Cut a text.

    Args:
        text: What to cut.
        form: How its structure is to be read.
        size: How many characters a chunk has at most.
        overlap: How many of them are repeated from the chunk before, at most; half of ``size`` is
            the most.
    """
    overlap = min(overlap, size // 2)
    structure = _structure(text, form)
    found: list[Chunk] = []
    cutter = _Cutter(text, structure, form, size, overlap)
    for start, end, path in _sections(text, structure.headings):
        found.extend(
            Chunk(text[first:last], first, last, new - first, path)
            for first, new, last in cutter.cut(start, end)
        )
    return tuple(found)


def headings_of(text: str, form: Form = "markdown") -> tuple[Heading, ...]:
    """Return a text's headings."""
    return _structure(text, form).headings


def without_fences(text: str) -> str:
    """Return a Markdown text without the code that is fenced in it."""
    kept, end = [], 0
    for start, after in _markdown(text).fences:
        kept.append(text[end:start])
        end = after
    return "".join((*kept, text[end:]))


# -- structure ------------------------------------------------------------------------------------


def _structure(text: str, form: Form) -> _Structure:
    if form == "markdown":
        return _markdown(text)
    if form == "code":
        return _Structure(tuple(_code_blocks(text)), ())
    return _Structure(tuple(_paragraphs(text)), ())


def _paragraphs(text: str) -> Iterator[int]:
    """Yield where paragraphs begin: after a line without text."""
    was_blank = False
    for line in _LINE.finditer(text):
        is_blank = not line[0].strip()
        if was_blank and not is_blank:
            yield line.start()
        was_blank = is_blank


def _code_blocks(text: str) -> Iterator[int]:
    """Yield where something begins at the left margin after a line without code."""
    was_blank = False
    for line in _LINE.finditer(text):
        is_blank = not line[0].strip()
        if was_blank and _TOP_LEVEL.match(line[0]):
            yield line.start()
        was_blank = is_blank


class _Markdown:
    """Goes over the lines of a Markdown text, and notes blocks, headings and fenced code."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.headings: list[Heading] = []
        self.fences: list[tuple[int, int]] = []
        self._fence = ""
        self._fence_began = 0
        self._before = ""  # the line before, where a line of = or - may yet make it a heading
        self._before_began = 0
        self._was_blank = True

    def line(self, line: str, start: int) -> None:
        """Take the next line."""
        if self._fence:
            self._within_fence(line, start)
            return
        fence = _FENCE.match(line)
        if fence is not None:
            self._fence, self._fence_began = fence[1], start
            self.blocks.append(start)
            self._before = ""
            return
        if not self._is_heading(line, start) and (
            (self._was_blank and line.strip()) or _ENTRY.match(line)
        ):
            self.blocks.append(start)
        self._was_blank = not line.strip()

    def _within_fence(self, line: str, start: int) -> None:
        closing = _FENCE.match(line)
        if (
            closing is not None
            and closing[1].startswith(self._fence)
            and not line[closing.end() :].strip()
        ):
            self.fences.append((self._fence_began, start + len(line)))
            self._fence, self._was_blank = "", True

    def _is_heading(self, line: str, start: int) -> bool:
        if (atx := _ATX.match(line.rstrip("\r\n"))) is not None:
            self._head(start, len(atx[1]), atx[2] or "", start + len(line))
            return True
        if self._before and (setext := _SETEXT.match(line.rstrip("\r\n"))) is not None:
            depth = 1 if setext[1][0] == "=" else 2
            self._head(self._before_began, depth, self._before, start + len(line))
            return True
        is_plain = bool(line.strip()) and self._was_blank and not _ENTRY.match(line)
        self._before, self._before_began = (line.strip(), start) if is_plain else ("", 0)
        return False

    def _head(self, start: int, depth: int, title: str, end: int) -> None:
        self._before = ""
        self.headings.append(Heading(start, depth, title.strip(), end))


def _markdown(text: str) -> _Structure:
    lines = _Markdown()
    for line in _LINE.finditer(text):
        lines.line(line[0], line.start())
    starts = sorted({*lines.blocks, *(each.offset for each in lines.headings)})
    return _Structure(tuple(starts), tuple(lines.headings), tuple(lines.fences))


def _sections(text: str, headings: Sequence[Heading]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yield the parts between headings, and under which they stand; a bare one joins the next."""
    start, seen, is_bare = 0, 0, True
    path: list[Heading] = []
    for heading in headings:
        is_bare = is_bare and not text[seen : heading.offset].strip()
        if not is_bare:
            yield start, heading.offset, _titles(path)
            start, is_bare = heading.offset, True
        while path and path[-1].depth >= heading.depth:
            path.pop()
        path.append(heading)
        seen = heading.end
    if start < len(text):
        yield start, len(text), _titles(path)


def _titles(path: Iterable[Heading]) -> tuple[str, ...]:
    return tuple(each.title for each in path if each.title)


# -- cuts -----------------------------------------------------------------------------------------


def may_cut(text: str, at: int) -> bool:
    """Say whether a cut there parts no word."""
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if not _may_part(before, after):
        return False
    if not (_is_of_word(before, text, at - 1) and _is_of_word(after, text, at)):
        return True
    return bool(_WITHOUT_BLANKS.match(before) or _WITHOUT_BLANKS.match(after))


def _may_part(before: str, after: str) -> bool:
    """Say whether two characters are not one sign: a letter and its accent, a joined emoji."""
    if before == "\r" and after == "\n":
        return False
    if before in _JOINERS or after in _JOINERS:
        return False
    if unicodedata.category(after).startswith("M") or "\U0001f3fb" <= after <= "\U0001f3ff":
        return False
    return not (_is_flag(before) and _is_flag(after))


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_of_word(character: str, text: str, at: int) -> bool:
    if character.isalnum() or character == "_" or unicodedata.category(character).startswith("M"):
        return True
    if character not in _IN_WORD:
        return False
    return 0 < at < len(text) - 1 and text[at - 1].isalnum() and text[at + 1].isalnum()


class _Cutter:
    """Cuts one section."""

    def __init__(
        self, text: str, structure: _Structure, form: Form, size: int, overlap: int
    ) -> None:
        self._text = text
        self._blocks = structure.blocks
        self._fences = structure.fences
        self._form = form
        self._size = size
        self._overlap = overlap

    def cut(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield of each chunk where it begins, where what is new in it does, and where it ends."""
        first = new = start
        while end - first > self._size:
            last = self._end(first, new, end)
            yield first, new, last
            first, new = self._begin(last, new, end), last
        yield first, new, end

    def _end(self, first: int, new: int, end: int) -> int:
        """Return the best place to end a chunk."""
        limit = first + self._size
        block = self._last_block(new, limit)
        if block is not None and (
            block >= new + (limit - new) * FULL_ENOUGH
            or self._block_end(block, end) - block <= self._size
        ):
            return block
        place = self._last_sentence(new + int((limit - new) * FULL_ENOUGH), limit)
        if place is None:
            place = self._last_word(new, limit)
        return place

    def _last_block(self, new: int, limit: int) -> int | None:
        at = bisect_right(self._blocks, limit) - 1
        return self._blocks[at] if at >= 0 and self._blocks[at] > new else None

    def _block_end(self, block: int, end: int) -> int:
        at = bisect_right(self._blocks, block)
        return min(self._blocks[at], end) if at < len(self._blocks) else end

    def _is_block(self, place: int) -> bool:
        at = bisect_left(self._blocks, place)
        return at < len(self._blocks) and self._blocks[at] == place

    def _last_sentence(self, lowest: int, limit: int) -> int | None:
        """Return where the last sentence, or line of code, ends within a span."""
        if self._is_code(lowest, limit):
            place = self._text.rfind("\n", lowest, limit) + 1
            return place if place > lowest else None
        found = None
        for match in _SENTENCE.finditer(self._text, lowest, limit):
            if match.end() > lowest and may_cut(self._text, match.end()):
                found = match.end()
        return found

    def _is_code(self, start: int, end: int) -> bool:
        if self._form == "code":
            return True
        at = bisect_right(self._fences, (start, len(self._text))) - 1
        return at >= 0 and self._fences[at][0] <= start and end <= self._fences[at][1] + 1

    def _last_word(self, new: int, limit: int) -> int:
        """Return where the last word ends that fits; of one that is too long, where it fits."""
        for place in range(limit, new, -1):
            if self._text[place - 1].isspace() and not self._text[place].isspace():
                return place
        for place in range(limit, new, -1):
            if may_cut(self._text, place):
                return place
        for place in range(limit, new, -1):
            if _may_part(self._text[place - 1], self._text[place]):
                return place
        return limit

    def _begin(self, cut: int, new: int, end: int) -> int:
        """Return where the next chunk begins: with a sentence or a word that is repeated."""
        lowest = max(new, cut - self._overlap)
        if self._is_block(cut):  # it is to fit whole, where it can
            lowest = max(lowest, min(cut, self._block_end(cut, end) - self._size))
        if lowest >= cut:
            return cut
        if lowest == new:
            return lowest
        for match in _SENTENCE.finditer(self._text, max(lowest - 1, 0), cut):
            if lowest <= match.end() < cut and may_cut(self._text, match.end()):
                return match.end()
        for place in range(lowest, cut):
            if self._text[place - 1].isspace() and not self._text[place].isspace():
                return place
        return next((place for place in range(lowest, cut) if may_cut(self._text, place)), cut)

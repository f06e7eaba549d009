"""Lays steps out over the time that they took."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

FULL: Final = "━"
SHORT: Final = "╸"


class Span(Struct, frozen=True):
    """A part of a line: how many blanks come before it, and what it looks like."""

    before: int
    bar: str


def spans(
    times: Sequence[tuple[datetime | None, datetime | None]], now: datetime, width: int
) -> list[Span]:
    """Place each of some times, begun and ended, on a line of ``width`` characters.

    The line reaches from the first beginning to the last end; what has no end lasts until now, and
    what has no beginning has no bar.
    """
    begun = [start for start, _ in times if start is not None]
    if not begun or width < 1:
        return [Span(0, "") for _ in times]
    first = min(begun)
    last = max((end or now for start, end in times if start is not None), default=now)
    whole_s = max((last - first).total_seconds(), 1e-6)
    return [_span(start, end or now, first, whole_s, width) for start, end in times]


def _span(
    start: datetime | None, end: datetime, first: datetime, whole_s: float, width: int
) -> Span:
    if start is None:
        return Span(0, "")
    left = (start - first).total_seconds() / whole_s * width
    right = (end - first).total_seconds() / whole_s * width
    before = min(max(int(left), 0), width - 1)
    length = min(max(round(right) - before, 0), width - before)
    return Span(before, FULL * length or SHORT)

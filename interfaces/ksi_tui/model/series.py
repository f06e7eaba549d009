"""Counts by the minute, for as long as a chart reaches back."""

from collections.abc import Sequence
from typing import Final

MINUTE_S: Final = 60
KEPT_MINUTES: Final = 120
BLOCKS: Final = " ▁▂▃▄▅▆▇█"


class Series:
    """Sums by minute, and of the last sixty seconds; bounded, whatever comes in what order.

    Times are whole or broken seconds of any clock, the same one throughout. What is older than what
    is kept is not counted.
    """

    def __init__(self) -> None:
        self._minutes: dict[int, float] = {}
        self._seconds: dict[int, float] = {}

    def add(self, at: float, amount: float = 1.0) -> None:
        """Count something that happened at a time."""
        _put(self._minutes, int(at // MINUTE_S), amount, KEPT_MINUTES)
        _put(self._seconds, int(at), amount, MINUTE_S)

    def last_minute(self, now: float) -> float:
        """Return the sum of the last sixty seconds."""
        first = int(now) - MINUTE_S + 1
        return sum(amount for second, amount in self._seconds.items() if first <= second <= now)

    def minutes(self, now: float, count: int) -> list[float]:
        """Return the sums of the last minutes, that of now as the last."""
        last = int(now // MINUTE_S)
        return [self._minutes.get(minute, 0.0) for minute in range(last - count + 1, last + 1)]

    def clear(self) -> None:
        """Forget everything."""
        self._minutes.clear()
        self._seconds.clear()

    def __len__(self) -> int:
        return len(self._minutes) + len(self._seconds)


def _put(sums: dict[int, float], at: int, amount: float, kept: int) -> None:
    sums[at] = sums.get(at, 0.0) + amount
    if len(sums) > kept:
        oldest = max(sums) - kept
        for old in [each for each in sums if each <= oldest]:
            del sums[old]


def bars(values: Sequence[float], height: int, *, most: float | None = None) -> list[str]:
    """Draw values as columns of ``height`` lines, the topmost first.

    Whatever is more than nothing can be seen. The largest value, or ``most``, is as high as there
    is room.
    """
    top = max(max(values, default=0.0), most or 0.0)
    eighths = [_eighths(value, top, height) for value in values]
    return [
        "".join(BLOCKS[min(max(each - 8 * floor, 0), 8)] for each in eighths)
        for floor in reversed(range(height))
    ]


def _eighths(value: float, top: float, height: int) -> int:
    if value <= 0 or top <= 0:
        return 0
    return max(1, round(min(value / top, 1.0) * 8 * height))

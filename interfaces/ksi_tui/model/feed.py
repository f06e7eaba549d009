"""Keeps the newest events, a sample of them where there are too many, and counts them all."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from ksi_daemon.protocol.names import matches

Severity = Literal["info", "warning", "error"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "error")

KEPT_EVENTS: Final = 2_000
KEPT_A_FRAME: Final = 40
# What somebody asked that could not be: theirs, and not the daemon's failure.
_ASKERS_FAULTS: Final = frozenset(
    {"busy", "cancelled", "conflict", "denied", "invalid_data", "not_found"}
)
_BAD: Final = frozenset({"workflow:failed", "workflow:quarantined", "postgres:lost"})
_DOUBTFUL: Final = frozenset({"journal:dropped", "router:denied", "router:lagged", "tool:doubted"})


class Seen(Struct, frozen=True, kw_only=True):
    """An event that was seen, and how it went as far as that is known.

    Attributes:
        payload: The beginning of its payload, as JSON.
        outcome: ``ok``, or an error's code; none where it was published, or still runs.
    """

    at: datetime
    name: str
    id: str
    severity: Severity = "info"
    parent: str | None = None
    origin: str = ""
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    outcome: str | None = None
    message: str | None = None
    duration_s: float | None = None
    payload: str = ""


class Filter(Struct, frozen=True):
    """Which events are wanted: by a glob over names, or words, and from a severity on."""

    pattern: str = ""
    least: Severity = "info"

    def wants(self, seen: Seen) -> bool:
        """Say whether an event is one of them."""
        if SEVERITIES.index(seen.severity) < SEVERITIES.index(self.least):
            return False
        return not self.pattern or named(self.pattern, seen.name, seen.agent or "", seen.origin)


def named(pattern: str, *names: str) -> bool:
    """Say whether one of some names matches a glob, or holds what is none, in whatever case."""
    pattern = pattern.lower()
    if set(pattern) & set("*?"):
        return any(matches(name.lower(), pattern) for name in names)
    return any(pattern in name.lower() for name in names)


def severity_of(name: str, code: str | None) -> Severity:
    """Say how bad an event is, by its name and its error's code."""
    if name in _BAD:
        return "error"
    if code is None or code == "ok":
        return "warning" if name in _DOUBTFUL else "info"
    return "warning" if code in _ASKERS_FAULTS else "error"


class Feed:
    """The newest events, bounded; one of so many where there are more than a frame has room for.

    `offer` takes each event and makes its record only if that is kept. `settle` tells how it went.
    `frame` ends a frame: what it kept can be seen from then on.

    Attributes:
        seen: How many events there were.
        missed: How many did not even get here, since this reader was too slow.
        one_of: Of how many events the last frame shows one.
    """

    def __init__(self, kept: int = KEPT_EVENTS, kept_a_frame: int = KEPT_A_FRAME) -> None:
        self.seen = 0
        self.missed = 0
        self.one_of = 1
        self._kept = kept
        self._room = kept_a_frame
        self._events: dict[str, Seen] = {}
        self._fresh: dict[str, Seen] = {}
        self._bad: dict[str, Seen] = {}
        self._stride = 1
        self._offered = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def waiting(self) -> int:
        """How many records the frame has so far."""
        return len(self._fresh) + len(self._bad)

    def offer(self, event_id: str, make: Callable[[], Seen]) -> None:
        """Take an event; its record is made only if it is among those that are kept."""
        self.seen += 1
        self._offered += 1
        if self._offered % self._stride:
            return
        self._fresh[event_id] = make()
        if len(self._fresh) > self._room:
            self._thin_out()

    def _thin_out(self) -> None:
        """Keep every second record, and make half as many from now on."""
        for number, (event_id, seen) in enumerate(list(self._fresh.items())):
            if number % 2 == 0:
                del self._fresh[event_id]
                if seen.severity != "info" and len(self._bad) < self._room:
                    self._bad[event_id] = seen
        self._stride *= 2

    def settle(
        self,
        event_id: str,
        make: Callable[[], Seen],
        *,
        outcome: str,
        message: str | None,
        duration_s: float,
        severity: Severity,
    ) -> None:
        """Note how an event went; one that went wrong is kept even if it was not in the sample."""
        for known in (self._fresh, self._events):
            found = known.get(event_id)
            if found is not None:
                worst = max(severity, found.severity, key=SEVERITIES.index)
                known[event_id] = replace(
                    found,
                    outcome=outcome,
                    message=message,
                    duration_s=duration_s,
                    severity=worst,
                )
                return
        if severity != "info" and len(self._bad) < self._room:
            self._bad[event_id] = replace(
                make(), outcome=outcome, message=message, duration_s=duration_s, severity=severity
            )

    def frame(self) -> bool:
        """End a frame, and say whether it brought anything."""
        fresh = {**self._fresh, **self._bad}
        self.one_of = max(1, round(self._offered / len(self._fresh))) if self._fresh else 1
        self._fresh, self._bad = {}, {}
        self._stride, self._offered = 1, 0
        self._events.update(fresh)
        self._trim()
        return bool(fresh)

    def fill(self, earlier: list[Seen]) -> None:
        """Put what was recorded among what was seen, by time."""
        before = {each.id: each for each in earlier if each.id not in self._events}
        every = sorted((*before.values(), *self._events.values()), key=lambda seen: seen.at)
        self._events = {each.id: each for each in every}
        self._trim()

    def _trim(self) -> None:
        excess = len(self._events) - self._kept
        for old in list(self._events)[: max(excess, 0)]:
            del self._events[old]

    def newest(self, wanted: Filter | None = None) -> Iterator[Seen]:
        """Yield what is kept, the newest first."""
        for seen in reversed(list(self._events.values())):
            if wanted is None or wanted.wants(seen):
                yield seen

    def find(self, event_id: str) -> Seen | None:
        """Return an event that is kept."""
        return self._events.get(event_id)

    def clear(self) -> None:
        """Forget what is kept; the counts go on."""
        self._events.clear()

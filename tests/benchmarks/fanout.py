"""One publisher and a hundred subscribers, one of whom may have stopped to read."""

import statistics
from collections.abc import Iterator
from typing import Final

from processes import Target, daemon, load, result_of, spawn_load
from report import Figure, at_least, at_most, spread

SUBSCRIBERS: Final = 100
PROCESSES: Final = 2
ROUNDS: Final = 7
QUICK_ROUNDS: Final = 3
SHORT: Final = 7
LONG_EVENTS: Final = 3000
# Long enough for the one who does not read to overflow its queue before half of the run is over.
LONG: Final = 1000


class Round:
    """What one run of a publisher gave."""

    def __init__(self, ksi: Target, *, text: int, ahead: int, count: int, deaf: bool) -> None:
        each = SUBSCRIBERS // PROCESSES
        readers = [
            spawn_load(
                "subscribe",
                path=ksi.path,
                connections=each,
                deaf=int(deaf and number == 0),
                count=count,
            )
            for number in range(PROCESSES)
        ]
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()  # it has subscribed
        sent = load("publish", path=ksi.path, text="x" * text, ahead=ahead, count=count)
        read = [result_of(reader) for reader in readers]
        self.received = sum(each["received"] for each in read)
        self.lagged = sum(each["lagged"] for each in read)
        self.dropped = sum(each["dropped"] for each in read)
        took_s = max(each["ended"] for each in read) - sent["began"]
        self.deliveries_per_s = self.received / took_s
        self.events_per_s = count / took_s


def measure(*, quick: bool) -> Iterator[Figure]:
    """Count deliveries, with all of the subscribers reading and with one that does not."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with daemon() as ksi:
        for ahead, target in ((16, True), (1, False)):
            runs = [
                Round(ksi, text=SHORT, ahead=ahead, count=2000, deaf=False) for _ in range(rounds)
            ]
            yield _rate(runs, ahead, target=target)
        yield _deaf(ksi, rounds if quick else 2 * rounds)


def _rate(runs: list[Round], ahead: int, *, target: bool) -> Figure:
    rates = [run.deliveries_per_s for run in runs]
    what = f"1 publisher ({ahead} in flight), {SUBSCRIBERS} subscribers"
    details = f"{spread([rate / 1000 for rate in rates])} (thousands); {_lost(runs)}"
    if target:
        return at_least(what, statistics.median(rates), 100_000, " deliveries/s", details)
    return Figure(what, "–", f"{statistics.median(rates):,.0f} deliveries/s", None, details)


def _deaf(ksi: Target, rounds: int) -> Figure:
    changes, everybody, others = [], [], []
    for _ in range(rounds):
        everybody.append(Round(ksi, text=LONG, ahead=16, count=LONG_EVENTS, deaf=False))
        others.append(Round(ksi, text=LONG, ahead=16, count=LONG_EVENTS, deaf=True))
        changes.append(others[-1].events_per_s / everybody[-1].events_per_s)
    slower = max(0.0, 1 - statistics.median(changes)) * 100
    details = (
        f"events/s to each reader: {statistics.median(r.events_per_s for r in everybody):,.0f} "
        f"when all read, {statistics.median(r.events_per_s for r in others):,.0f} when one does "
        f"not; ratio {spread(changes)}; {_lost(others)}; the silent one missed "
        f"{statistics.median(r.dropped for r in others):,.0f} of {LONG_EVENTS:,}"
    )
    return at_most("one does not read: the others lose", slower, 5, " %", details)


def _lost(runs: list[Round]) -> str:
    lagged = sum(run.lagged for run in runs)
    return f"{lagged} notices of missed events to readers" if lagged else "readers missed nothing"

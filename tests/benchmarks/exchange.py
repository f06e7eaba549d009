"""Request and answer: KSI against the bare server, in alternating rounds."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from processes import Target, bare_server, daemon, load
from report import Figure, at_least, at_most, spread

PLAIN: Final = "bench:echo"
COROUTINE: Final = "bench:echo_async"
ROUNDS: Final = 11
QUICK_ROUNDS: Final = 3


@dataclass(frozen=True)
class Compared:
    """What the rounds gave: one value a round for each of the two."""

    bare: list[float]
    ksi: list[float]
    bare_cpu_us: float
    ksi_cpu_us: float

    @property
    def ratio(self) -> float:
        """The median of each round's ratio: what slows the machine down slows both."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        """KSI's value through the bare server's, round by round."""
        return [ksi / bare for ksi, bare in zip(self.ksi, self.bare, strict=True)]

    def details(self, unit: str) -> str:
        """Show the values behind the ratio."""
        bare, ksi = statistics.median(self.bare), statistics.median(self.ksi)
        return (
            f"bare {bare:,.0f} {unit}, KSI {ksi:,.0f} {unit}; ratio {spread(self.ratios)}; "
            f"processor time a request {self.bare_cpu_us:.1f} and {self.ksi_cpu_us:.1f} µs"
        )


class Exchange:
    """The two servers, and how they are compared."""

    def __init__(self, bare: Target, ksi: Target, *, quick: bool) -> None:
        self._servers = (bare, ksi)
        self._rounds = QUICK_ROUNDS if quick else ROUNDS

    def compare(self, kind: str, value: str, event: str, **arguments: Any) -> Compared:
        """Run a load against the one and the other, in turn."""
        values: tuple[list[float], list[float]] = ([], [])
        cpu_us: tuple[list[float], list[float]] = ([], [])
        asked = arguments["warm_up"] + arguments["count"]
        for _ in range(self._rounds):
            for number, server in enumerate(self._servers):
                before_s = server.cpu_s()
                measured = load(kind, path=server.path, event=event, **arguments)
                cpu_us[number].append((server.cpu_s() - before_s) * 1e6 / asked)
                values[number].append(measured[value])
        return Compared(*values, *map(statistics.median, cpu_us))


def measure(*, quick: bool) -> Iterator[Figure]:
    """Compare latency, and throughput over many connections and over one."""
    with bare_server() as bare, daemon() as ksi:
        exchange = Exchange(bare, ksi, quick=quick)
        yield from _latency(exchange)
        yield from _throughput(exchange)


def _latency(exchange: Exchange) -> Iterator[Figure]:
    found = exchange.compare("serial", "p50_us", PLAIN, warm_up=500, count=5000)
    yield at_most("one at a time, p50", found.ratio, 1.5, " × bare", found.details("µs"))
    found = exchange.compare("serial", "p50_us", COROUTINE, warm_up=500, count=5000)
    what = "one at a time, p50, coroutine"
    yield Figure(what, "–", f"{found.ratio:.2f} × bare", None, found.details("µs"))


def _throughput(exchange: Exchange) -> Iterator[Figure]:
    found = exchange.compare("many", "per_s", PLAIN, connections=64, warm_up=3000, count=20_000)
    yield at_least("64 connections", found.ratio, 0.6, " × bare", found.details("/s"))
    for ahead in (1, 4):
        for event, kind, bound, count in (
            (PLAIN, "plain", 0.5, 150_000),
            (COROUTINE, "coroutine", 0.15, 50_000),
        ):
            found = exchange.compare(
                "pipelined", "per_s", event, batch=64, batches=ahead, warm_up=6400, count=count
            )
            what = f"pipelined, {64 * ahead} in flight, {kind}"
            details = found.details("/s")
            if ahead == 1:
                yield at_least(what, found.ratio, bound, " × bare", details)
            else:
                yield Figure(what, "–", f"{found.ratio:.2f} × bare", None, details)

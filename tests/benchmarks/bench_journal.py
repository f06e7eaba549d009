"""What recording costs: events a second with and without a journal, and what it keeps up with."""

import json
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from processes import HELLO, HERE, Target, await_socket, clean_environment, folder, load
from report import Figure, at_least, at_most, spread

PLAIN: Final = "bench:echo"
COROUTINE: Final = "bench:echo_async"
ROUNDS: Final = 9
QUICK_ROUNDS: Final = 3
RATE: Final = 10_000
SUSTAINED_S: Final = 60
QUICK_SUSTAINED_S: Final = 10
TIMEOUT_S: Final = 60.0


def measure(*, quick: bool) -> Iterator[Figure]:
    """Compare daemons with and without a journal, each with a Postgres of its own."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with ExitStack() as stack:
        off = stack.enter_context(daemon("system,postgres,bench"))
        on = stack.enter_context(daemon("system,postgres,journal,bench"))
        found = compare(off, on, rounds, PLAIN, count=20_000)
        yield _figure("journal on, events that it doesn't record: loss", found, target=True)
        found = compare(off, on, rounds, COROUTINE, count=20_000)
        yield _figure("the same, coroutine: loss", found, target=True)
    with ExitStack() as stack:
        off = stack.enter_context(daemon("system,postgres,bench"))
        on = stack.enter_context(
            daemon("system,postgres,journal,bench", 'journal.events=["bench:*"]')
        )
        yield from _paced(off, on, rounds)
        found = compare(off, on, rounds, COROUTINE, count=10_000)
        yield _figure("journal on, all of them recorded, at full speed: loss", found, target=False)
    yield from _sustained(QUICK_SUSTAINED_S if quick else SUSTAINED_S)


@contextmanager
def daemon(plugins: str, *settings: str) -> Iterator[Target]:
    """Run a daemon with an embedded Postgres."""
    with folder() as home:
        home.chmod(0o711)  # the server's user passes through, where root measures
        words = [f"daemon.plugins={plugins}", "log.level=error", *settings]
        process = subprocess.Popen(
            [sys.executable, "-m", "ksi_daemon", "--home", str(home)]
            + [part for word in words for part in ("--set", word)],
            env=clean_environment(PYTHONPATH=str(HERE / "distribution")),
            stdin=subprocess.DEVNULL,
        )
        path = home / "run" / "ksi.sock"
        target = Target(process, path)
        try:
            await_socket(path, process, HELLO)
            await_plugin(path, process)
            yield target
        finally:
            target.end()


def await_plugin(path: Any, process: subprocess.Popen[bytes]) -> None:
    """Wait until the benchmarks' plugin answers: it is the last to start."""
    while process.poll() is None:
        answer = ask(str(path), "system:health")
        if "result" in answer and answer["result"]["state"] == "ready":
            return
    raise RuntimeError("the daemon has ended")


def ask(path: str, event: str) -> dict[str, Any]:
    """Ask one thing over a connection of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect(path)
        sock.sendall(b'{"id":1,"event":"%b","data":{}}\n' % event.encode())
        answer: dict[str, Any] = json.loads(sock.makefile("rb").readline())
        return answer


def compare(
    off: Target, on: Target, rounds: int, event: str, *, count: int
) -> tuple[list[float], list[float]]:
    """Run the same load against both, in turn."""
    values: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for number, server in enumerate((off, on)):
            measured = load(
                "many", path=server.path, event=event, connections=64, warm_up=2000, count=count
            )
            values[number].append(measured["per_s"])
    return values


def _figure(what: str, found: tuple[list[float], list[float]], *, target: bool) -> Figure:
    ratios = [on / off for off, on in zip(*found, strict=True)]
    loss = (1 - statistics.median(ratios)) * 100
    off, on = (statistics.median(each) for each in found)
    details = f"{off:,.0f}/s without, {on:,.0f}/s with; ratio {spread(ratios)}"
    if target:
        return at_most(what, loss, 10, " %", details)
    return Figure(what, "–", f"{loss:.0f} %", None, details)


def _paced(off: Target, on: Target, rounds: int) -> Iterator[Figure]:
    """Ask for as many as are to be kept up with, and see whether the journal slows that down."""
    rates: tuple[list[float], list[float]] = ([], [])
    cpu_us: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for number, server in enumerate((off, on)):
            before_s = server.cpu_s()
            measured = load(
                "paced", path=server.path, event=COROUTINE, per_s=RATE, batch=100, count=30_000
            )
            cpu_us[number].append((server.cpu_s() - before_s) * 1e6 / measured["asked"])
            rates[number].append(measured["per_s"])
    ratios = [with_it / without for without, with_it in zip(*rates, strict=True)]
    without, with_it = (statistics.median(each) for each in cpu_us)
    details = (
        f"{statistics.median(rates[1]):,.0f}/s; ratio {spread(ratios)}; the daemon's processor "
        f"time an event {without:.1f} µs without, {with_it:.1f} µs with"
    )
    loss = (1 - statistics.median(ratios)) * 100
    yield at_most(f"{RATE:,} recorded events a second: loss", loss, 10, " %", details)


def _sustained(seconds: int) -> Iterator[Figure]:
    """Ask steadily for a while; then everything must have been written, and nothing dropped."""
    settings = ('journal.events=["bench:*"]',)
    with daemon("system,postgres,journal,bench", *settings) as ksi:
        measured = load(
            "paced", path=ksi.path, event=COROUTINE, per_s=RATE, batch=100, count=RATE * seconds
        )
        queued = ask(ksi.path, "journal:stats")["result"]["queued"]
        ask(ksi.path, "journal:history")  # writes what waits
        report = ask(ksi.path, "journal:stats")["result"]
    if report["written"] < RATE * seconds - report["dropped"]:
        raise RuntimeError(f"events are missing: {report}")
    size = sum(part["bytes"] for part in report["partitions"]) / report["written"]
    details = (
        f"{measured['per_s']:,.0f}/s, the slowest hundred answered after "
        f"{measured['slowest_ms']:.0f} ms; {queued:,} waited at the end; {size:.0f} bytes a record "
        "with its indexes"
    )
    what = f"{RATE:,} recorded events a second for {seconds} s"
    yield at_most(f"{what}: dropped", report["dropped"], 0, "", details)
    yield at_least(f"{what}: rate", measured["per_s"], RATE * 0.99, "/s")

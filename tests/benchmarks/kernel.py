"""The kernel alone: how soon it answers, and what it holds in memory."""

import contextlib
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from processes import HELLO, await_socket, clean_environment, daemon, folder, spawn_daemon
from report import Figure, at_most

RUNS: Final = 15
QUICK_RUNS: Final = 5
CONNECTIONS: Final = 1000
SETTLE_S: Final = 1.0
MB: Final = 1024 * 1024
IMPORTS: Final = "import asyncio, logging.handlers, msgspec, pluggy"


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure start-up, memory, and what idle connections add to it."""
    yield _start_up(QUICK_RUNS if quick else RUNS)
    yield from _memory()


def _start_up(runs: int) -> Figure:
    started_ms = [_start_once() for _ in range(runs + 1)][1:]  # the first writes the byte code
    bare_ms = statistics.median(_run_ms("pass") for _ in range(runs))
    libraries_ms = statistics.median(_run_ms(IMPORTS) for _ in range(runs))
    details = (
        f"fastest of {runs}: {min(started_ms):.0f} ms; the interpreter alone starts and ends in "
        f"{bare_ms:.0f} ms, with asyncio, msgspec and pluggy in {libraries_ms:.0f} ms"
    )
    median = statistics.median(started_ms)
    return at_most("answering after its start, median", median, 300, " ms", details)


def _start_once() -> float:
    with folder() as home:
        began = time.perf_counter()
        process = spawn_daemon(home, plugins="daemon.plugins=system")
        try:
            return (await_socket(home / "run" / "ksi.sock", process, HELLO) - began) * 1000
        finally:
            process.terminate()
            process.wait()


def _run_ms(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True)
    return (time.perf_counter() - began) * 1000


def _memory() -> Iterator[Figure]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CONNECTIONS + 256), hard))
    with daemon(bench=False) as ksi:
        time.sleep(SETTLE_S)
        alone = ksi.rss_bytes()
        yield at_most("memory (RSS), kernel alone", alone / MB, 40, " MB")
        with contextlib.ExitStack() as stack:
            for _ in range(CONNECTIONS):
                stack.enter_context(_idle_connection(ksi.path))
            time.sleep(SETTLE_S)
            more = ksi.rss_bytes() - alone
        what = f"{CONNECTIONS:,} idle connections"
        details = f"{more / CONNECTIONS / 1024:.1f} KB each; each has asked once"
        yield at_most(what, more / MB, 40, " MB more", details)


def _idle_connection(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    sock.sendall(HELLO)
    sock.recv(65536)
    return sock

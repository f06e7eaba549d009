"""Durable workflows, against bare DBOS of the same version on the same Postgres."""

import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from processes import clean_environment
from report import Figure, at_least, at_most, spread

from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import socket_url
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings

PEER: Final = Path(__file__).with_name("workflow_peer.py")
ROUNDS: Final = 9
QUICK_ROUNDS: Final = 3
STARTS: Final = 60
RUNS: Final = 200
QUEUED: Final = 100


class Peer:
    """A process that runs workflows when it is asked to."""

    def __init__(self, kind: str, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PEER), kind, url],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> str:
        """Return the next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a peer has ended")
        return line

    def ask(self, what: str, count: int) -> list[float]:
        """Return the numbers that it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        return [float(word) for word in self.read().split()]

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure starts and throughput, both in turn, round by round."""
    with _peers() as (bare, ksi):
        rounds = [_round(bare, ksi) for _ in range(QUICK_ROUNDS if quick else ROUNDS)]
    starts, flows, queues = zip(*rounds, strict=True)
    ratios = [ours[0] / theirs[0] for theirs, ours in starts]
    details = f"{_medians(starts, 'ms')}; ratio {spread(ratios)}"
    yield at_most("start of a workflow, p50", statistics.median(ratios), 1.2, " × bare", details)
    for what, pairs in (("16 at once", flows), ("through a queue", queues)):
        ratios = [ours[0] / theirs[0] for theirs, ours in pairs]
        used = [statistics.median(pair[side][1] for pair in pairs) for side in (0, 1)]
        details = (
            f"{_medians(pairs, '/s')}; ratio {spread(ratios)}; processor time a workflow "
            f"{used[0]:.1f} and {used[1]:.1f} ms"
        )
        name = f"workflows of two steps, {what}"
        yield at_least(name, statistics.median(ratios), 0.9, " × bare", details)


def _round(bare: Peer, ksi: Peer) -> tuple[Any, Any, Any]:
    return tuple(  # type: ignore[return-value]  # three pairs
        (bare.ask(what, count), ksi.ask(what, count))
        for what, count in (("start", STARTS), ("flow", RUNS), ("queue", QUEUED))
    )


def _medians(pairs: Any, unit: str) -> str:
    theirs = statistics.median(pair[0][0] for pair in pairs)
    ours = statistics.median(pair[1][0] for pair in pairs)
    return f"bare {theirs:.1f} {unit}, KSI {ours:.1f} {unit}"


@contextmanager
def _peers() -> Iterator[tuple[Peer, Peer]]:
    with tempfile.TemporaryDirectory(prefix="ksi-b-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        server = EmbeddedServer(Path(folder) / "pg", PostgresSettings(max_connections=100))
        with asyncio.Runner() as runner:
            runner.run(server.start())
            try:
                yield from _started(server)
            finally:
                runner.run(server.stop())


def _started(server: EmbeddedServer) -> Iterator[tuple[Peer, Peer]]:
    peers = []
    try:
        for kind, database in (("bare", "template1"), ("ksi", "postgres")):
            password = server.passwords[SUPERUSER]
            url = socket_url(SUPERUSER, password, host=server.host, database=database)
            peers.append(Peer(kind, url))
            peers[-1].read()
        yield peers[0], peers[1]
    finally:
        for peer in peers:
            peer.end()

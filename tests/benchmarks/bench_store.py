"""The store: what it adds to a query, how soon a daemon with it answers, a database for a test."""

import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
from processes import HELLO, await_socket, folder, spawn_daemon
from report import Figure, at_most, spread

from ksi_postgres import setup
from ksi_postgres.database import Database
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import APP, Logins, socket_url
from ksi_postgres.settings import PostgresSettings

ROUNDS: Final = 9
QUICK_ROUNDS: Final = 3
QUERIES: Final = 500
STARTS: Final = 5
QUICK_STARTS: Final = 2
COPIES: Final = 20
POLL_S: Final = 0.005
TIMEOUT_S: Final = 20.0
PLUGINS: Final = 'daemon.plugins=["system","postgres"]'
HEALTH: Final = b'{"id":1,"event":"system:health"}\n'
STATUS: Final = b'{"id":1,"event":"postgres:status"}\n'
STRATEGIES: Final = ("FILE_COPY", "WAL_LOG")


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure queries, starts, and copies of a database."""
    yield from asyncio.run(_with_a_server(QUICK_ROUNDS if quick else ROUNDS))
    yield from _starts(QUICK_STARTS if quick else STARTS)


async def _with_a_server(rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ksi-b-", ignore_cleanup_errors=True) as home:
        os.chmod(home, 0o711)  # noqa: PTH101  no wait: a directory of this moment
        server = EmbeddedServer(Path(home) / "pg", PostgresSettings(), fsync=False)
        await server.start()
        try:
            return [*await _queries(server, rounds), *await _copies(server)]
        finally:
            await server.stop()


def _url(server: EmbeddedServer, role: str) -> str:
    return socket_url(role, server.passwords[role], host=server.host, database="postgres")


# -- queries --------------------------------------------------------------------------------------


async def _queries(server: EmbeddedServer, rounds: int) -> list[Figure]:
    connection = await asyncpg.connect(_url(server, server.superuser))
    await setup.prepare(connection)
    await setup.set_passwords(connection, {APP: server.passwords[APP]})
    await connection.close()
    url = _url(server, APP)
    database = Database(Logins(app=url, direct=url, admin=url), PostgresSettings())
    await database.open()
    bare = await asyncpg.create_pool(url, min_size=1, max_size=8)
    unreset = await asyncpg.create_pool(url, min_size=1, max_size=8, reset=_nothing)
    try:
        return [
            await _compared("a query, against asyncpg's pool", database, bare, rounds, 1.1),
            await _compared(
                "the same, against a pool that resets nothing", database, unreset, rounds
            ),
        ]
    finally:
        await database.close()
        bare.terminate()
        unreset.terminate()


async def _nothing(connection: object) -> None:
    """Reset nothing."""


async def _compared(
    what: str, ours: Database, bare: asyncpg.Pool, rounds: int, bound: float | None = None
) -> Figure:
    times = [
        (await _time_us(bare.fetchval), await _time_us(ours.fetchval)) for _ in range(rounds + 1)
    ]
    ratios = [own / other for other, own in times[1:]]
    ratio = statistics.median(ratios)
    other, own = (statistics.median(column) for column in zip(*times[1:], strict=True))
    details = f"asyncpg {other:.0f} µs, KSI {own:.0f} µs; ratio {spread(ratios)}"
    if bound is None:
        return Figure(what, "–", f"{ratio:.2f} × bare", None, details)
    return at_most(what, ratio, bound, " × bare", details)


async def _time_us(fetchval: Callable[..., Awaitable[object]]) -> float:
    began = time.perf_counter()
    for n in range(QUERIES):
        await fetchval("SELECT $1::int + 1", n)
    return (time.perf_counter() - began) / QUERIES * 1e6


# -- copies ---------------------------------------------------------------------------------------


async def _copies(server: EmbeddedServer) -> list[Figure]:
    """Copy a database as the test kit does, by each of Postgres' ways."""
    connection = await asyncpg.connect(_url(server, server.superuser))
    await connection.execute("CREATE DATABASE base TEMPLATE template0")
    figures = []
    try:
        for strategy in STRATEGIES:
            times = []
            for _ in range(COPIES):
                name = f"c_{secrets.token_hex(4)}"
                began = time.perf_counter()
                await connection.execute(
                    f"CREATE DATABASE {name} TEMPLATE base STRATEGY {strategy}"
                )
                times.append((time.perf_counter() - began) * 1000)
            median = statistics.median(times)
            what = f"a fresh database, {strategy}"
            if strategy == STRATEGIES[0]:
                figures.append(at_most(what, median, 50, " ms", spread(times)))
            else:
                figures.append(Figure(what, "–", f"{median:.2f} ms", None, spread(times)))
    finally:
        await connection.close()
    return figures


# -- starts ---------------------------------------------------------------------------------------


def _starts(runs: int) -> Iterator[Figure]:
    cold, warm, health = [], [], []
    for _ in range(runs):
        with folder() as home:
            cold.append(_start_once(home)[0])
            for _ in range(2):
                started, answered = _start_once(home)
                warm.append(started)
                health.append(answered * 1000)
    yield at_most("with the store, first start", statistics.median(cold), 5, " s", spread(cold))
    yield at_most("with the store, later starts", statistics.median(warm), 2, " s", spread(warm))
    yield at_most(
        "health, asked then",
        statistics.median(health),
        300,
        " ms",
        spread(health),
    )


def _start_once(home: Path) -> tuple[float, float]:
    """Start a daemon; return after how long its store answers, and how long health took."""
    began = time.perf_counter()
    process = spawn_daemon(home, plugins=PLUGINS)
    try:
        path = home / "run" / "ksi.sock"
        await_socket(path, process, HELLO)
        while "error" in (answer := _ask(path, STATUS)):  # it is still starting
            time.sleep(POLL_S)
        if not answer["result"]["up"]:
            raise RuntimeError(f"the store is not up: {answer['result']['why_down']}")
        ready = time.perf_counter()
        if _ask(path, HEALTH)["result"]["health"] != "ok":
            raise RuntimeError("the daemon is not well")
        return ready - began, time.perf_counter() - ready
    finally:
        _end(process)


def _ask(path: Path, request: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
        client.settimeout(TIMEOUT_S)
        client.connect(str(path))
        client.sendall(request)
        return json.loads(answers.readline())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()

"""Turns through the daemon, against asking the same fake server directly."""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from processes import HELLO, Target, await_socket, clean_environment, folder
from report import Figure, at_least, at_most, spread

from ksi_client import AsyncClient, Unavailable, UnixTransport
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import socket_url
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings

IDLE_S: Final = 5.0
CHUNKS: Final = 200
PACE_MS: Final = 2.0  # between two chunks, so that each comes by itself
ROUNDS: Final = 40
QUICK_ROUNDS: Final = 8
AT_ONCE: Final = 20
FLOODS: Final = 3
PLUGINS: Final = "daemon.plugins=system,postgres,workflows,models,tools,completion"


class Fakes:
    """Servers that speak OpenAI's protocol, each in a process of its own.

    Attributes:
        urls: By name: ``one`` answers with one chunk, ``paced`` and ``flood`` with all of them.
    """

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, chunks: int, delay_ms: float = 0.0) -> None:
        """Start one."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ksi_models.fakes.openai_server", "--port", "0"),
                *("--chunks", str(chunks), "--delay-ms", str(delay_ms), "--max-log", "10"),
            ],
            env=clean_environment(),
            stdout=subprocess.PIPE,
        )
        self._processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the fake server did not start")
        self.urls[name] = json.loads(line)["url"]

    def end(self) -> None:
        """End them all."""
        for process in self._processes:
            process.terminate()
            process.wait()


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure what a turn costs, how soon its first token comes, and how many get through."""
    with asyncio.Runner() as runner, folder() as home:
        home.chmod(0o711)
        server = EmbeddedServer(home / "pg", PostgresSettings(max_connections=100))
        runner.run(server.start())
        fakes = Fakes()
        try:
            fakes.start("one", 1)
            fakes.start("paced", CHUNKS, PACE_MS)
            fakes.start("flood", CHUNKS)
            with _daemon(home / "ksi", server, fakes) as target:
                yield from runner.run(_measured(target, fakes, QUICK_ROUNDS if quick else ROUNDS))
        finally:
            fakes.end()
            runner.run(server.stop())


async def _measured(target: Target, fakes: Fakes, rounds: int) -> list[Figure]:
    path = Path(target.path)
    async with AsyncClient(UnixTransport(path)) as client, aiohttp.ClientSession() as http:
        await _warm_up(client, http, fakes)
        return [
            await _fixed_cost(client, http, fakes, rounds),
            await _first_token(client, http, fakes, rounds),
            await _first_tokens(client, http, fakes, max(rounds // 8, 2)),
            await _processor_time(client, target, max(rounds // 4, 4)),
            await _throughput(client, target),
        ]


async def _warm_up(client: AsyncClient, http: aiohttp.ClientSession, fakes: Fakes) -> None:
    while True:
        try:
            for name in fakes.urls:
                await _turn(client, name)
                await _direct(http, fakes.urls[name])
        except Unavailable as error:
            await asyncio.sleep(error.retry_after_s or 0.2)
        else:
            return


async def _turn(client: AsyncClient, name: str) -> tuple[float, float]:
    """Have a turn, and return when its first text and its end came, in ms."""
    began, first = time.perf_counter(), 0.0
    start = {"start": {"prompt": "go", "model": f"{name}:fake"}}
    async for chunk in client.stream("completion:stream", start):
        if chunk["kind"] == "text" and not first:
            first = time.perf_counter()
        if chunk["kind"] == "result" and chunk["status"] != "succeeded":
            raise RuntimeError(f"a turn {chunk['status']}: {chunk.get('error')}")
    return (first - began) * 1000, (time.perf_counter() - began) * 1000


async def _direct(http: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    """Ask the server itself, and return the same."""
    began, first = time.perf_counter(), 0.0
    body = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "go"}]}
    async with http.post(f"{url}/chat/completions", json=body) as response:
        async for line in response.content:
            if not first and b'"content":"' in line.replace(b'"content":""', b""):
                first = time.perf_counter()
    return (first - began) * 1000, (time.perf_counter() - began) * 1000


def _middle(values: list[float]) -> float:
    return statistics.median(values)


async def _fixed_cost(
    client: AsyncClient, http: aiohttp.ClientSession, fakes: Fakes, rounds: int
) -> Figure:
    pairs = [
        ((await _direct(http, fakes.urls["one"]))[1], (await _turn(client, "one"))[1])
        for _ in range(rounds)
    ]
    more = [ours - theirs for theirs, ours in pairs]
    details = f"direct {_middle([p[0] for p in pairs]):.1f} ms; more: {spread(more)}"
    return at_most("a turn of one token, over direct, p50", _middle(more), 30.0, " ms", details)


async def _first_token(
    client: AsyncClient, http: aiohttp.ClientSession, fakes: Fakes, rounds: int
) -> Figure:
    pairs = [
        ((await _direct(http, fakes.urls["paced"]))[0], (await _turn(client, "paced"))[0])
        for _ in range(rounds)
    ]
    more = [ours - theirs for theirs, ours in pairs]
    details = f"direct {_middle([p[0] for p in pairs]):.1f} ms; more: {spread(more)}"
    return at_most("first token over direct, alone, p50", _middle(more), 12.0, " ms", details)


async def _at_once(work: Any) -> list[tuple[float, float]]:
    async with asyncio.TaskGroup() as together:
        tasks = [together.create_task(work(), name="chat") for _ in range(AT_ONCE)]
    return [task.result() for task in tasks]


async def _first_tokens(
    client: AsyncClient, http: aiohttp.ClientSession, fakes: Fakes, rounds: int
) -> Figure:
    more, direct = [], []
    for _ in range(rounds):
        theirs = await _at_once(lambda: _direct(http, fakes.urls["paced"]))
        ours = await _at_once(lambda: _turn(client, "paced"))
        direct.append(_middle([first for first, _ in theirs]))
        more.append(_middle([first for first, _ in ours]) - direct[-1])
    details = f"direct {_middle(direct):.1f} ms; more: {spread(more)}"
    name = f"first token over direct, {AT_ONCE} at once, p50"
    return at_most(name, _middle(more), 60.0, " ms", details)


async def _processor_time(client: AsyncClient, target: Target, rounds: int) -> Figure:
    """Measure what tokens take besides what the daemon takes meanwhile without them."""
    before = target.cpu_s()
    await asyncio.sleep(IDLE_S)
    idle = (target.cpu_s() - before) / IDLE_S
    used = {}
    for name in ("one", "paced"):
        began, before = time.perf_counter(), target.cpu_s()
        for _ in range(rounds):
            await _turn(client, name)
        took_s = time.perf_counter() - began
        used[name] = (target.cpu_s() - before - idle * took_s) * 1000 / rounds
    per_token = (used["paced"] - used["one"]) / (CHUNKS - 1)
    details = (
        f"a turn of one token {used['one']:.1f} ms, of {CHUNKS} {used['paced']:.1f} ms; "
        f"without the {100 * idle:.1f} % of a core that the daemon takes in any case"
    )
    return at_most("daemon's processor time a token", per_token, 0.1, " ms", details)


async def _throughput(client: AsyncClient, target: Target) -> Figure:
    rates, shares = [], []
    for _ in range(FLOODS):
        began, before = time.perf_counter(), target.cpu_s()
        for _ in range(FLOODS):
            await _at_once(lambda: _turn(client, "flood"))
        took_s = time.perf_counter() - began
        rates.append(FLOODS * AT_ONCE * CHUNKS / took_s)
        shares.append((target.cpu_s() - before) / took_s)
    details = f"{spread(rates)}; the daemon's loop was busy {100 * _middle(shares):.0f} %"
    return at_least(f"tokens through {AT_ONCE} chats", _middle(rates), 10_000, "/s", details)


@contextmanager
def _daemon(home: Path, server: EmbeddedServer, fakes: Fakes) -> Iterator[Target]:
    home.mkdir()
    password = server.passwords[SUPERUSER]
    url = socket_url(SUPERUSER, password, host=server.host, database="postgres")
    lines = [
        f'[models.providers.{name}]\nbase_url = "{url}"\nmax_concurrent = 100\n'
        for name, url in fakes.urls.items()
    ]
    (home / "ksi.toml").write_text("\n".join(lines), encoding="utf-8")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ksi_daemon", "--home", str(home), "--set", PLUGINS),
            *("--set", f"postgres.url={url}", "--set", "log.level=error"),
            *("--set", "models.find_local=false", "--set", "models.keyring=false"),
        ],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
    )
    path = home / "run" / "ksi.sock"
    target = Target(process, path)
    try:
        await_socket(path, process, HELLO)
        yield target
    finally:
        target.end()

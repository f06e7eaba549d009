"""Agents: how soon one is ready, what asking it costs, and what many of them do to a daemon."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from processes import HELLO, Target, await_socket, clean_environment, folder
from report import Figure, at_most, spread

from ksi_client import AsyncClient, Busy, Unavailable, UnixTransport
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import socket_url
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings

PLUGINS: Final = "daemon.plugins=system,postgres,workflows,models,tools,completion,agents"
SETTINGS: Final = (
    PLUGINS,
    "log.level=error",
    "models.model=test/echo",
    "models.find_local=false",
    "models.keyring=false",
)
ROUNDS: Final = 60
QUICK_ROUNDS: Final = 10
CROWD: Final = 200
IDLE: Final = 1000
BUSY: Final = 10
STARTS: Final = 5
QUICK_STARTS: Final = 2
SETTLE_S: Final = 3.0
POLL_S: Final = 0.01
AT_ONCE: Final = 20
MB: Final = 1024 * 1024
SLOW: Final = "test/lorem-100-50ms"  # five seconds an answer


class Home:
    """A daemon's home and Postgres, which outlast the daemons that are started in it."""

    def __init__(self, path: Path, server: EmbeddedServer) -> None:
        password = server.passwords[SUPERUSER]
        url = socket_url(SUPERUSER, password, host=server.host, database="postgres")
        self._settings = (*SETTINGS, f"postgres.url={url}")
        self._path = path
        self.started_s = 0.0  # how long the last start took, up to an answer about agents

    def _spawn(self) -> Target:
        arguments = [part for each in self._settings for part in ("--set", each)]
        process = subprocess.Popen(
            [sys.executable, "-m", "ksi_daemon", "--home", str(self._path), *arguments],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
        )
        path = self._path / "run" / "ksi.sock"
        target = Target(process, path)
        await_socket(path, process, HELLO)
        return target

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[tuple[Target, AsyncClient]]:
        """Run a daemon that answers about agents, with a client of it."""
        began = time.perf_counter()
        target = await asyncio.to_thread(self._spawn)
        try:
            async with AsyncClient(UnixTransport(Path(target.path))) as client:
                await until_there(client, "agent:list", {"limit": 1})
                self.started_s = time.perf_counter() - began
                yield target, client
        finally:
            await asyncio.to_thread(target.end)


async def until_there(client: AsyncClient, event: str, data: Any) -> Any:
    """Ask until a daemon is there that can answer."""
    while True:
        try:
            return await client.request(event, data)
        except (Unavailable, Busy):
            await asyncio.sleep(POLL_S)


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure one agent, a crowd of them, and many that rest."""
    with asyncio.Runner() as runner, folder() as home:
        home.chmod(0o711)
        server = EmbeddedServer(home / "pg", PostgresSettings(max_connections=100))
        runner.run(server.start())
        try:
            (home / "ksi").mkdir()
            yield from runner.run(_measured(Home(home / "ksi", server), quick=quick))
        finally:
            runner.run(server.stop())


async def _measured(home: Home, *, quick: bool) -> list[Figure]:
    rounds, starts = (QUICK_ROUNDS, QUICK_STARTS) if quick else (ROUNDS, STARTS)
    async with home.daemon() as (_, client):
        await _ask(client, await _spawn(client, "warm"))
        figures = [await _spawning(client, rounds), await _asking(client, rounds)]
        figures.append(await _crowd(client))
        await client.request("agent:terminate", {"which": {"names": ["*"]}})
    without = [await _start(home) for _ in range(starts)]
    async with home.daemon() as (_, client):
        await _spawn_many(client, "idle", IDLE)
    with_them = [await _start(home) for _ in range(starts)]
    return [*figures, *_compared(without, with_them), await _killed(home)]


# -- one ------------------------------------------------------------------------------------------


async def _spawn(client: AsyncClient, name: str, model: str = "test/echo") -> str:
    """Have an agent, and wait until it is ready."""
    text = f"---\nname: clerk\ndescription: Repeats.\nmodel: {model}\n---\nYou repeat.\n"
    asked = {"document": {"text": text}, "name": name}
    made = await client.request("agent:spawn", asked)
    if made["phase"] != "Ready":
        raise RuntimeError(f"an agent is {made['phase']} ({made.get('reason')})")
    return name


async def _ask(client: AsyncClient, name: str) -> float:
    """Ask an agent, and return how long that took, in ms."""
    began = time.perf_counter()
    answer = await client.request("agent:ask", {"agent": name, "prompt": "go"})
    if answer["status"] != "succeeded":
        raise RuntimeError(f"an agent's turn {answer['status']}: {answer.get('error')}")
    return (time.perf_counter() - began) * 1000


async def _turn(client: AsyncClient) -> float:
    """Have a turn of nobody's, and return how long that took, in ms."""
    began = time.perf_counter()
    asked = {"prompt": "go", "conversation_id": "bare", "system": "You repeat."}
    accepted = await client.request("completion:async", asked)
    result = await client.request("completion:wait", {"run_id": accepted["run_id"]})
    if result["status"] != "succeeded":
        raise RuntimeError(f"a turn {result['status']}: {result.get('error')}")
    return (time.perf_counter() - began) * 1000


async def _spawning(client: AsyncClient, rounds: int) -> Figure:
    took = []
    for number in range(rounds):
        began = time.perf_counter()
        await _spawn(client, f"one-{number}")
        took.append((time.perf_counter() - began) * 1000)
    return at_most(
        "an agent, spawned until it is ready, p50", _p50(took), 20.0, " ms", spread(took)
    )


async def _asking(client: AsyncClient, rounds: int) -> Figure:
    """Compare asking an agent to a turn; both conversations grow by the same."""
    name = await _spawn(client, "asked")
    pairs = [(await _turn(client), await _ask(client, name)) for _ in range(rounds)]
    ratios = [ours / theirs for theirs, ours in pairs]
    details = f"a turn {_p50([p[0] for p in pairs]):.1f} ms, p50; {spread(ratios)}"
    return at_most("agent:ask, against a turn by itself, p50", _p50(ratios), 1.3, " times", details)


# -- many -----------------------------------------------------------------------------------------


async def _spawn_many(
    client: AsyncClient, stem: str, count: int, model: str = "test/echo"
) -> list[str]:
    names = [f"{stem}-{number}" for number in range(count)]
    for at in range(0, count, AT_ONCE):
        async with asyncio.TaskGroup() as together:
            for name in names[at : at + AT_ONCE]:
                together.create_task(_spawn(client, name, model), name=name)
    return names


async def _crowd(client: AsyncClient) -> Figure:
    names = await _spawn_many(client, "crowd", CROWD, "test/lorem-10-5ms")
    began = time.perf_counter()
    async with asyncio.TaskGroup() as together:
        tasks = [together.create_task(_ask(client, name), name=name) for name in names]
    took_s = time.perf_counter() - began
    waits = [task.result() for task in tasks]
    ratio = max(waits) / statistics.mean(waits)
    details = (
        f"mean {statistics.mean(waits):.0f} ms, longest {max(waits):.0f}; all in {took_s:.1f} s"
    )
    name = f"{CROWD} agents at once: the longest wait, against the mean"
    return at_most(name, ratio, 3.0, " times", details)


async def _start(home: Home) -> tuple[float, float]:
    """Start a daemon; return how long that took, and what it holds once it rests, in MB."""
    async with home.daemon() as (target, _):
        await asyncio.sleep(SETTLE_S)
        return home.started_s, target.rss_bytes() / MB


def _compared(
    without: list[tuple[float, float]], with_them: list[tuple[float, float]]
) -> Iterator[Figure]:
    """Yield what agents at rest add to a start, and to what the daemon holds."""
    bounds = (("more start-up", 1.0, " s"), ("more memory", 50.0, " MB"))
    for index, (what, bound, unit) in enumerate(bounds):
        before = _p50([each[index] for each in without])
        after = _p50([each[index] for each in with_them])
        details = f"{before:.2f}{unit} without them, {after:.2f} with; {len(without)} starts each"
        yield at_most(f"{IDLE} idle agents: {what}, p50", after - before, bound, unit, details)


async def _killed(home: Home) -> Figure:
    """Kill a daemon with agents at work, and see how soon all are back in the next one."""
    async with home.daemon() as (target, client):
        busy = await _spawn_many(client, "busy", BUSY, SLOW)
        for name in busy:
            await client.request("agent:send", {"agent": name, "prompt": "go"})
        for name in busy:
            await _at_work(client, name)
        target.kill()
    async with home.daemon() as (_, client):
        began = time.perf_counter()
        async with asyncio.TaskGroup() as together:
            together.create_task(_ask(client, "idle-0"), name="an idle one")
            for name in busy:
                together.create_task(_at_work(client, name), name=name)
        took_s = time.perf_counter() - began
    details = f"{IDLE} idle, {BUSY} at work; the start itself took {home.started_s:.1f} s"
    return at_most("agents back after kill -9", took_s, 2.0, " s", details)


async def _at_work(client: AsyncClient, name: str) -> None:
    """Wait until a daemon works at what an agent was given."""
    asked = {"name": name, "sections": ["conditions"]}
    while True:
        shown = await until_there(client, "agent:get", asked)
        live = next(each for each in shown["conditions"] if each["type"] == "Live")
        if live["reason"] == "LeaseHeld":
            return
        await asyncio.sleep(POLL_S)


def _p50(values: list[float]) -> float:
    return statistics.median(values)

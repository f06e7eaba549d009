"""HTTP: what the way through the sidecar adds to the socket."""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from completion import Fakes
from processes import HELLO, Target, await_socket, clean_environment, folder
from report import Figure, at_least, at_most, spread

from ksi_client import AsyncClient, Unavailable, UnixTransport
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import socket_url
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings

CHUNKS: Final = 200
PACE_MS: Final = 2.0
ROUNDS: Final = 40
QUICK_ROUNDS: Final = 8
LOOKUPS: Final = 400
QUICK_LOOKUPS: Final = 100
AT_ONCE: Final = 20
FLOODS: Final = 3
MB: Final = 1024 * 1024
PORT: Final = 18_480
URL: Final = f"http://127.0.0.1:{PORT}"
WAIT_S: Final = 20.0
HAVE_TURNS: Final = "system,postgres,workflows,models,tools,completion,memory,agents"
PLUGINS: Final = f"daemon.plugins={HAVE_TURNS},http"
LOOKUP: Final = {"text": "LOOKUP heron"}


class Server:
    """A daemon with its sidecar.

    Attributes:
        daemon: The daemon.
        ready_s: How long after the daemon the sidecar answered.
        key: The owner's.
    """

    def __init__(self, daemon: Target, home: Path, ready_s: float) -> None:
        self.daemon = daemon
        self.ready_s = ready_s
        self.key = (home / "http.key").read_text(encoding="ascii").strip()

    def sidecar_rss_bytes(self) -> int:
        """Return the memory that the sidecar holds."""
        found = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and self._is_sidecar(entry)
        ]
        (pid,) = found
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * 4096

    def _is_sidecar(self, entry: Path) -> bool:
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            parent = (entry / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[1]
        except OSError:
            return False
        return b"ksi_http" in command and int(parent) == self.daemon.pid


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure first tokens, tokens through many streams, and looking things up."""
    with asyncio.Runner() as runner, folder() as home:
        home.chmod(0o711)
        server = EmbeddedServer(home / "pg", PostgresSettings(max_connections=100))
        runner.run(server.start())
        fakes = Fakes()
        try:
            fakes.start("paced", CHUNKS, PACE_MS)
            fakes.start("flood", CHUNKS)
            with _daemon(home / "ksi", server, fakes) as running:
                yield from runner.run(_measured(running, quick=quick))
        finally:
            fakes.end()
            runner.run(server.stop())


async def _measured(server: Server, *, quick: bool) -> list[Figure]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    headers = {"Authorization": f"Bearer {server.key}"}
    connector = aiohttp.TCPConnector(limit=100)
    async with (
        AsyncClient(UnixTransport(Path(server.daemon.path))) as client,
        aiohttp.ClientSession(headers=headers, connector=connector) as http,
    ):
        await _warm_up(client, http)
        return [
            await _first_token(client, http, rounds),
            await _throughput(http),
            await _lookup(client, http, QUICK_LOOKUPS if quick else LOOKUPS),
            at_most("sidecar ready after the daemon", server.ready_s, 1.0, " s"),
            at_most("memory of the sidecar", server.sidecar_rss_bytes() / MB, 100.0, " MB"),
        ]


async def _warm_up(client: AsyncClient, http: aiohttp.ClientSession) -> None:
    for model in ("paced", "flood"):
        definition = {"text": f"---\nname: {model}\nmodel: {model}:fake\n---\nAnswer."}
        while True:
            try:
                await client.request("agent:apply", {"documents": [definition]})
                break
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s or 0.2)
        await _turn(client, model)
        await _run(http, model, "warm")
    row = {"key": "heron", "body": "A bird that stands in the water."}
    await client.request("memory:upsert", {"table": "resources", "items": [row]})


async def _turn(client: AsyncClient, agent: str) -> tuple[float, float]:
    """Have a turn over the socket; return when its first text and its end came, in ms."""
    began, first = time.perf_counter(), 0.0
    start = {"start": {"prompt": "go", "agent": agent}}
    async for chunk in client.stream("completion:stream", start):
        if chunk["kind"] == "text" and not first:
            first = time.perf_counter()
        if chunk["kind"] == "result" and chunk["status"] != "succeeded":
            raise RuntimeError(f"a turn {chunk['status']}: {chunk.get('error')}")
    return (first - began) * 1000, (time.perf_counter() - began) * 1000


_numbers = iter(range(1_000_000_000))


async def _run(http: aiohttp.ClientSession, agent: str, what: str) -> tuple[float, float]:
    """Have the same as a run of AG-UI."""
    thread = f"{what}-{next(_numbers)}"
    data = {
        "threadId": thread,
        "runId": thread,
        "messages": [{"id": thread, "role": "user", "content": "go"}],
    }
    began, first, last = time.perf_counter(), 0.0, b""
    headers = {"x-agent-schema-name": agent}
    async with http.post(f"{URL}/agui", json=data, headers=headers) as response:
        async for line in response.content:
            if not first and b'"TEXT_MESSAGE_CONTENT"' in line:
                first = time.perf_counter()
            last = line if line.startswith(b"data: ") else last
    if b'"RUN_FINISHED"' not in last:
        raise RuntimeError(f"a run ended with {last!r}")
    return (first - began) * 1000, (time.perf_counter() - began) * 1000


async def _first_token(client: AsyncClient, http: aiohttp.ClientSession, rounds: int) -> Figure:
    pairs = [
        ((await _turn(client, "paced"))[0], (await _run(http, "paced", "first"))[0])
        for _ in range(rounds)
    ]
    more = [ours - theirs for theirs, ours in pairs]
    socket = statistics.median(pair[0] for pair in pairs)
    details = f"over the socket {socket:.1f} ms; more: {spread(more)}"
    name = "first token by AG-UI, over the socket's, p50"
    return at_most(name, statistics.median(more), 5.0, " ms", details)


async def _throughput(http: aiohttp.ClientSession) -> Figure:
    rates = []
    for _ in range(FLOODS):
        began = time.perf_counter()
        for _ in range(FLOODS):
            async with asyncio.TaskGroup() as together:
                for _ in range(AT_ONCE):
                    together.create_task(_run(http, "flood", "flood"))
        rates.append(FLOODS * AT_ONCE * CHUNKS / (time.perf_counter() - began))
    name = f"tokens through {AT_ONCE} streams of AG-UI"
    return at_least(name, statistics.median(rates), 8_000, "/s", spread(rates))


async def _lookup(client: AsyncClient, http: aiohttp.ClientSession, rounds: int) -> Figure:
    """Look one thing up over the socket and by HTTP, by turns."""
    took: dict[str, list[float]] = {"socket": [], "http": []}
    for _ in range(rounds):
        began = time.perf_counter()
        await client.request("memory:query", LOOKUP)
        took["socket"].append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        async with http.post(f"{URL}/v1/memory/query", json=LOOKUP) as response:
            answer = json.loads(await response.read())
        took["http"].append((time.perf_counter() - began) * 1000)
        if response.status != 200:
            raise RuntimeError(f"a look-up was answered with {answer}")
    socket, over_http = (statistics.median(took[name]) for name in ("socket", "http"))
    details = f"socket {socket:.2f} ms, HTTP {over_http:.2f} ms"
    name = "a look-up by REST, of the socket's, p50"
    return at_most(name, over_http / socket, 3.0, " ×", details)


@contextmanager
def _daemon(home: Path, server: EmbeddedServer, fakes: Fakes) -> Iterator[Server]:
    home.mkdir()
    password = server.passwords[SUPERUSER]
    url = socket_url(SUPERUSER, password, host=server.host, database="postgres")
    lines = [
        f'[models.providers.{name}]\nbase_url = "{base}"\nmax_concurrent = 100\n'
        for name, base in fakes.urls.items()
    ]
    (home / "ksi.toml").write_text("\n".join(lines), encoding="utf-8")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ksi_daemon", "--home", str(home), "--set", PLUGINS),
            *("--set", f"postgres.url={url}", "--set", "log.level=error"),
            *("--set", "models.find_local=false", "--set", "models.keyring=false"),
            *("--set", "memory.embedder=none"),
            *("--set", "http.enabled=true", "--set", f"http.port={PORT}"),
            *("--set", "http.requests_per_s=0"),
        ],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
    )
    path = home / "run" / "ksi.sock"
    target = Target(process, path)
    try:
        await_socket(path, process, HELLO)
        ready_at = asyncio.run(_ready(path))
        answered_at = asyncio.run(_answers())
        yield Server(target, home, answered_at - ready_at)
    finally:
        target.end()


async def _ready(path: Path) -> float:
    """Wait until the daemon is ready; return when it was."""
    async with AsyncClient(UnixTransport(path)) as client:
        async for state in _states(client):
            if state == "ready":
                return time.perf_counter()
    raise RuntimeError("the daemon did not get ready")


async def _states(client: AsyncClient) -> AsyncIterator[Any]:
    until = time.perf_counter() + WAIT_S
    while time.perf_counter() < until:
        yield (await client.request("system:health"))["state"]
        await asyncio.sleep(0.005)


async def _answers() -> float:
    until = time.perf_counter() + WAIT_S
    async with aiohttp.ClientSession() as http:
        while time.perf_counter() < until:
            try:
                async with http.get(f"{URL}/readyz") as response:
                    if response.status == 200:
                        return time.perf_counter()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.005)
    raise RuntimeError("the sidecar did not answer")

"""MCP: a call of a tool against the SDK's own server, and what servers that idle cost a start."""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from processes import HELLO, HERE, Target, await_socket, clean_environment, folder
from report import Figure, at_most

from ksi_client import AsyncClient, UnixTransport
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import socket_url
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings

CALLS: Final = 400
QUICK_CALLS: Final = 100
WARM: Final = 30
STARTS: Final = 7
QUICK_STARTS: Final = 3
IDLE: Final = 100
PORT: Final = 18_490
PEER_PORT: Final = 18_491
WAIT_S: Final = 60.0
SETTLED_S: Final = 0.01
PLUGINS: Final = "daemon.plugins=system,postgres,workflows,models,tools,mcp"
LEGACY, MODERN = "2025-11-25", "2026-07-28"
ACCEPTS: Final = "application/json, text/event-stream"
TOOL: Final = "current_time"
SPEAKS: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
}


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure calls in both protocols, and starts with and without servers that idle."""
    with asyncio.Runner() as runner, folder() as home:
        home.chmod(0o711)
        server = EmbeddedServer(home / "pg", PostgresSettings(max_connections=100))
        runner.run(server.start())
        try:
            with _peer(), _daemon(home / "ksi", server, http=True) as daemon:
                key = runner.run(_ready(daemon, home / "ksi"))
                calls = QUICK_CALLS if quick else CALLS
                yield runner.run(_compared(daemon, LEGACY, key, calls))
                yield runner.run(_compared(daemon, MODERN, key, calls))
            rounds = QUICK_STARTS if quick else STARTS
            yield from runner.run(_idle(home / "idle", server, rounds))
        finally:
            runner.run(server.stop())


# -- calls --------------------------------------------------------------------------------------


class Program:
    """Calls a tool over HTTP, by one of the protocols.

    Args:
        session: A client.
        url: The server's.
        version: The protocol's.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, version: str) -> None:
        self._session = session
        self._url = url
        self._version = version
        self._numbers = iter(range(1_000_000_000))
        self._headers = {"Accept": ACCEPTS, "MCP-Protocol-Version": version}

    async def open(self) -> None:
        """Begin a session, where the protocol has such."""
        if self._version == MODERN:
            return
        client = {"name": "bench", "version": "1"}
        hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}
        headers, _ = await self._send("initialize", hello)
        self._headers["Mcp-Session-Id"] = headers["Mcp-Session-Id"]
        message = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        async with self._session.post(self._url, json=message, headers=self._headers) as answer:
            answer.raise_for_status()

    async def call(self) -> float:
        """Call the tool; return how long that took, in ms."""
        params: dict[str, Any] = {"name": TOOL, "arguments": {}}
        began = time.perf_counter()
        _, body = await self._send("tools/call", params, name=TOOL)
        took_ms = (time.perf_counter() - began) * 1000
        if b'"content":[{' not in body or b'"isError":true' in body:
            raise RuntimeError(f"a call was answered with {body!r}")
        return took_ms

    async def _send(
        self, method: str, params: dict[str, Any], *, name: str | None = None
    ) -> tuple[Any, bytes]:
        headers = dict(self._headers)
        if self._version == MODERN:
            params = {**params, "_meta": SPEAKS}
            headers |= {"Mcp-Method": method, **({"Mcp-Name": name} if name else {})}
        message = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params}
        async with self._session.post(self._url, json=message, headers=headers) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{method} was answered with {answer.status} {body!r}")
            return answer.headers, body


async def _compared(daemon: Target, version: str, key: str, calls: int) -> Figure:
    """Call a tool of the SDK's server and one of KSI's, by turns."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session, _client(daemon) as client:
        peer = Program(session, f"http://127.0.0.1:{PEER_PORT}/mcp", version)
        ksi = Program(session, f"http://127.0.0.1:{PORT}/mcp", version)
        for each in (peer, ksi):
            await each.open()
            for _ in range(WARM):
                await each.call()
        rounds = [
            (
                await _alone(peer.call()),
                await _alone(ksi.call()),
                await _alone(_over_the_socket(client)),
            )
            for _ in range(calls)
        ]
    theirs, ours, socket = (statistics.median(each[at] for each in rounds) for at in range(3))
    details = f"the SDK's {theirs:.2f} ms, KSI's {ours:.2f} ms; tool:call itself {socket:.2f} ms"
    name = f"tools/call of {version}, of the SDK's own server's, p50"
    return at_most(name, ours / theirs, 2.0, " ×", details)


async def _alone(call: Awaitable[float]) -> float:
    """Call when nothing of the call before is under way any more: outcomes may be written late."""
    await asyncio.sleep(SETTLED_S)
    return await call


async def _over_the_socket(client: AsyncClient) -> float:
    """Call the same tool without MCP; return how long that took, in ms."""
    began = time.perf_counter()
    await client.request("tool:call", {"name": TOOL, "arguments": {}})
    return (time.perf_counter() - began) * 1000


@contextmanager
def _peer() -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "mcp_peer.py"), str(PEER_PORT)], env=clean_environment()
    )
    try:
        asyncio.run(_answers(PEER_PORT, process))
        yield
    finally:
        process.terminate()
        process.wait()


async def _answers(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.perf_counter() + WAIT_S
    while time.perf_counter() < until and process.poll() is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise RuntimeError(f"nothing answers at port {port}")


# -- servers that idle --------------------------------------------------------------------------


async def _idle(home: Path, server: EmbeddedServer, rounds: int) -> list[Figure]:
    """Start daemons with and without servers whose tools are known, by turns."""
    with ExitStack() as stack:
        known = stack.enter_context(_daemon(home, server, servers=IDLE, at_once=8))
        await _known(known)
    took: dict[int, list[tuple[float, float]]] = {0: [], IDLE: []}
    running = 0
    for _ in range(rounds):
        for servers, starts in took.items():
            began = time.perf_counter()
            with _daemon(home, server, servers=servers) as daemon:
                async with _client(daemon) as client:
                    await _state(client)
                    starts.append((time.perf_counter() - began, daemon.cpu_s()))
                    listed = await client.request("mcp:list")
                    offered = sum(each.get("offered", 0) for each in listed["servers"])
                    if offered != servers:
                        raise RuntimeError(f"{offered} tools of {servers} servers are offered")
                    running += _children(daemon, "mcp_server.py")
    figures = []
    for at, what in enumerate(("start-up", "processor time until it is ready")):
        pairs = [(a[at], b[at]) for a, b in zip(took[0], took[IDLE], strict=True)]
        without, with_them = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        more = statistics.median(b - a for a, b in pairs)
        details = f"{without:.2f} s without them, {with_them:.2f} s with; {rounds} starts each"
        name = f"{IDLE} servers that idle: more {what}, p50"
        figures.append(at_most(name, more, 0.1, " s", details))
    return [*figures, at_most(f"{IDLE} servers that idle: processes begun", running, 0, "")]


async def _known(daemon: Target) -> None:
    """Wait until the daemon has asked each server for its tools."""
    until = time.perf_counter() + WAIT_S
    async with _client(daemon) as client:
        await _state(client)
        while time.perf_counter() < until:
            listed = await client.request("mcp:list")
            if sum(each.get("offered", 0) for each in listed["servers"]) == IDLE:
                return
            await asyncio.sleep(0.2)
    raise RuntimeError("not all servers told of their tools")


def _children(daemon: Target, program: str) -> int:
    """Count the processes below a daemon that run a program."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        parents[entry.name] = stat.rpartition(")")[2].split()[1]
        if program.encode() in command:
            found.append(entry.name)
    return sum(str(daemon.pid) in _ancestors(each, parents) for each in found)


def _ancestors(pid: str, parents: dict[str, str]) -> set[str]:
    above = set()
    while (pid := parents.get(pid, "")) and pid not in above:
        above.add(pid)
    return above


# -- daemons ------------------------------------------------------------------------------------


@contextmanager
def _daemon(
    home: Path,
    server: EmbeddedServer,
    *,
    http: bool = False,
    servers: int = 0,
    at_once: int | None = None,
) -> Iterator[Target]:
    home.mkdir(exist_ok=True)
    command = json.dumps(sys.executable)
    program = json.dumps([str(HERE / "mcp_server.py")])
    (home / "ksi.toml").write_text(
        "\n".join(
            f"[mcp.servers.idle{number}]\ncommand = {command}\nargs = {program}\n"
            for number in range(servers)
        ),
        encoding="utf-8",
    )
    password = server.passwords[SUPERUSER]
    url = socket_url(SUPERUSER, password, host=server.host, database="postgres")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ksi_daemon", "--home", str(home)),
            *("--set", f"{PLUGINS},http" if http else PLUGINS),
            *("--set", f"postgres.url={url}", "--set", "log.level=error"),
            *("--set", "models.find_local=false", "--set", "models.keyring=false"),
            *_settings(http=http, at_once=at_once),
        ],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
    )
    target = Target(process, home / "run" / "ksi.sock")
    try:
        await_socket(Path(target.path), process, HELLO)
        yield target
    finally:
        target.end()


def _settings(*, http: bool, at_once: int | None) -> list[str]:
    settings = [] if at_once is None else [f"mcp.first_at_once={at_once}"]
    if http:
        settings += ["http.enabled=true", f"http.port={PORT}", "http.requests_per_s=0"]
    return [part for each in settings for part in ("--set", each)]


async def _ready(daemon: Target, home: Path) -> str:
    """Wait until a daemon and its HTTP server are ready; return the owner's key."""
    async with _client(daemon) as client:
        await _state(client)
    until = time.perf_counter() + WAIT_S
    async with aiohttp.ClientSession() as http:
        while time.perf_counter() < until:
            try:
                async with http.get(f"http://127.0.0.1:{PORT}/readyz") as answer:
                    if answer.status == 200:
                        return (home / "http.key").read_text(encoding="ascii").strip()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.01)
    raise RuntimeError("the HTTP server did not answer")


@asynccontextmanager
async def _client(daemon: Target) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(UnixTransport(Path(daemon.path))) as client:
        yield client


async def _state(client: AsyncClient) -> None:
    until = time.perf_counter() + WAIT_S
    while time.perf_counter() < until:
        if (await client.request("system:health"))["state"] == "ready":
            return
        await asyncio.sleep(0.005)
    raise RuntimeError("the daemon did not get ready")

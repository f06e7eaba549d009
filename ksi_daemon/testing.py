"""The public test kit, as a pytest plugin: ``daemon``, ``client``, ``wire``, ``daemon_process``.

A plugin's tests need no conftest. They are ``async def`` functions (``anyio_mode = "auto"`` in the
pytest settings, or the mark ``anyio``) and take what they need:

    async def test_the_weather_is_reported(client):
        report = await client.request("weather:get", {"place": "Oslo"})
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ksi_client import AsyncClient, LocalTransport, UnixTransport
from ksi_daemon import forks, installed
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint

__all__ = [
    "DaemonProcess",
    "ExecutedDaemon",
    "ModuleEntryPoint",
    "Wire",
    "installed_plugins",
    "memory_folder",
    "module_plugin",
    "read_log",
    "running_daemon",
    "write_entry_points",
]

PROCESS_TIMEOUT_S = 20.0
WIRE_TIMEOUT_S = 10.0
WIRE_LIMIT_BYTES = 16 * 1024 * 1024
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 2 * 1024**3


def memory_folder() -> Path | None:
    """Return a folder in memory with room for many databases; their files are most of the work."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK):
        room = os.statvfs(MEMORY)
        if room.f_bavail * room.f_frsize >= MEMORY_BYTES:
            return MEMORY
    return None


def installed_plugins(*names: str) -> list[EntryPoint]:
    """Return the plugins that are installed: all of them, or those of these names."""
    return [point for point in installed.installed_plugins() if not names or point.name in names]


class ModuleEntryPoint:
    """An entry point for a module that is not installed."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self.load = load


def module_plugin(name: str, **members: Any) -> ModuleEntryPoint:
    """Make a plugin of functions and hooks, as if they stood in a module of their own."""
    module = ModuleType(f"{name}_plugin_under_test")
    vars(module).update(members)
    return ModuleEntryPoint(name, lambda: module)


def write_entry_points(folder: Path, **plugins: str) -> None:
    """Make a directory look as if a package with these plugins were installed in it.

    Args:
        folder: A directory on ``sys.path``, or on ``PYTHONPATH`` for other processes.
        plugins: ``name="module"``, or ``name="module:attribute"``.
    """
    information = folder / "plugins_under_test-1.0.dist-info"
    information.mkdir()
    metadata = "Metadata-Version: 2.1\nName: plugins-under-test\nVersion: 1.0\n"
    (information / "METADATA").write_text(metadata, encoding="utf-8")
    lines = [f"{name} = {reference}" for name, reference in plugins.items()]
    text = "\n".join(["[ksi]", *lines, ""])
    (information / "entry_points.txt").write_text(text, encoding="utf-8")


def read_log(home: Path) -> list[dict[str, Any]]:
    """Return the lines of a daemon's log."""
    text = (home / "log" / "daemon.log").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def running_daemon(
    home: Path,
    *plugins: EntryPoint,
    settings: Iterable[str] = (),
) -> AsyncIterator[Daemon]:
    """Run a daemon on this loop, with these plugins besides the installed ``system``.

    Args:
        home: An empty directory.
        plugins: What to load, such as `module_plugin` makes.
        settings: ``section.key=value`` strings.
    """
    chosen = [*installed_plugins("system"), *plugins]
    daemon = Daemon(home, tuple(settings), entry_points=chosen)
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(daemon.run(ready.set), name="daemon under test")
        waiting = tasks.create_task(ready.wait(), name="ready")
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.done():
            running.result()
        try:
            yield daemon
        finally:
            daemon.shutdown(0.0)


class Wire:
    """A bare connection, for tests of what crosses it: writes any bytes, reads frames as dicts.

    Example:
        frame = await wire.ask("weather:get", {"place": "Oslo"})
        assert frame["error"]["code"] == "not_found"
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._ids = itertools.count(1)

    @classmethod
    async def connect(cls, path: Path) -> "Wire":
        """Connect to a daemon's socket."""
        return cls(*await asyncio.open_unix_connection(path, limit=WIRE_LIMIT_BYTES))

    def send(self, *frames: dict[str, Any] | bytes) -> None:
        """Write frames in one go: dicts as a line each, bytes as they are."""
        lines = [f if isinstance(f, bytes) else json.dumps(f).encode() + b"\n" for f in frames]
        self.writer.write(b"".join(lines))

    async def receive(self) -> dict[str, Any]:
        """Return the next frame.

        Raises:
            EOFError: The daemon has closed the connection.
        """
        async with asyncio.timeout(WIRE_TIMEOUT_S):
            try:
                line = await self.reader.readline()
            except ConnectionError:
                line = b""
        if not line:
            raise EOFError("the daemon closed the connection")
        frame: dict[str, Any] = json.loads(line)
        return frame

    async def answer_to(self, request_id: int | str) -> dict[str, Any]:
        """Return the frame that ends a request; those before it are dropped."""
        while True:
            frame = await self.receive()
            if frame.get("id") == request_id and ("result" in frame or "error" in frame):
                return frame

    async def ask(self, event: str, data: Any = None, **members: Any) -> dict[str, Any]:
        """Send a request and return the frame that ends it; ``members`` are more of its own."""
        request_id = next(self._ids)
        self.send({"id": request_id, "event": event, "data": data or {}, **members})
        return await self.answer_to(request_id)

    async def until_closed(self) -> list[dict[str, Any]]:
        """Return all frames that still come, once the daemon has closed the connection."""
        frames = []
        with contextlib.suppress(EOFError):
            while True:
                frames.append(await self.receive())
        return frames

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class DaemonProcess:
    """A daemon in a process of its own, to be killed.

    It is forked from a process that has imported the plugins; see `ksi_daemon.forks`.
    """

    _program = staticmethod(forks.start)

    def __init__(self, home: Path, *, environ: dict[str, str] | None = None) -> None:
        self.home = home
        self.socket = home / "run" / "ksi.sock"
        self.environ = environ or {}
        self.process: forks.Running | None = None

    def start(self, *arguments: str) -> None:
        """Start it and wait until it is ready.

        Raises:
            AssertionError: It did not become ready; the message has what it wrote.
        """
        read, write = os.pipe()
        self.process = self._begin(["--home", str(self.home), *arguments], write)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            told = pipe.readline()
        assert b'"pid"' in told, f"the daemon did not start: {told!r}"

    def _begin(self, arguments: list[str], ready: int) -> forks.Running:
        environ = {**os.environ, **self.environ, "KSI_READY_FD": str(ready)}
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123  a handle
            output = (nothing.fileno(), 2)
            return self._program(
                "ksi_daemon", arguments, env=environ, output=output, pass_fds=(ready,)
            )

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal and wait for its end; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PROCESS_TIMEOUT_S)

    def stop(self) -> None:
        """End it, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGTERM)


class ExecutedDaemon(DaemonProcess):
    """The same, started by its command line: what ``/proc`` tells of it is its own."""

    _program = staticmethod(forks.execute)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which the daemon is written for."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KSI_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def ksi_home() -> Iterator[Path]:
    """A home for a daemon, short enough for its socket, removed afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="ksi-test-", dir=memory_folder(), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The plugins that the fixture ``daemon`` loads besides ``system``: all that are installed.

    Override it to load others.
    """
    return [point for point in installed_plugins() if point.name != "system"]


@pytest.fixture
def ksi_settings() -> list[str]:
    """The settings of the fixture ``daemon``, as ``section.key=value``; override it."""
    return []


@pytest.fixture
def ksi_settings_of_plugins(
    request: pytest.FixtureRequest, ksi_plugins: list[EntryPoint]
) -> list[str]:
    """What the kits of the loaded plugins set: their fixtures ``ksi_settings_of_<plugin>``."""
    settings: list[str] = []
    for plugin in ksi_plugins:
        with contextlib.suppress(pytest.FixtureLookupError):
            settings += request.getfixturevalue(f"ksi_settings_of_{plugin.name}")
    return settings


@pytest.fixture
async def daemon(
    ksi_home: Path,
    ksi_plugins: list[EntryPoint],
    ksi_settings_of_plugins: list[str],
    ksi_settings: list[str],
) -> AsyncIterator[Daemon]:
    """A daemon on the test's own loop."""
    settings = [*ksi_settings_of_plugins, *ksi_settings]
    async with running_daemon(ksi_home, *ksi_plugins, settings=settings) as running:
        yield running


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[AsyncClient]:
    """A client of the fixture ``daemon``, as its owner."""
    async with AsyncClient(LocalTransport(daemon)) as connected:
        yield connected


@pytest.fixture
async def connect(daemon: Daemon) -> AsyncIterator[Callable[..., Any]]:
    """Open further clients over the socket, such as one with a token."""
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> AsyncClient:
            transport = UnixTransport(daemon.home.socket)
            return await stack.enter_async_context(AsyncClient(transport, **options))

        yield make


@pytest.fixture
async def wire(daemon: Daemon) -> AsyncIterator[Callable[[], Awaitable[Wire]]]:
    """Open bare connections to the fixture ``daemon``, one at each call."""
    async with AsyncExitStack() as stack:

        async def make() -> Wire:
            made = await Wire.connect(daemon.home.socket)
            stack.push_async_callback(made.close)
            return made

        yield make


@pytest.fixture
def daemon_process(ksi_home: Path) -> Iterator[DaemonProcess]:
    """A daemon in a process of its own, not yet started, ended afterwards."""
    process = DaemonProcess(ksi_home)
    yield process
    process.stop()

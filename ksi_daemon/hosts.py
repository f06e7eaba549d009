"""Runs plugins in processes of their own; the daemon's side of it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_daemon.connection import Connection
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.loader import Loaded, Loader
from ksi_daemon.principals import EVERYTHING, Principal
from ksi_daemon.protocol import Denied, Failed, KsiError, Unavailable
from ksi_daemon.router import Router
from ksi_daemon.server import Server
from ksi_daemon.settings import DaemonSettings, Settings
from ksi_daemon.supervisor import Supervisor

log = logging.getLogger(__name__)

STOP_GRACE_S: Final = 3.0
MAX_LOG_LINE_BYTES: Final = 256 * 1024

# What any program needs to run; everything else may hold a secret and must be asked for by name.
PASSED_VARIABLES: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV"}
)


class HostHello(Struct, frozen=True, kw_only=True):
    """Asked by a plugin's host when it has connected: what am I to run, and how?"""


class HostTask(Struct, frozen=True, kw_only=True):
    """What a host is to run; ``arguments`` are the plugin's settings as ``section.key=value``."""

    plugin: str
    home: str
    arguments: tuple[str, ...]
    observer_queue_events: int
    start_timeout_s: float
    stop_timeout_s: float


class HostAwait(Struct, frozen=True, kw_only=True):
    """Asked by a host before it starts its plugin: wait until these are ready."""

    requires: tuple[str, ...] = ()


class HostAwaited(Struct, frozen=True, kw_only=True):
    """All that the plugin requires is ready."""


class HostReady(Struct, frozen=True, kw_only=True):
    """Told by a host when its plugin has started, or why it can't be."""

    settings: tuple[dict[str, Any], ...] = ()
    requires: tuple[str, ...] = ()
    failure: str | None = None


class HostKnown(Struct, frozen=True, kw_only=True):
    """The daemon has taken note."""


class PluginHost:
    """One plugin's process, started anew whenever it dies."""

    def __init__(self, hosts: "Hosts", loaded: Loaded, stopping: asyncio.Event) -> None:
        self.failure: str | None = None
        self._hosts = hosts
        self._loaded = loaded
        self._stopping = stopping
        self._ready = asyncio.Event()

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self._loaded.name

    def ready(self, report: HostReady) -> None:
        """Take note that the plugin has started, or can't be."""
        self.failure = report.failure
        if report.failure is None:
            self._loaded.info = msgspec.structs.replace(self._loaded.info, requires=report.requires)
            self._hosts.router.set_reason(self.name, None)
            self._loaded.set_state("ready")
        self._ready.set()

    async def run(self) -> None:
        """Run the process once; raises when it ends before its time."""
        self._ready.clear()
        async with self._process() as (process, connection):
            self._loaded.pid = process.pid
            async with asyncio.TaskGroup() as tasks:
                relay = tasks.create_task(relay_log(process, self.name), name="log")
                watch = tasks.create_task(self._watch(connection), name="ping")
                end = tasks.create_task(process.wait(), name="exit")
                stop = tasks.create_task(self._stopping.wait(), name="stop")
                await asyncio.wait({watch, end, stop}, return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    await self._terminate(process)
                for task in (watch, end, stop, relay):
                    task.cancel()
        self._loaded.pid = None
        if not self._stopping.is_set():
            how = explain_exit(process.returncode)
            self._hosts.router.set_reason(self.name, "is being restarted")
            self._loaded.set_state("restarting", self.failure or how)
            raise Unavailable(self.failure or f"the host of {self.name} {how}")

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, Connection]]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ksi_daemon.host",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=scrubbed(self._loaded.common.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LOG_LINE_BYTES,
                start_new_session=True,
            )
        principal = Principal(f"plugin:{self.name}", EVERYTHING, plugin=self.name)
        connection = await self._hosts.server.adopt(ours, principal)
        try:
            yield process, connection
        finally:
            kill_group(process)
            connection.close()

    async def _watch(self, connection: Connection) -> None:
        """Return when the host has not answered in time."""
        settings = self._hosts.settings
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                await self._ready.wait()
            while True:
                await asyncio.sleep(settings.host_ping_interval_s)
                async with asyncio.timeout(settings.host_ping_timeout_s):
                    await connection.ask("host:ping", None).result()
        except TimeoutError:
            self.failure = "did not answer in time and was killed (host_ping_timeout_s)"
            log.error("a plugin host hangs", extra={"plugin": self.name})
        except KsiError:
            # The connection is gone: so is the process, or it will not be of use any more.
            return

    async def _terminate(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._hosts.settings.stop_timeout_s + STOP_GRACE_S):
                await process.wait()


class Hosts:
    """The plugin hosts of a daemon, and the events by which they report."""

    def __init__(
        self,
        router: Router,
        server: Server,
        supervisor: Supervisor,
        settings: Settings,
        daemon_settings: DaemonSettings,
    ) -> None:
        self.router = router
        self.server = server
        self.settings = daemon_settings
        self.loader: Loader | None = None
        self._all_settings = settings
        self._supervisor = supervisor
        self._hosts: dict[str, PluginHost] = {}

    async def run(self, loaded: Loaded, stopping: asyncio.Event) -> None:
        """Keep a plugin's host running until ``stopping``.

        Raises:
            Failed: It was restarted too often.
        """
        host = self._hosts[loaded.name] = PluginHost(self, loaded, stopping)
        self.router.set_reason(loaded.name, "is starting")
        unit = self._supervisor.start(f"host of {loaded.name}", host.run)
        assert unit.task is not None
        await asyncio.wait({unit.task})
        if unit.state == "failed":
            raise Failed(
                f"its host was restarted too often; last: {host.failure or unit.last_error}"
            )

    def _host(self) -> PluginHost:
        """Return the host that sends the current event."""
        context = current_context()
        name = context.origin.removeprefix("plugin:") if context is not None else ""
        if name not in self._hosts:
            raise Denied("host:* events are for the daemon's own plugin hosts")
        return self._hosts[name]

    @event_handler("host:hello")
    def hello(self, request: HostHello) -> HostTask:
        """Tell a host what to run."""
        name = self._host().name
        return HostTask(
            plugin=name,
            home=str(self._all_settings.home),
            arguments=tuple(self._all_settings.raw_section(name)),
            observer_queue_events=self.settings.observer_queue_events,
            start_timeout_s=self.settings.start_timeout_s,
            stop_timeout_s=self.settings.stop_timeout_s,
        )

    @event_handler("host:await")
    async def await_required(self, request: HostAwait) -> HostAwaited:
        """Wait until the plugins that a host's plugin requires are ready."""
        self._host()
        assert self.loader is not None
        for name in request.requires:
            await self.loader.await_ready(name)
        return HostAwaited()

    @event_handler("host:ready")
    def ready(self, request: HostReady) -> HostKnown:
        """Take note that a host's plugin has started, or can't be."""
        self._host().ready(request)
        return HostKnown()


def scrubbed(wanted: tuple[str, ...]) -> dict[str, str]:
    """Return the environment of a child: what any program needs, and what was asked for by name."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_VARIABLES or name.startswith("LC_") or name in wanted
    }


def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill a process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def explain_exit(code: int | None) -> str:
    """Say in words how a process ended."""
    if code is None:
        return "was killed"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with {code}"


async def relay_log(process: asyncio.subprocess.Process, plugin: str) -> None:
    """Write a host's log lines into the daemon's log."""
    assert process.stderr is not None
    logger = logging.getLogger(f"ksi.host.{plugin}")
    while True:
        try:
            line = await process.stderr.readline()
        except ValueError:
            continue  # a line longer than the limit, of which asyncio drops what it has read
        if not line:
            return
        level, message, fields = read_log_line(line)
        logger.log(level, message, extra={**fields, "plugin": plugin})


def read_log_line(line: bytes) -> tuple[int, str, dict[str, Any]]:
    """Take a host's log line apart; what is no JSON line is a message of its own."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return logging.WARNING, line.decode(errors="replace").rstrip(), {}
    level = logging.getLevelNamesMapping().get(str(fields.pop("level", "")).upper(), logging.INFO)
    message = str(fields.pop("message", ""))
    kept = {name: value for name, value in fields.items() if name not in {"time", "logger", "name"}}
    reserved = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    return level, message, {n: v for n, v in kept.items() if n not in reserved}

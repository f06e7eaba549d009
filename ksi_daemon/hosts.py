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
from ksi_daemon.protocol.events import PING
from ksi_daemon.protocol.wire import DECODE_ERRORS
from ksi_daemon.router import Router
from ksi_daemon.server import Server
from ksi_daemon.settings import DaemonSettings, Layers, LogLevel, Settings, Value
from ksi_daemon.supervisor import Supervisor

log = logging.getLogger(__name__)

STOP_GRACE_S: Final = 3.0
EXIT_GRACE_S: Final = 0.5
MAX_FIRST_RESTARTS: Final = 3  # of a host that dies without a word before it was ever ready
MAX_LOG_LINE_BYTES: Final = 256 * 1024

# What any program needs to run; everything else may hold a secret and must be asked for by name.
PASSED_VARIABLES: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV"}
)


class HostHello(Struct, frozen=True, kw_only=True):
    """Asked by a plugin's host when it has connected: what am I to run, and how?"""


class HostTask(Struct, frozen=True, kw_only=True):
    """What a host is to run, and how."""

    plugin: str
    home: str
    layers: Layers
    log_level: LogLevel
    observer_queue_events: int
    start_timeout_s: float
    stop_timeout_s: float
    stall_warning_s: float


class HostAwait(Struct, frozen=True, kw_only=True):
    """Asked by a host before it starts its plugin: wait until these are ready."""

    requires: tuple[str, ...] = ()


class HostAwaited(Struct, frozen=True, kw_only=True):
    """All that the plugin requires is ready."""


class HostReady(Struct, frozen=True, kw_only=True):
    """Told by a host when its plugin has started, or why it can't be."""

    settings: tuple[Value, ...] = ()
    failure: str | None = None


class HostKnown(Struct, frozen=True, kw_only=True):
    """The daemon has taken note."""


class PluginHost:
    """One plugin's process, started anew whenever it dies."""

    def __init__(self, hosts: "Hosts", loaded: Loaded) -> None:
        self.failure: str | None = None
        self.loaded = loaded
        self.stopping = asyncio.Event()
        self._hosts = hosts
        self._ready = asyncio.Event()
        self._was_ready = False
        self._hangs = False
        self._starts = 0
        self._start_limit = asyncio.timeout(None)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.loaded.name

    def ready(self, report: HostReady) -> None:
        """Take note that the plugin has started, or can't be."""
        self.failure = report.failure
        if report.failure is None:
            self._hosts.router.set_reason(self.name, None)
            self.loaded.set_state("ready")
            self._was_ready = True
        self._ready.set()

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Wait for others, which does not count as the plugin's own time to start."""
        self._start_limit.reschedule(None)
        yield
        self._start_limit.reschedule(self._start_deadline())

    def _start_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._hosts.settings.start_timeout_s

    async def run(self) -> None:
        """Run the process once; raises when it ends before its time and is to be started again."""
        self._ready.clear()
        self.failure = None
        self._hangs = False
        self._starts += 1
        async with self._process() as (process, connection):
            self.loaded.pid = process.pid
            async with asyncio.TaskGroup() as tasks:
                relay = tasks.create_task(relay_log(process, self.name), name="log")
                watch = tasks.create_task(self._watch(connection), name="ping")
                end = tasks.create_task(process.wait(), name="exit")
                stop = tasks.create_task(self.stopping.wait(), name="stop")
                await asyncio.wait({watch, end, stop}, return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    await self._terminate(process)
                elif not end.done():
                    # It has lost its connection or reported a failure, and ends by itself.
                    await asyncio.wait({end, stop}, timeout=0 if self._hangs else EXIT_GRACE_S)
                kill_group(process)
                await asyncio.wait({end, relay}, timeout=EXIT_GRACE_S)  # its last words
                for task in (watch, end, stop, relay):
                    task.cancel()
        self.loaded.pid = None
        if not self.stopping.is_set():
            self._ended(explain_exit(process.returncode))

    def _ended(self, how: str) -> None:
        """Decide what follows the end of a process that was not told to stop."""
        reported, self.failure = self.failure, self.failure or f"its host {how}"
        if not self._was_ready and (reported or self._starts > MAX_FIRST_RESTARTS):
            return  # as in the daemon, a plugin that can't start has failed
        self._hosts.router.set_reason(self.name, "is being restarted")
        self.loaded.set_state("restarting", self.failure)
        raise Unavailable(f"{self.name}: {self.failure}")

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, Connection]]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # whatever lies in the working directory is not to be imported
                "-m",
                "ksi_daemon.host",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=scrubbed(self.loaded.common.environment),
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
            await process.wait()

    async def _watch(self, connection: Connection) -> None:
        """Return when the host has not answered in time, or can't start its plugin."""
        settings = self._hosts.settings
        bound = "start_timeout_s"
        try:
            self._start_limit = asyncio.timeout_at(self._start_deadline())
            async with self._start_limit:
                await self._ready.wait()
            bound = "host_ping_timeout_s"
            while self.failure is None:
                await asyncio.sleep(settings.host_ping_interval_s)
                async with asyncio.timeout(settings.host_ping_timeout_s):
                    await connection.ask(PING, None).result()
        except TimeoutError:
            self.failure = f"did not answer in time and was killed ({bound})"
            self._hangs = True
            log.error("a plugin host hangs", extra={"plugin": self.name, "why": self.failure})
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

    async def run(self, loaded: Loaded) -> None:
        """Keep a plugin's host running until the plugin is to stop.

        Raises:
            Failed: The plugin can't start, or its host was restarted too often.
        """
        assert self.loader is not None
        host = self._hosts[loaded.name] = PluginHost(self, loaded)
        self.router.set_reason(loaded.name, "is starting")
        unit = self._supervisor.start(f"host of {loaded.name}", host.run)
        assert unit.task is not None
        async with asyncio.TaskGroup() as tasks:
            end = tasks.create_task(self.loader.await_end(loaded), name="end")
            await asyncio.wait({unit.task, end}, return_when=asyncio.FIRST_COMPLETED)
            end.cancel()
        if not unit.task.done():
            host.stopping.set()
            if unit.state == "backing_off":
                self._supervisor.stop(unit.name)
            await asyncio.wait({unit.task})
        elif unit.state == "failed":
            raise Failed(f"its host was restarted too often; last: {host.failure}")
        elif host.failure is not None:
            raise Failed(host.failure)

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
            layers=self._all_settings.layers_of(name),
            log_level=current_level(),
            observer_queue_events=self.settings.observer_queue_events,
            start_timeout_s=self.settings.start_timeout_s,
            stop_timeout_s=self.settings.stop_timeout_s,
            stall_warning_s=self.settings.stall_warning_s,
        )

    @event_handler("host:await")
    async def await_required(self, request: HostAwait) -> HostAwaited:
        """Wait until the plugins that a host's plugin requires are ready."""
        host = self._host()
        assert self.loader is not None
        host.loaded.info = msgspec.structs.replace(host.loaded.info, requires=request.requires)
        self.loader.check_cycle(host.name)
        async with host.waiting():
            for name in request.requires:
                await self.loader.await_ready(name)
        return HostAwaited()

    @event_handler("host:ready")
    def ready(self, request: HostReady) -> HostKnown:
        """Take note that a host's plugin has started, or can't be."""
        host = self._host()
        self._all_settings.take(host.name, request.settings)
        host.ready(request)
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


def current_level() -> LogLevel:
    """Return the least severe level that is logged now."""
    name = logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower()
    level: LogLevel = msgspec.convert(name, LogLevel)
    return level


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
    except DECODE_ERRORS:
        return logging.WARNING, line.decode(errors="replace").rstrip(), {}
    level = logging.getLevelNamesMapping().get(str(fields.pop("level", "")).upper(), logging.INFO)
    message = str(fields.pop("message", ""))
    kept = {name: value for name, value in fields.items() if name not in {"time", "logger", "name"}}
    reserved = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    return level, message, {n: v for n, v in kept.items() if n not in reserved}

"""Puts the kernel together: starting → ready → draining → stopped."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from ksi_daemon.bus import LocalBus
from ksi_daemon.connection import Connection
from ksi_daemon.event_system import declarations_of
from ksi_daemon.home import Home
from ksi_daemon.hosts import Hosts
from ksi_daemon.hub import Hub
from ksi_daemon.loader import EntryPoint, Loaded, Loader
from ksi_daemon.logs import configured
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import OWNER, Principal, TokenStore
from ksi_daemon.protocol import Event, Failed, KsiError, Limits
from ksi_daemon.router import Router
from ksi_daemon.server import Server
from ksi_daemon.settings import DaemonSettings, LogSettings, Settings
from ksi_daemon.supervisor import Supervisor
from ksi_daemon.watchdog import Watchdog

log = logging.getLogger(__name__)

DRAINING: Final = "system:draining"  # published, so that who only waits can end
DRAINED: Final = "system:drained"

State = Literal["starting", "ready", "draining", "stopped"]


class _Stopped(Exception):
    """Raised to end the daemon's task group, as asyncio's documentation has it."""


class Daemon:
    """One daemon in one home.

    Args:
        home: ``KSI_HOME`` unless given.
        arguments: ``section.key=value`` strings that win over the file and the environment.
        entry_points: The plugins that are installed, found through their entry points unless given.

    Raises:
        InvalidData: The home can't be used, or the settings are wrong.
    """

    def __init__(
        self,
        home: Path | None = None,
        arguments: Sequence[str] = (),
        *,
        entry_points: Iterable[EntryPoint] | None = None,
    ) -> None:
        self.home = Home(home)
        self.settings = Settings(self.home.root, arguments)
        self.options = self.settings.section("daemon", DaemonSettings)
        self.log_options = self.settings.section("log", LogSettings)
        self.state: State = "starting"
        self.started_at = time.time()
        self.failure: str | None = None
        self.log_handler: logging.Handler | None = None
        self.router: Router
        self.server: Server
        self.loader: Loader
        self.supervisor: Supervisor
        self.tokens: TokenStore
        self.watchdog: Watchdog
        self._entry_points = entry_points
        self._services: dict[type, object] = {}
        self._stop = asyncio.Event()
        self._grace_s = self.options.shutdown_grace_s

    def shutdown(self, grace_s: float | None = None) -> None:
        """Begin to stop; a second call stops at once what still runs."""
        if self._stop.is_set() and self.state == "draining":
            self.server.stop_requests()
        elif grace_s is not None:
            self._grace_s = grace_s
        self._stop.set()

    async def adopt(self, sock: socket.socket, principal: Principal = OWNER) -> Connection:
        """Serve a connected socket of this process; the client's `LocalTransport` calls it."""
        return await self.server.adopt(sock, principal)

    async def run(
        self,
        ready: Callable[[], None] = lambda: None,
        *,
        stopping: Callable[[], None] = lambda: None,
        echo: bool = False,
    ) -> None:
        """Run until `shutdown`.

        Args:
            ready: Called once every plugin has started or failed.
            stopping: Called when the daemon begins to stop.
            echo: Whether the log goes to standard error, too.

        Raises:
            Conflict: Another daemon holds the home or the socket.
            InvalidData: The settings are wrong.
            Failed: An essential plugin failed.
        """
        self.home.prepare()
        lock = self.home.lock()
        try:
            log_file = self.home.log_file
            with configured(
                self.log_options, log_file, echo=echo, packages=self._packages
            ) as self.log_handler:
                try:
                    async with self._kernel():
                        self.supervisor.start("early stop", self._abandon_start)
                        await self._start()
                        if not self._stop.is_set():
                            ready()
                        await self._stop.wait()
                        stopping()
                        await self._drain()
                except ExceptionGroup:
                    log.critical("the daemon has broken", exc_info=True)  # while there is a log
                    raise
        finally:
            os.close(lock)
            self.state = "stopped"
        if self.failure is not None:
            raise Failed(self.failure)

    @contextlib.asynccontextmanager
    async def _kernel(self) -> AsyncIterator[None]:
        """Listen on the socket; on the way out, end every task."""
        options = self.options
        _allow_connections(options.max_connections)
        self.tokens = TokenStore(self.home.tokens_file)
        failure: KsiError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self.supervisor = Supervisor(tasks)
                self.router = Router(
                    self.supervisor,
                    observer_queue_events=options.observer_queue_events,
                    contributor_timeout_s=options.contributor_timeout_s,
                )
                self.server = self._make_server(tasks)
                self.watchdog = Watchdog(options.stall_warning_s, self._packages)
                hosts = Hosts(self.router, self.server, self.supervisor, self.settings, options)
                self.router.add("router", declarations_of(hosts))
                self.loader = hosts.loader = Loader(
                    self.router,
                    self.supervisor,
                    self.settings,
                    self._make_plugin,
                    isolator=hosts,
                    essential=options.essential,
                    start_timeout_s=options.start_timeout_s,
                    stop_timeout_s=options.stop_timeout_s,
                )
                try:
                    await self.server.listen(self.home.socket)
                    self.supervisor.start("heartbeat", self._beat)
                    yield
                except KsiError as error:
                    failure = error  # the group would wrap it
                finally:
                    await self.server.end_requests(options.stop_timeout_s)
                    self.server.close()
                raise _Stopped
        except* _Stopped:
            pass
        if failure is not None:
            raise failure

    def _make_server(self, tasks: asyncio.TaskGroup) -> Server:
        options = self.options
        hub = Hub(
            self.router,
            tasks,
            self.tokens,
            limits=Limits(
                max_frame_bytes=options.max_frame_bytes,
                max_buffer_bytes=options.max_buffer_bytes,
                max_in_flight=options.max_in_flight,
                stream_window_chunks=options.stream_window_chunks,
                reader_timeout_s=options.reader_timeout_s,
            ),
            request_timeout_s=options.request_timeout_s,
            max_subscriptions=options.max_subscriptions,
        )
        return Server(hub, max_connections=options.max_connections)

    def _make_plugin(self, loaded: Loaded) -> Plugin:
        bus = LocalBus(self.router, loaded.name, self.supervisor.tasks)
        return Plugin(
            loaded.name,
            loaded.settings,
            bus,
            self.home.root,
            self.router,
            self.supervisor,
            self.tokens,
            daemon=self,
            services=self._services,
        )

    def _packages(self) -> dict[str, str]:
        return self.loader.packages() if hasattr(self, "loader") else {}  # the log comes first

    async def _beat(self) -> None:
        await self.watchdog.run([self.server.tick])

    async def _start(self) -> None:
        self.loader.load(self.options.plugins, self._entry_points)
        read = [p.name for p in self.loader.plugins.values() if p.settings is not None]
        unread = [name for name in self.loader.plugins if name not in read]
        self.settings.check(["daemon", "log", *read], unread=unread)
        await self.loader.start()
        self.router.starting = False
        self.state = "ready"
        if self.loader.essential_failed.is_set():
            self.fail_essential()
        else:
            self.supervisor.start("essential plugins", self._watch_essential)
        log.info("ready", extra={"socket": str(self.home.socket), "home": str(self.home.root)})

    async def _abandon_start(self) -> None:
        await self._stop.wait()
        await asyncio.sleep(0)  # a task that is cancelled before its first step can't say so
        self.loader.abandon_start()

    @property
    def longest_stop_s(self) -> float:
        """How long a stop takes at most, if every plugin takes all the time that it may."""
        plugins = len(self.loader.plugins)
        return self._grace_s + (plugins + 3) * self.options.stop_timeout_s

    async def _watch_essential(self) -> None:
        await self.loader.essential_failed.wait()
        self.fail_essential()

    def fail_essential(self) -> None:
        """Stop, because a plugin without which the daemon must not run has failed."""
        failed = [
            f"{loaded.name}: {loaded.reason}"
            for loaded in self.loader.plugins.values()
            if loaded.is_missed
        ]
        self.failure = f"an essential plugin failed: {'; '.join(failed)}"
        self.shutdown()

    async def _drain(self) -> None:
        """Take no new work, let what runs finish within its grace, then stop the plugins."""
        self.state = "draining"
        log.info("draining", extra={"in_flight": self.server.in_flight})
        self.server.drain()
        context = self.router.child_of(None, "daemon")
        self.router.notify(Event(DRAINING, {}, context))
        await asyncio.sleep(0)  # what has just come has no task before the next turn of the loop
        running = self.server.running_tasks()
        if running:
            await asyncio.wait(running, timeout=self._grace_s)
            await self.server.end_requests(self.options.stop_timeout_s)
        context = self.router.child_of(None, "daemon")
        try:
            async with asyncio.timeout(self.options.stop_timeout_s):
                await self.router.gather(DRAINED, Event(DRAINED, {}, context))
        except (KsiError, TimeoutError):  # a gate around it: the plugins are stopped all the same
            log.exception("not all could be told that the daemon is drained")
        await self.loader.stop()
        log.info("stopped")


def _allow_connections(count: int) -> None:
    """Raise the soft limit of open files as far as ``count`` connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft < wanted and soft != resource.RLIM_INFINITY:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

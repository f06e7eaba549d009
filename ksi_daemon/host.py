"""The process of one isolated plugin: connects to the daemon, and serves what the plugin declares.

The plugin's code is the same as in the daemon; only its bus is another one.
"""

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from ksi_client import AsyncClient, KsiError, NotFound, SocketTransport
from ksi_client.client import LAGGED
from ksi_daemon import loop as event_loop
from ksi_daemon.bus import converted
from ksi_daemon.event_system import current_context, payload_of
from ksi_daemon.hosts import HostAwait, HostAwaited, HostHello, HostKnown, HostReady, HostTask
from ksi_daemon.installed import GROUP, installed_plugins
from ksi_daemon.listeners import Observer
from ksi_daemon.loader import Loaded, Loader
from ksi_daemon.logs import configured
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Context, Event, Failed, InvalidData
from ksi_daemon.router import Contribution, Router
from ksi_daemon.routes import Route
from ksi_daemon.schemas import schemas_of
from ksi_daemon.settings import LogSettings, Settings
from ksi_daemon.supervisor import Supervisor
from ksi_daemon.watchdog import Watchdog

log = logging.getLogger(__name__)

ORPHAN_GRACE_S: Final = 5.0  # for a plugin's own stop, when the daemon was lost


class RemoteBus:
    """The bus of a plugin in a host: everything goes to the daemon, the plugin's own events too.

    So the daemon's interceptors stand before every event, wherever its handler runs.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: Any = Any,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the answer of an event's handler."""
        result = await self._client.request(
            event, payload_of(data), context=claim(), timeout_s=timeout_s
        )
        return converted(result, result_type)

    async def stream(
        self, event: str, data: Any = None, *, result_type: Any = Any
    ) -> AsyncGenerator[Any]:
        """Yield the chunks that an event is answered with."""
        chunks = self._client.stream(event, payload_of(data), context=claim())
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield converted(chunk, result_type)

    def emit(self, event: str, data: Any = None) -> None:
        """Have an event handled without waiting; a failure is logged."""
        self._client.emit_now(event, payload_of(data), context=claim())

    def publish(self, event: str, data: Any = None) -> None:
        """Show an event to its observers and subscribers; no handler is called."""
        shown = {"event": event, "data": payload_of(data)}
        self._client.emit_now("router:publish", shown, context=claim())

    async def gather(
        self, event: str, data: Any = None, *, timeout_s: float | None = None
    ) -> list[Contribution]:
        """Return what every contributor answers, or why it did not."""
        try:
            answer = await self.request(event, data, timeout_s=timeout_s)
        except NotFound:
            return []
        return msgspec.convert(answer["contributions"], list[Contribution])


def claim() -> dict[str, Any] | None:
    """Say which event the one that is sent now comes from, and in whose name."""
    context = current_context()
    if context is None:
        return None
    fields: dict[str, Any] = msgspec.to_builtins(context)
    fields["parent"] = fields.pop("id")
    fields.pop("origin", None)
    return fields


async def main(handle: int) -> int:
    """Run the plugin that the daemon at the other end of a socket names, until it lets go."""
    connection = socket.socket(fileno=handle)
    threading.Thread(
        target=end_with_daemon, args=(connection.dup(),), name="daemon", daemon=True
    ).start()
    async with AsyncClient(SocketTransport(connection)) as client:
        task = await client.request("host:hello", HostHello(), result_type=HostTask)
        layers = task.layers
        environ = {**os.environ, **layers.variables}
        tables = {task.plugin: layers.table}
        settings = Settings(Path(task.home), layers.arguments, environ, tables)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with configured(LogSettings(level=task.log_level, repeat_window_s=0), None):
            async with asyncio.TaskGroup() as tasks:
                host = Host(client, task, settings, Supervisor(tasks))
                running = tasks.create_task(host.run(stop), name=task.plugin)
                lost = tasks.create_task(client.closed.wait(), name="the daemon is gone")
                await asyncio.wait({running, lost}, return_when=asyncio.FIRST_COMPLETED)
                stop.set()
                failure = await running
                lost.cancel()
                host.end()
    return 0 if failure is None else 1


class Host:
    """The plugin's side: a router of its own behind the connection to the daemon."""

    def __init__(
        self, client: AsyncClient, task: HostTask, settings: Settings, supervisor: Supervisor
    ) -> None:
        self._client = client
        self._task = task
        self._settings = settings
        self._supervisor = supervisor
        self._router = Router(supervisor, observer_queue_events=task.observer_queue_events)
        self._router.starting = False
        self._watchdog = Watchdog(task.stall_warning_s, self._packages)
        self._loader = Loader(
            self._router,
            supervisor,
            settings,
            self._make_plugin,
            start_timeout_s=task.start_timeout_s,
            stop_timeout_s=task.stop_timeout_s,
        )

    def _make_plugin(self, loaded: Loaded) -> Plugin:
        bus = RemoteBus(self._client)
        home = Path(self._task.home)
        return Plugin(loaded.name, loaded.settings, bus, home, self._router, self._supervisor)

    def _packages(self) -> dict[str, str]:
        return self._loader.packages()

    async def run(self, stop: asyncio.Event) -> str | None:
        """Start the plugin, serve it until ``stop``, stop it; return why it failed, if it did."""
        name = self._task.plugin
        self._supervisor.start("heartbeat", lambda: self._watchdog.run([]))
        try:
            await self._start(name)
        except KsiError as error:
            with contextlib.suppress(KsiError):
                failure = HostReady(failure=error.message)
                await self._client.request("host:ready", failure, result_type=HostKnown)
            return error.message
        await stop.wait()
        await self._loader.stop()
        return None

    async def _start(self, name: str) -> None:
        points = [p for p in installed_plugins() if p.name == name]
        self._loader.load([name], points)
        loaded = self._loader.plugins.get(name)
        if loaded is None:
            raise Failed(f"there is no entry point {name!r} in the group {GROUP!r}")
        self._check_interceptors()
        if loaded.state == "loaded":
            self._settings.check([name])
            requires = HostAwait(requires=loaded.info.requires)
            await self._client.request(
                "host:await", requires, result_type=HostAwaited, timeout_s=None
            )
            loaded.info = msgspec.structs.replace(loaded.info, requires=())
            await self._loader.start()
        if loaded.state != "ready":
            raise Failed(loaded.reason or f"is {loaded.state}")
        self._check_interceptors()  # its start may have added some
        await self._export()
        report = HostReady(settings=tuple(self._settings.values()))
        await self._client.request("host:ready", report, result_type=HostKnown)

    def _check_interceptors(self) -> None:
        if self._router.has_interceptors:
            raise InvalidData(
                "it has an interceptor: that must run in the daemon (isolate = false)"
            )

    async def _export(self) -> None:
        """Serve over the connection what the plugin has added to its router."""
        for route in self._router.routes.values():
            if route.name not in self._router.contributors:
                await self._serve(route, contributor=False)
        for members in self._router.contributors.values():
            for route in members:
                await self._serve(route, contributor=True)
        for observer in self._router.observers:
            subscription = await self._client.subscribe(
                observer.pattern, outcomes=observer.outcomes
            )
            relay = relay_events(subscription, observer)
            self._supervisor.start(f"events of {observer.pattern}", relay)

    async def _serve(self, route: Route, *, contributor: bool) -> None:
        async def answer(data: Any, context: Context) -> Any:
            event = Event(route.name, route.convert(data), context)
            return await self._router.dispatch(route, event)

        data_schema, result_schema = schemas_of(route)
        await self._client.serve(
            route.name,
            answer,
            doc=route.doc,
            contributor=contributor,
            order=route.order,
            public=route.public,
            scope=route.scope,
            timeout_s=route.timeout_s,
            data_schema=data_schema,
            result_schema=result_schema,
            streams=route.streams,
        )

    def end(self) -> None:
        """Let go of the tasks that the plugin has left."""
        for name in list(self._supervisor.units):
            self._supervisor.stop(name)


def end_with_daemon(connection: socket.socket) -> None:
    """End this process when its daemon is gone, even if a plugin blocks the loop; in a thread."""
    gone = select.poll()
    gone.register(connection, 0)  # only the loss of the connection
    gone.poll()
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)


def relay_events(events: Any, observer: Observer) -> Callable[[], Any]:
    """Make the task that hands the daemon's events to an observer."""

    async def run() -> None:
        async for event in events:
            if observer.wants(event.name):
                observer.deliver(event)
            elif event.name == LAGGED:
                observer.missed += event.data["missed"]

    return run


if __name__ == "__main__":
    sys.exit(event_loop.run(main(int(sys.argv[1]))))

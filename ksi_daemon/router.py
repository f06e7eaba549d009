"""Dispatches events to handlers, and shows them to whoever listens."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct

from ksi_daemon.event_system import CURRENT, Declaration
from ksi_daemon.listeners import Listener, Observer
from ksi_daemon.protocol import (
    Conflict,
    Context,
    ErrorBody,
    Event,
    Failed,
    KsiError,
    NotFound,
    Outcome,
    Unavailable,
)
from ksi_daemon.protocol.names import did_you_mean, matches, nearest
from ksi_daemon.routes import Call, Route, route_for
from ksi_daemon.supervisor import Supervisor, is_cancelled

log = logging.getLogger(__name__)

MAX_KNOWN_NAMES = 4096
STARTING_RETRY_S = 0.5
OWN = ("system:", "router:", "host:")


class Contribution(Struct, frozen=True, omit_defaults=True):
    """What one of many contributors answered, or why it did not."""

    plugin: str
    duration_s: float
    result: Any = None
    error: ErrorBody | None = None


class Router:
    """The table of who answers what, and the one boundary where errors get their form.

    Args:
        supervisor: Runs the observers' tasks, and what `emit` leaves running.
        observer_queue_events: How many events may wait for one observer.
        contributor_timeout_s: How long `gather` waits for each contributor.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        observer_queue_events: int = 10_000,
        contributor_timeout_s: float = 5.0,
    ) -> None:
        self.routes: dict[str, Route] = {}
        self.contributors: dict[str, list[Route]] = {}
        self.observers: list[Observer] = []
        self.reasons: dict[str, str] = {}  # why a plugin can't answer just now
        self.starting = True
        self.changed: list[Callable[[], None]] = []  # called when the table or a listener changes
        self._supervisor = supervisor
        self._queue_size = observer_queue_events
        self._contributor_timeout_s = contributor_timeout_s
        self._interceptors: list[tuple[int, str, str, Callable[..., Awaitable[Any]]]] = []
        self._listeners: dict[Listener, None] = {}
        self._heard: dict[str, tuple[list[Listener], list[Listener]]] = {}
        self.boot = f"{int(time.time()):08x}{secrets.token_hex(3)}"
        self.new_number: Callable[[], int] = itertools.count(1).__next__

    # -- registration ---------------------------------------------------------------------------

    def add(self, plugin: str, declared: Iterable[tuple[Declaration, Callable[..., Any]]]) -> None:
        """Take on what a plugin declares.

        Raises:
            Conflict: Another handler has one of the names.
            InvalidData: A function has a signature that can't be served.
        """
        # Where a handler's name is taken the plugin fails, and its gates must be known, and shut.
        for declaration, function in sorted(
            declared, key=lambda each: each[0].kind != "interceptor"
        ):
            if declaration.kind == "handler":
                self.add_route(route_for(plugin, declaration, function))
            elif declaration.kind == "contributor":
                self.add_contributor(route_for(plugin, declaration, function))
            elif declaration.kind == "observer":
                self._add_observer(Observer(plugin, declaration, function, self._queue_size))
            else:
                entry = (declaration.order, plugin, declaration.pattern, function)
                self._interceptors.append(entry)
                self._interceptors.sort(key=lambda item: item[:3])
        self._table_changed()

    def add_route(self, route: Route) -> None:
        """Take on a handler, whose name must be free."""
        taken = self.routes.get(route.name)
        if taken is not None:
            raise Conflict(f"{route.name} is answered by {taken.plugin} already")
        self.routes[route.name] = route
        self._table_changed(route)

    def add_contributor(self, route: Route) -> None:
        """Take on one of many that answer an event."""
        name = route.name
        if name not in self.contributors:
            everybody = Route("router", name, lambda event: self._collect(name, event))
            everybody.doc = "Answered by all its contributors: who said what, and who did not."
            self.add_route(everybody)
            self.contributors[name] = []
        self.contributors[name].append(route)
        self.contributors[name].sort(key=lambda each: (each.order, each.plugin))

    def _add_observer(self, observer: Observer) -> None:
        self.observers.append(observer)
        self._supervisor.start(f"{observer.plugin}: observer of {observer.pattern}", observer.run)
        self.listen(observer)

    def remove(self, gone: Callable[[Route], bool]) -> None:
        """Take handlers and contributors out of the table."""
        self.routes = {name: route for name, route in self.routes.items() if not gone(route)}
        for name, members in list(self.contributors.items()):
            members[:] = [route for route in members if not gone(route)]
            if not members:
                del self.contributors[name], self.routes[name]
        self._table_changed()

    def remove_observers(self, plugin: str) -> None:
        """Show a plugin nothing more."""
        for observer in [each for each in self.observers if each.plugin == plugin]:
            self.observers.remove(observer)
            self.unlisten(observer)

    def forget(self, plugin: str) -> None:
        """Undo what `add` did for a plugin; its gates stay, and are shut."""
        self.remove_observers(plugin)
        self.remove(lambda route: route.plugin == plugin)

    def set_reason(self, plugin: str, reason: str | None) -> None:
        """Say why a plugin's events can't be answered just now, or that they can (``None``)."""
        if reason is None:
            self.reasons.pop(plugin, None)
        else:
            self.reasons[plugin] = reason
        self._tell_changed()

    def check_ready(self, plugin: str, name: str) -> None:
        """Refuse an event while the plugin that it needs is not there.

        Raises:
            Unavailable: The plugin is starting, restarting or has failed.
        """
        reason = self.reasons.get(plugin)
        if reason is not None:
            message = f"{name} can't be answered: {plugin} {reason}"
            raise Unavailable(message, retry_after_s=STARTING_RETRY_S)

    def _table_changed(self, *added: Route) -> None:
        """Put their gates around the routes: those that were added, or all."""
        for route in added or self.routes.values():
            route.call = route.base
            for _, plugin, pattern, function in reversed(self._interceptors):
                if matches(route.name, pattern) and not (own(route) and pattern.startswith("*")):
                    route.call = self._intercepted(plugin, function, route.call)
        self._tell_changed()

    def _tell_changed(self) -> None:
        for tell in self.changed:
            tell()

    def _intercepted(
        self, plugin: str, function: Callable[..., Awaitable[Any]], proceed: Call
    ) -> Call:
        async def call(event: Event) -> Any:
            self.check_ready(plugin, event.name)  # a gate that is not there is closed
            return await function(event, proceed)

        return call

    @property
    def has_interceptors(self) -> bool:
        """Whether anything stands around the handling of events."""
        return bool(self._interceptors)

    def is_inline(self, route: Route) -> bool:
        """Say whether a route's function can be called without a task."""
        return route.inline is not None and route.call is route.base

    def resolve(self, name: str) -> Route:
        """Find who answers an event.

        Raises:
            NotFound: Nobody; ``details["nearest"]`` has the names most like it.
            Unavailable: Its plugin is not there just now, or the daemon is still starting.
        """
        route = self.routes.get(name)
        if route is None:
            if self.starting:
                raise Unavailable("the daemon is still starting", retry_after_s=STARTING_RETRY_S)
            hint = did_you_mean(name, self.routes)
            details = {"nearest": nearest(name, self.routes)}
            raise NotFound(f"nothing answers {name!r}{hint}", details=details)
        self.check_ready(route.plugin, name)
        return route

    # -- dispatch -------------------------------------------------------------------------------

    def new_id(self) -> str:
        """Make an event's id: unique among all daemons, and numbered within this one."""
        return f"{self.boot}-{self.new_number():x}"

    def child_of(self, parent: Context | None, origin: str) -> Context:
        """Make the context of an event that code in this process sends."""
        if parent is None:
            return Context(self.new_id(), None, origin)
        return msgspec.structs.replace(parent, id=self.new_id(), parent=parent.id, origin=origin)

    async def dispatch(self, route: Route, event: Event) -> Any:
        """Answer an event: a value, or for a stream an async generator of its chunks.

        Raises:
            KsiError: Whatever went wrong, in the form in which it crosses the wire.
        """
        started = time.perf_counter()
        token = CURRENT.set(event.context)
        try:
            if self._listeners:
                self.notify(event)
            result = await route.call(event)
            if route.streams:
                return self._relay(route, event, started, result)
            route.check(result)
        except BaseException as error:
            raise self._failed(route, event, started, error) from error
        finally:
            CURRENT.reset(token)
        self._ended(route, event, started, None)
        return result

    async def _relay(
        self, route: Route, event: Event, started: float, chunks: AsyncGenerator[Any]
    ) -> AsyncGenerator[Any]:
        """Pass a stream on, each step of it in the context of its event."""
        try:
            async with aclosing(chunks):
                while True:
                    token = CURRENT.set(event.context)
                    try:
                        chunk = route.check(await anext(chunks))
                    except StopAsyncIteration:
                        break
                    finally:
                        CURRENT.reset(token)
                    yield chunk
        except BaseException as error:
            raise self._failed(route, event, started, error) from error
        self._ended(route, event, started, None)

    def _failed(
        self, route: Route, event: Event, started: float, error: BaseException
    ) -> BaseException:
        """Count and show a failure; return it typed, or raise it as it is where it has its form."""
        typed = self.boundary(route, event.context, error)
        stopped = ErrorBody("cancelled", f"{event.name} was cancelled")
        body = typed.body if isinstance(typed, KsiError) else stopped
        self._ended(route, event, started, body)
        if typed is error:
            raise error  # `raise error from error` would make it its own cause
        return typed

    def _ended(self, route: Route, event: Event, started: float, error: ErrorBody | None) -> None:
        """Count how an event ended, and show it to who wants to see outcomes."""
        route.finished(started, error is not None)
        if self._listeners and self.heard(event.name)[1]:
            outcome = Outcome(time.perf_counter() - started, error)
            self.notify(Event(event.name, event.data, event.context, outcome))

    def log_unanswered(self, event: Event, error: KsiError) -> None:
        """Log the failure of an event whose sender wanted no answer."""
        extra = {"event": event.name, "event_id": event.context.id, "error": error.message}
        log.warning("an event without an asker failed", extra=extra)

    def boundary(self, route: Route, context: Context, error: BaseException) -> BaseException:
        """Give an error its form for the wire; what no plugin should raise is logged, once."""
        if isinstance(error, KsiError | GeneratorExit) or is_cancelled(error):
            return error
        log.error(
            "a handler failed",
            exc_info=error,
            extra={"plugin": route.plugin, "event": route.name, "event_id": context.id},
        )
        kind = type(error).__name__
        return Failed(f"{route.name} failed with {kind} in {route.plugin}; see event {context.id}")

    async def _collect(self, name: str, event: Event) -> dict[str, list[Contribution]]:
        return {"contributions": await self._gather(name, event)}

    async def gather(
        self, name: str, event: Event, timeout_s: float | None = None
    ) -> list[Contribution]:
        """Ask every contributor at once; each has ``timeout_s`` to answer.

        Where something stands around the event, each has the ``contributor_timeout_s`` of all.
        """
        everybody = self.routes.get(name)
        if everybody is not None and everybody.call is not everybody.base:
            answers: dict[str, list[Contribution]] = await self.dispatch(everybody, event)
            return answers["contributions"]
        return await self._gather(name, event, timeout_s)

    async def _gather(
        self, name: str, event: Event, timeout_s: float | None = None
    ) -> list[Contribution]:
        limit = self._contributor_timeout_s if timeout_s is None else timeout_s
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(self.contribution(member, event, limit), name=name)
                for member in self.contributors.get(name, ())
            ]
        return [task.result() for task in asked]

    async def contribution(self, member: Route, event: Event, limit: float) -> Contribution:
        """Ask one contributor, which has ``limit`` seconds to answer."""
        started = time.perf_counter()
        result, error = None, None
        try:
            self.check_ready(member.plugin, event.name)
            data = member.convert(event.data)
            async with asyncio.timeout(limit):
                result = await self.dispatch(member, Event(event.name, data, event.context))
        except TimeoutError:
            error = ErrorBody("timeout", f"{member.plugin} did not answer in {limit} s")
        except KsiError as refused:
            error = refused.body
        return Contribution(member.plugin, time.perf_counter() - started, result, error)

    # -- listeners ------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Show a listener every event that it wants, from now on."""
        self._listeners[listener] = None
        self._heard.clear()
        self._tell_changed()

    def unlisten(self, listener: Listener) -> None:
        """Show a listener nothing more."""
        self._listeners.pop(listener, None)
        self._heard.clear()
        self._tell_changed()

    def heard(self, name: str) -> tuple[list[Listener], list[Listener]]:
        """List who sees an event before it is handled, and who afterwards."""
        known = self._heard.get(name)
        if known is None:
            if len(self._heard) >= MAX_KNOWN_NAMES:
                self._heard.clear()
            wanting = [listener for listener in self._listeners if listener.wants(name)]
            known = self._heard[name] = (
                [listener for listener in wanting if not listener.outcomes],
                [listener for listener in wanting if listener.outcomes],
            )
        return known

    def notify(self, event: Event) -> int:
        """Show an event to its listeners and return how many there are."""
        listeners = self.heard(event.name)[event.outcome is not None]
        for listener in listeners:
            listener.deliver(event)
        return len(listeners)


def own(route: Route) -> bool:
    """Say whether an event is the daemon's own: a gate for everything does not stand before those.

    Else a gate that has failed would shut out whoever comes to see why, or to stop the daemon.
    """
    return route.name.startswith(OWN)

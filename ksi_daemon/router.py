"""Dispatches events to handlers, and shows them to whoever listens."""

import asyncio
import inspect
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ksi_daemon.event_system import CURRENT, Declaration, payload_of
from ksi_daemon.protocol import (
    Conflict,
    Context,
    ErrorBody,
    Event,
    Failed,
    InvalidData,
    KsiError,
    NotFound,
    Outcome,
    Unavailable,
)
from ksi_daemon.protocol.names import did_you_mean, matches, nearest
from ksi_daemon.protocol.wire import DECODE_ERRORS, decode_plain
from ksi_daemon.supervisor import Supervisor, is_cancelled

log = logging.getLogger(__name__)

Call = Callable[[Event], Awaitable[Any]]
EMPTY = b"{}"
MAX_KNOWN_NAMES = 4096
RECENT_LATENCIES = 512
STARTING_RETRY_S = 0.5


class Contribution(Struct, frozen=True, omit_defaults=True):
    """What one of many contributors answered, or why it did not."""

    plugin: str
    duration_s: float
    result: Any = None
    error: ErrorBody | None = None


class Listener(Protocol):
    """An observer or a subscription: is shown events, and never holds up who sent them."""

    outcomes: bool

    def wants(self, name: str) -> bool:
        """Say whether events of this name are to be delivered."""

    def deliver(self, event: Event) -> None:
        """Take an event, at once and without failing."""


class Route:
    """One way to answer an event: its types, its function, and how it has fared."""

    __slots__ = (
        "base",
        "call",
        "connected",
        "count",
        "data_schema",
        "data_type",
        "decode",
        "doc",
        "errors",
        "inline",
        "name",
        "order",
        "plugin",
        "public",
        "recent",
        "result_class",
        "result_schema",
        "result_type",
        "streams",
        "timeout_s",
    )

    def __init__(self, plugin: str, name: str, base: Call, *, streams: bool = False) -> None:
        self.plugin = plugin
        self.name = name
        self.base = base
        self.call = base
        self.streams = streams
        self.inline: Callable[[Any], Any] | None = None
        self.connected = False
        self.public = False
        self.timeout_s: float | None = None
        self.order = 0
        self.doc = ""
        self.decode: Callable[[bytes | Raw], Any] = decode_plain
        self.data_type: Any = Any
        self.result_type: Any = Any
        self.result_class: type | None = None
        self.data_schema: dict[str, Any] | None = None
        self.result_schema: dict[str, Any] | None = None
        self.count = 0
        self.errors = 0
        self.recent: deque[float] = deque(maxlen=RECENT_LATENCIES)

    def read(self, data: Raw | UnsetType) -> Any:
        """Decode a payload that came over the wire.

        Raises:
            InvalidData: It is not what the handler declares; ``details["path"]`` is the field.
        """
        try:
            return self.decode(EMPTY if data is UNSET else data)
        except DECODE_ERRORS as error:
            raise invalid(self.name, error) from error

    def convert(self, data: Any) -> Any:
        """Take a payload that an object in this process sent."""
        if self.data_type is Any:
            return payload_of(data)
        if isinstance(self.data_type, type) and isinstance(data, self.data_type):
            return data
        try:
            return msgspec.convert({} if data is None else payload_of(data), self.data_type)
        except msgspec.ValidationError as error:
            raise invalid(self.name, error) from error

    def check(self, result: Any) -> Any:
        """Return a handler's result unchanged, if it is what its annotation says."""
        if result.__class__ is self.result_class or self.result_type is Any:
            return result
        try:
            if self.result_class is None:
                msgspec.convert(payload_of(result), self.result_type)
            elif not isinstance(result, self.result_class):
                raise TypeError
        except (TypeError, msgspec.ValidationError) as error:
            kind, expected = type(result).__name__, self.result_type
            name = getattr(expected, "__name__", str(expected))
            raise Failed(f"{self.name} returned {kind} instead of {name}") from error
        return result

    def finished(self, started: float, failed: bool) -> None:
        """Count one answer; ``started`` is a `time.perf_counter` reading."""
        self.count += 1
        self.errors += failed
        self.recent.append(time.perf_counter() - started)


def invalid(name: str, error: Exception) -> InvalidData:
    """Make the error for a payload; msgspec puts the field's path behind its message."""
    message, _, path = str(error).partition(" - at `")
    details = {"path": path.rstrip("`")} if path else None
    return InvalidData(
        f"{name}: {message}{' at ' + path.rstrip('`') if path else ''}", details=details
    )


def route_for(plugin: str, declaration: Declaration, function: Callable[..., Any]) -> Route:
    """Make a route of a decorated function.

    Raises:
        InvalidData: Its signature can't be served.
    """
    parameters = [p for p in inspect.signature(function).parameters if p != "self"]
    if len(parameters) > 1:
        raise InvalidData(f"{declaration.pattern}: a handler takes the payload, or nothing")
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise InvalidData(f"{declaration.pattern}: {error} in its annotations") from error
    streams = inspect.isasyncgenfunction(function)
    take = function if parameters else lambda _: function()
    route = Route(plugin, declaration.pattern, _base(function, take, streams), streams=streams)
    if not streams and not inspect.iscoroutinefunction(function):
        route.inline = take
    route.public, route.timeout_s = declaration.public, declaration.timeout_s
    route.order = declaration.order
    route.doc = inspect.getdoc(function) or ""
    data_type = hints.get(parameters[0], Any) if parameters else Any
    if data_type not in (Any, dict):
        route.data_type = data_type
        route.decode = msgspec.json.Decoder(data_type).decode
    result_type = hints.get("return", Any)
    route.result_type = (get_args(result_type) or (Any,))[0] if streams else result_type
    if isinstance(route.result_type, type):
        route.result_class = route.result_type
    return route


def _base(function: Callable[..., Any], take: Callable[[Any], Any], streams: bool) -> Call:
    async def answer(event: Event) -> Any:
        return take(event.data)

    async def await_answer(event: Event) -> Any:
        return await take(event.data)

    return await_answer if inspect.iscoroutinefunction(function) and not streams else answer


class Observer:
    """A plugin's observer: a bounded queue and the task that empties it."""

    def __init__(
        self, plugin: str, declaration: Declaration, function: Callable[[Event], Any], size: int
    ) -> None:
        self.plugin = plugin
        self.pattern = declaration.pattern
        self.outcomes = declaration.outcomes
        self.missed = 0
        self._function = function
        self._queue: asyncio.Queue[Event] = asyncio.Queue(size)

    @property
    def depth(self) -> int:
        """How many events wait."""
        return self._queue.qsize()

    def wants(self, name: str) -> bool:
        """Say whether the event is one of those it observes."""
        return matches(name, self.pattern)

    def deliver(self, event: Event) -> None:
        """Queue an event; one too many is dropped and counted."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.missed += 1
            log.warning("an observer is too slow and misses events", extra={"plugin": self.plugin})

    async def run(self) -> None:
        """Hand the events to the function, one after the other."""
        while True:
            event = await self._queue.get()
            CURRENT.set(event.context)
            try:
                seen = self._function(event)
                if inspect.isawaitable(seen):
                    await seen
            except BaseException as error:
                if is_cancelled(error):
                    raise
                log.exception("an observer failed", extra={"plugin": self.plugin})


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
        self.changed: list[Callable[[], None]] = []  # called whenever the table changes
        self._supervisor = supervisor
        self._queue_size = observer_queue_events
        self._contributor_timeout_s = contributor_timeout_s
        self._interceptors: list[tuple[int, str, str, Callable[..., Awaitable[Any]]]] = []
        self._listeners: dict[Listener, None] = {}
        self._heard: dict[str, tuple[list[Listener], list[Listener]]] = {}
        self._boot = f"{int(time.time()):08x}{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)

    # -- registration ---------------------------------------------------------------------------

    def add(self, plugin: str, declared: Iterable[tuple[Declaration, Callable[..., Any]]]) -> None:
        """Take on what a plugin declares.

        Raises:
            Conflict: Another handler has one of the names.
            InvalidData: A function has a signature that can't be served.
        """
        for declaration, function in declared:
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
        self._table_changed()

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
        for members in self.contributors.values():
            members[:] = [route for route in members if not gone(route)]
        self.routes = {name: route for name, route in self.routes.items() if not gone(route)}
        self._table_changed()

    def set_reason(self, plugin: str, reason: str | None) -> None:
        """Say why a plugin's events can't be answered just now, or that they can (``None``)."""
        if reason is None:
            self.reasons.pop(plugin, None)
        else:
            self.reasons[plugin] = reason
        self._table_changed()

    def check_ready(self, plugin: str, name: str) -> None:
        """Refuse an event while the plugin that it needs is not there.

        Raises:
            Unavailable: The plugin is starting, restarting or has failed.
        """
        reason = self.reasons.get(plugin)
        if reason is not None:
            message = f"{name} can't be answered: {plugin} {reason}"
            raise Unavailable(message, retry_after_s=STARTING_RETRY_S)

    def _table_changed(self) -> None:
        for route in self.routes.values():
            route.call = route.base
            for _, plugin, pattern, function in reversed(self._interceptors):
                if matches(route.name, pattern):
                    route.call = self._intercepted(plugin, function, route.call)
        for notify in self.changed:
            notify()

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
        """Make an event's id; ids of one daemon sort in the order in which they were made."""
        return f"{self._boot}-{next(self._numbers):x}"

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
            self.notify(event)
            result = await route.call(event)
            if route.streams:
                return self._relay(route, event, started, result)
            route.check(result)
        except BaseException as error:
            raise self._ended(route, event, started, error) from error
        finally:
            CURRENT.reset(token)
        self._ended(route, event, started, None)
        return result

    async def _relay(
        self, route: Route, event: Event, started: float, chunks: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Pass a stream on, each step of it in the context of its event."""
        async with aclosing(chunks):  # type: ignore[type-var]  # a generator, by the route's kind
            while True:
                token = CURRENT.set(event.context)
                try:
                    chunk = route.check(await anext(chunks))
                except StopAsyncIteration:
                    break
                except BaseException as error:
                    raise self._ended(route, event, started, error) from error
                finally:
                    CURRENT.reset(token)
                yield chunk
        self._ended(route, event, started, None)

    def _ended(
        self, route: Route, event: Event, started: float, error: BaseException | None
    ) -> BaseException:
        """Count, show and return how an event ended: cancellation as it is, the rest typed."""
        route.finished(started, error is not None)
        typed = None if error is None else self.boundary(route, event.context, error)
        if self.heard(event.name)[1]:
            body = typed.body if isinstance(typed, KsiError) else None
            if isinstance(typed, asyncio.CancelledError):
                body = ErrorBody("cancelled", f"{event.name} was cancelled")
            outcome = Outcome(time.perf_counter() - started, body)
            self.notify(Event(event.name, event.data, event.context, outcome))
        return typed or Failed("")

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
        return {"contributions": await self.gather(name, event)}

    async def gather(
        self, name: str, event: Event, timeout_s: float | None = None
    ) -> list[Contribution]:
        """Ask every contributor at once; each has ``timeout_s`` to answer."""
        limit = self._contributor_timeout_s if timeout_s is None else timeout_s
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(self._contribution(member, event, limit), name=name)
                for member in self.contributors.get(name, ())
            ]
        return [task.result() for task in asked]

    async def _contribution(self, member: Route, event: Event, limit: float) -> Contribution:
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

    def unlisten(self, listener: Listener) -> None:
        """Show a listener nothing more."""
        self._listeners.pop(listener, None)
        self._heard.clear()

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

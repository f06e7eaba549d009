"""One way to answer an event, made of a decorated function or of what a connection serves."""

import inspect
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import UnionType
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ksi_daemon.event_system import Declaration, payload_of
from ksi_daemon.protocol import Event, Failed, InvalidData
from ksi_daemon.protocol.wire import DECODE_ERRORS, decode_plain

log = logging.getLogger(__name__)

Call = Callable[[Event], Awaitable[Any]]
EMPTY = b"{}"
RECENT_LATENCIES = 512


class Route:
    """One way to answer an event: its types, its function, and how it has fared."""

    def __init__(self, plugin: str, name: str, base: Call, *, streams: bool = False) -> None:
        self.plugin = plugin
        self.name = name
        self.base = self.call = base
        self.streams = streams
        self.inline: Callable[[Any], Any] | None = None
        self.connected = self.public = False
        self.on_the_spot = False  # whether it needs no task, and nobody listens
        self.scope: str | None = None
        self.timeout_s: float | None = None
        self.order = 0
        self.doc = ""
        self.decode: Callable[[bytes | Raw], Any] = decode_plain
        self.data_type: Any = Any
        self.result_type: Any = Any
        self.result_class: type | tuple[type, ...] | None = None
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
        except Exception as error:
            log.exception("a payload's class failed", extra={"event": self.name})
            raise Failed(f"{self.name}: its payload failed with {type(error).__name__}") from error

    def convert(self, data: Any) -> Any:
        """Take a payload that an object in this process sent."""
        if self.data_type is Any:
            return payload_of(data)
        if isinstance(self.data_type, type) and isinstance(data, self.data_type):
            return data
        try:
            plain = {} if data is None else payload_of(data)
            return msgspec.convert(plain, self.data_type, str_keys=True)  # as it reads JSON
        except msgspec.ValidationError as error:
            raise invalid(self.name, error) from error

    def check(self, result: Any) -> Any:
        """Return a handler's result unchanged, if it is what its annotation says."""
        if result.__class__ is self.result_class or self.result_type is Any:
            return result
        try:
            if self.result_class is None:
                msgspec.convert(payload_of(result), self.result_type, str_keys=True)
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
    route.inline = None if streams or inspect.iscoroutinefunction(function) else take
    route.public, route.scope = declaration.public, declaration.scope
    route.timeout_s = declaration.timeout_s
    route.order, route.doc = declaration.order, inspect.getdoc(function) or ""
    data_type = hints.get(parameters[0], Any) if parameters else Any
    if data_type not in (Any, dict):
        route.data_type, route.decode = data_type, msgspec.json.Decoder(data_type).decode
    kind = hints.get("return", Any)
    kind = route.result_type = (get_args(kind) or (Any,))[0] if streams else kind
    if isinstance(kind, type):
        route.result_class = kind
    elif isinstance(kind, UnionType) and all(type(each) is type(Struct) for each in get_args(kind)):
        route.result_class = get_args(kind)  # or each chunk of a stream would be converted
    return route


def _base(function: Callable[..., Any], take: Callable[[Any], Any], streams: bool) -> Call:
    async def answer(event: Event) -> Any:
        return take(event.data)

    def pass_on(event: Event) -> Any:
        return take(event.data)  # a coroutine, which the caller awaits

    return pass_on if inspect.iscoroutinefunction(function) and not streams else answer

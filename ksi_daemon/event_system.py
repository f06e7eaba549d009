"""What a plugin imports: the four decorators, and the context of the event being handled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import Context
from ksi_daemon.protocol.names import check_name, check_pattern

__all__ = [
    "Declaration",
    "acting_as",
    "current_context",
    "declarations_of",
    "event_contributor",
    "event_handler",
    "event_interceptor",
    "event_observer",
]

Function = TypeVar("Function", bound=Callable[..., Any])


class Sender:
    """Makes the contexts of what one connection, or one plugin, sends.

    On the hot path an event is stamped with its sender and its number alone; its context is made
    of these when somebody asks for it, which for most events nobody does.
    """

    __slots__ = ("_boot", "_fields")

    def __init__(self, boot: str, *fields: str | None) -> None:
        self._boot = boot
        self._fields = fields  # a context's fields from origin on

    def context(self, number: int) -> Context:
        """Make the context of the event with that number; always the same one."""
        return Context(f"{self._boot}-{number:x}", None, *self._fields)  # type: ignore[arg-type]  # what is stamped are its fields, in order


# Set by the kernel; everybody else asks current_context().
CURRENT: Final[ContextVar[Context | tuple[Sender, int] | None]] = ContextVar(
    "ksi_context", default=None
)
_MARK: Final = "__ksi_events__"


class Declaration(Struct, frozen=True, kw_only=True):
    """What a decorator says of its function; the router reads it when the plugin is loaded."""

    kind: Literal["handler", "observer", "interceptor", "contributor"]
    pattern: str
    public: bool = False
    scope: str | None = None
    timeout_s: float | None = None
    order: int = 0
    outcomes: bool = False


def event_handler(
    name: str,
    *,
    public: bool = False,
    scope: str | None = None,
    timeout_s: float | None = None,
) -> Callable[[Function], Function]:
    """Answer the event ``name``; there is one handler for a name.

    The function takes the payload, or nothing. Annotate it with a `msgspec.Struct` and it is
    decoded and checked; without an annotation it is plain data. A plain function runs inline and
    must return within microseconds, a coroutine function may wait, an async generator function
    answers with a stream.

    Args:
        name: ``namespace:verb``, in two parts or more.
        public: Whether any connection may send it, whatever its grants.
        scope: What a key from outside this machine must hold to send it, such as ``memory:read``;
            without one no key reaches it.
        timeout_s: How long an answer may take; the daemon's ``request_timeout_s`` unless given,
            0 for no limit. Streams have none unless it is given.
    """
    declaration = Declaration(
        kind="handler",
        pattern=check_name(name),
        public=public,
        scope=None if scope is None else check_name(scope),
        timeout_s=timeout_s,
    )
    return _marking(declaration)


def event_observer(pattern: str, *, outcomes: bool = False) -> Callable[[Function], Function]:
    """See the events whose name matches a glob, from a bounded queue, after the sender has gone on.

    The function takes an `Event`. With ``outcomes`` it sees them once they were handled, and
    ``event.outcome`` says how that went.
    """
    declaration = Declaration(kind="observer", pattern=check_pattern(pattern), outcomes=outcomes)
    return _marking(declaration)


def event_interceptor(pattern: str, *, order: int = 0) -> Callable[[Function], Function]:
    """Stand around the handling of the events whose name matches a glob.

    The coroutine function takes an `Event` and ``proceed``, and returns what ``await
    proceed(event)`` returned, something else, or raises: then the event fails. For a stream it
    returns an async generator. The lowest ``order`` stands outermost. While the interceptor's
    plugin is not ready, the events are refused; so a pattern that begins with ``*`` leaves out the
    daemon's own, ``system:*`` and the like, which only a pattern that names them reaches.
    """
    declaration = Declaration(kind="interceptor", pattern=check_pattern(pattern), order=order)
    return _marking(declaration)


def event_contributor(name: str, *, order: int = 0) -> Callable[[Function], Function]:
    """Be one of many that answer ``name``; the caller gets all answers, the lowest order first."""
    declaration = Declaration(kind="contributor", pattern=check_name(name), order=order)
    return _marking(declaration)


def _marking(declaration: Declaration) -> Callable[[Function], Function]:
    def mark(function: Function) -> Function:
        marks: tuple[Declaration, ...] = getattr(function, _MARK, ())
        setattr(function, _MARK, (*marks, declaration))
        return function

    return mark


def declarations_of(owner: object) -> Iterator[tuple[Declaration, Callable[..., Any]]]:
    """Yield what the functions of a module or class, or the methods of an object, declare."""
    looked_at = owner if isinstance(owner, ModuleType | type) else type(owner)
    for name in vars(looked_at) if isinstance(looked_at, ModuleType) else dir(looked_at):
        declared = getattr(getattr(looked_at, name, None), _MARK, ())
        for declaration in declared if isinstance(declared, tuple) else ():
            yield declaration, getattr(owner, name)


def current_context() -> Context | None:
    """Return the context of the event that is being handled here, or ``None`` outside of one."""
    current = CURRENT.get()
    return current[0].context(current[1]) if isinstance(current, tuple) else current


@contextmanager
def acting_as(context: Context) -> Iterator[None]:
    """Emit in the name of ``context``: for work that goes on after its event was answered."""
    token = CURRENT.set(context)
    try:
        yield
    finally:
        CURRENT.reset(token)


def payload_of(data: Any) -> Any:
    """Return plain data of whatever a payload is."""
    return msgspec.to_builtins(data) if isinstance(data, Struct) else data

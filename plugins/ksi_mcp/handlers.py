"""Answers what programs that connect ask of the daemon: ``mcp:call`` and ``mcp:whoami``."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from uuid import uuid4

import msgspec

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import current_context, event_handler, event_observer
from ksi_daemon.protocol import Context, Event, KsiError
from ksi_mcp import events as e
from ksi_mcp.exchange import Exchange, exchanging
from ksi_mcp.settings import McpSettings
from ksi_tools.api import scopes_of
from ksi_tools.events import ToolCall, ToolCalled, ToolProgressed

MAX_WAITING: Final = 100  # messages of one call that nobody has read yet; what is more is left out
MAX_MESSAGE_CHARS: Final = 1000

# Within a call whose caller wants to see what is logged: where that goes.
_WATCHED: Final[ContextVar["Watched | None"]] = ContextVar("ksi_mcp_watched", default=None)


class Watched:
    """What is to be told of one call.

    Args:
        logs: Whether lines of the log are.
    """

    def __init__(self, *, logs: bool) -> None:
        self.logs = logs
        self._told: list[e.McpCalling] = []
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, told: e.McpCalling) -> None:
        """Tell something, from any thread; it is left out where too much waits."""
        self._loop.call_soon_threadsafe(self._put, told)

    def _put(self, told: e.McpCalling) -> None:
        if len(self._told) < MAX_WAITING or told.called is not None:
            self._told.append(told)
            self._news.set()

    def rest(self) -> tuple[e.McpCalling, ...]:
        """Return what is there, without waiting."""
        told, self._told = self._told, []
        return tuple(told)

    def log(self, level: e.Level, data: Any) -> None:
        """Tell what a tool says by itself."""
        self.put(e.McpCalling(level=level, data=data))

    def wake(self) -> None:
        """Let whoever reads look, since nothing will come any more."""
        self._news.set()

    async def take(self) -> list[e.McpCalling]:
        """Wait for something to be told, and return it all."""
        await self._news.wait()
        self._news.clear()
        told, self._told = self._told, []
        return told


class CallLog(logging.Handler):
    """Hands the lines that are logged while a call is made to whoever made it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a line, its message alone: fields and traces are for the daemon's own log."""
        watched = _WATCHED.get()
        if watched is None or not watched.logs:
            return
        level: e.Level = "warning"
        if record.levelno >= logging.ERROR:
            level = "critical" if record.levelno >= logging.CRITICAL else "error"
        message = record.getMessage()[:MAX_MESSAGE_CHARS]
        watched.put(e.McpCalling(level=level, data=message))


@contextmanager
def logs_are_shown() -> Iterator[None]:
    """Have calls see what is logged while they are made."""
    handler, root = CallLog(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


class Handlers:
    """What programs that connect ask.

    Args:
        settings: The section ``[mcp]``.
        bus: Asks, in the name of whoever does.
    """

    def __init__(self, settings: McpSettings, bus: Bus) -> None:
        self._serving = msgspec.convert(settings, e.McpServing, from_attributes=True)
        self._bus = bus
        self._calls: dict[tuple[str, str], Watched] = {}

    @event_handler("mcp:whoami", public=True)
    async def whoami(self, request: e.McpWhoami) -> e.McpYou:
        """Tell as whom the daemon sees a connection, and what it may do."""
        context = _context()
        scopes = await scopes_of(self._bus, context)
        return e.McpYou(
            principal=context.principal or "owner",
            tenant=context.tenant,
            user=context.user,
            scopes=scopes.globs,
            serving=self._serving,
        )

    @event_handler("mcp:call", scope="tools:write", timeout_s=0)
    async def call(self, request: e.McpCall) -> AsyncIterator[e.McpCalling]:
        """Call a tool, and tell of its progress until it has ended."""
        call_id = request.call_id or uuid4().hex
        ask = ToolCall(name=request.name, arguments=request.arguments, call_id=call_id)
        watched, key = Watched(logs=request.logs), (_context().tenant, call_id)
        exchange = Exchange(request.capabilities, request.answers, request.state, watched.log)
        self._calls.setdefault(key, watched)  # whoever asks for the same call later has no part
        is_closed = False
        try:
            async with asyncio.TaskGroup() as tasks:
                called = tasks.create_task(self._called(ask, watched, exchange), name="mcp call")
                try:
                    while not called.done():
                        for told in await watched.take():
                            yield told
                    for told in watched.rest():
                        yield told
                except GeneratorExit:  # a task group would wrap it
                    is_closed = True
                finally:
                    called.cancel()
        finally:
            if self._calls.get(key) is watched:
                del self._calls[key]
        if is_closed:
            return
        yield _ended(called.result(), exchange)

    @event_handler("mcp:call_quietly", scope="tools:write", timeout_s=0)
    async def call_quietly(self, request: e.McpCall) -> e.McpCalled:
        """Call a tool as ``mcp:call`` does, and tell all at its end: one answer costs less."""
        ask = ToolCall(
            name=request.name, arguments=request.arguments, call_id=request.call_id or uuid4().hex
        )
        watched = Watched(logs=request.logs)
        exchange = Exchange(request.capabilities, request.answers, request.state, watched.log)
        called = await self._called(ask, watched, exchange)
        return e.McpCalled(last=_ended(called, exchange), said=watched.rest())

    async def _called(
        self, ask: ToolCall, watched: Watched, exchange: Exchange
    ) -> ToolCalled | KsiError:
        token = _WATCHED.set(watched)
        try:
            with exchanging(exchange):
                called: ToolCalled = await self._bus.request(
                    "tool:call", ask, result_type=ToolCalled
                )
        except KsiError as error:
            return error  # and not raised: a task group would wrap it
        finally:
            _WATCHED.reset(token)
            watched.wake()
        return called

    @event_observer("tool:progress")
    def progress(self, event: Event) -> None:
        """Hand on what a tool says of its progress."""
        told = msgspec.convert(event.data, ToolProgressed, from_attributes=True)
        watched = self._calls.get((event.context.tenant, told.call_id))
        if watched is not None:
            watched.put(e.McpCalling(message=told.message, done=told.done, total=told.total))


def _ended(called: ToolCalled | KsiError, exchange: Exchange) -> e.McpCalling:
    """Return the last that is told of a call: what came of it, or what the tool asks.

    Raises:
        KsiError: The call itself was wrong.
    """
    if isinstance(called, KsiError):
        raise called
    asks = exchange.asked(called.content)
    if asks is None:
        return e.McpCalling(called=called)
    return e.McpCalling(asks=asks.requests, state=asks.state)


def _context() -> Context:
    context = current_context()
    assert context is not None  # an event is being handled
    return context

"""How a plugin sends events: the same calls whether it runs in the daemon or in a host."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Protocol

import msgspec

from ksi_daemon.event_system import current_context, payload_of
from ksi_daemon.protocol import Busy, Context, Event, KsiError, TimedOut
from ksi_daemon.router import Contribution, Router
from ksi_daemon.routes import Route

MAX_EMITTED: Final = 10_000


class Bus(Protocol):
    """Sends events in the context of the event that is being handled.

    Payloads may be Structs or plain data. In the daemon a handler's own objects come back, from a
    host plain data does; give ``result_type`` where the code must not care.
    """

    async def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: Any = Any,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the answer of an event's handler; a `KsiError` where it has none."""

    def stream(
        self, event: str, data: Any = None, *, result_type: Any = Any
    ) -> AsyncGenerator[Any]:
        """Yield the chunks that an event is answered with."""

    def emit(self, event: str, data: Any = None) -> None:
        """Have an event handled without waiting; a failure is logged."""

    def publish(self, event: str, data: Any = None) -> None:
        """Show an event to its observers and subscribers; no handler is called."""

    async def gather(
        self, event: str, data: Any = None, *, timeout_s: float | None = None
    ) -> list[Contribution]:
        """Return what every contributor answers, or why it did not; each has ``timeout_s``."""


class LocalBus:
    """The bus of a plugin that runs in the daemon."""

    def __init__(self, router: Router, origin: str, tasks: asyncio.TaskGroup) -> None:
        self._router = router
        self._origin = origin
        self._tasks = tasks
        self._emitted = 0

    def _context(self) -> Context:
        return self._router.child_of(current_context(), self._origin)

    def _prepare(self, name: str, data: Any) -> tuple[Route, Event]:
        route = self._router.resolve(name)
        return route, Event(name, route.convert(data), self._context())

    async def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: Any = Any,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the answer of an event's handler."""
        route, prepared = self._prepare(event, data)
        limit = timeout_s or route.timeout_s or None
        try:
            async with asyncio.timeout(limit):
                result = await self._router.dispatch(route, prepared)
        except TimeoutError as error:
            raise TimedOut(f"{event} was not answered in {limit} s") from error
        return converted(result, result_type)

    async def stream(
        self, event: str, data: Any = None, *, result_type: Any = Any
    ) -> AsyncGenerator[Any]:
        """Yield the chunks that an event is answered with."""
        route, prepared = self._prepare(event, data)
        async with aclosing(await self._router.dispatch(route, prepared)) as chunks:
            async for chunk in chunks:
                yield converted(chunk, result_type)

    def emit(self, event: str, data: Any = None) -> None:
        """Have an event handled without waiting; a failure is logged."""
        try:
            route, prepared = self._prepare(event, data)
            if self._emitted >= MAX_EMITTED:
                raise Busy(f"{MAX_EMITTED} emitted events of {self._origin} are being handled")
        except KsiError as error:
            self._router.log_unanswered(Event(event, data, self._context()), error)
            return
        self._emitted += 1
        self._tasks.create_task(self._quietly(route, prepared), name=event)

    async def _quietly(self, route: Route, event: Event) -> None:
        try:
            result = await self._router.dispatch(route, event)
            if route.streams:
                async with aclosing(result):
                    async for _ in result:
                        pass
        except KsiError as error:
            self._router.log_unanswered(event, error)
        finally:
            self._emitted -= 1

    def publish(self, event: str, data: Any = None) -> None:
        """Show an event to its observers and subscribers; no handler is called."""
        self._router.notify(Event(event, data, self._context()))

    async def gather(
        self, event: str, data: Any = None, *, timeout_s: float | None = None
    ) -> list[Contribution]:
        """Return what every contributor answers, or why it did not."""
        return await self._router.gather(event, Event(event, data, self._context()), timeout_s)


def converted(result: Any, kind: Any) -> Any:
    """Return a result as ``kind``: an object of that class as it is, anything else converted.

    Raises:
        msgspec.ValidationError: It is something else.
    """
    if kind is Any or (isinstance(kind, type) and isinstance(result, kind)):
        return result
    return msgspec.convert(payload_of(result), kind, str_keys=True)

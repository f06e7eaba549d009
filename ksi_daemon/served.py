"""Events that a connection answers: the daemon asks the peer, and the peer answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from ksi_daemon.hub import Hub
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Context, Event, Failed, TimedOut, Unavailable
from ksi_daemon.protocol.events import RouterServe
from ksi_daemon.protocol.peer import Inbound, Peer
from ksi_daemon.protocol.wire import DECODE_ERRORS, decode_plain
from ksi_daemon.routes import Route


class Served:
    """What one connection serves.

    Attributes:
        causes: The contexts of the events that the peer is answering now, by their ids; in these
            it may send events of its own.
    """

    def __init__(self, peer: Peer, hub: Hub) -> None:
        self.causes: dict[str, Context] = {}
        self._peer = peer
        self._hub = hub
        self._plugin: str | None = None
        self._routes: set[Route] = set()

    def __len__(self) -> int:
        return len(self._routes)

    def add(self, request: RouterServe, principal: Principal) -> None:
        """Have the peer answer an event from now on.

        Raises:
            Conflict: Somebody else answers it.
        """
        router = self._hub.router
        self._plugin = principal.plugin
        plugin = principal.plugin or f"client {principal.name}"

        async def answer(event: Event) -> Any:
            return self._stream(route, event) if route.streams else await self._ask(route, event)

        route = Route(plugin, request.event, answer, streams=request.streams)
        route.timeout_s, route.doc, route.order = request.timeout_s, request.doc, request.order
        if principal.plugin is not None:
            route.public, route.scope = request.public, request.scope
        route.data_schema, route.result_schema = request.data_schema, request.result_schema
        if plugin in router.reasons:  # the plugin's last process served it
            router.remove(lambda old: (old.plugin, old.name) == (plugin, route.name))
        if request.contributor:
            router.add_contributor(route)
        else:
            router.add_route(route)
        self._routes.add(route)

    def end(self) -> None:
        """Serve nothing more; what a plugin's host served will be served again by its next one."""
        routes, self._routes = self._routes, set()
        router = self._hub.router
        if routes and self._plugin is not None:
            router.set_reason(self._plugin, "is being restarted")
        elif routes:
            router.remove(routes.__contains__)

    async def _ask(self, route: Route, event: Event) -> Any:
        timeout_s = self._hub.timeout_of(route)
        try:
            async with asyncio.timeout(timeout_s or None):
                await self._peer.drained()  # what waits here is bounded, and can be cancelled
                with self._asked(event) as inbound:
                    return decode_plain(await inbound.result())
        except TimeoutError as error:
            raise TimedOut(f"{event.name} was not answered in {timeout_s} s") from error
        except DECODE_ERRORS as error:
            raise Failed(f"{event.name} was answered with broken JSON: {error}") from error

    async def _stream(self, route: Route, event: Event) -> AsyncGenerator[Any]:
        await self._peer.drained()
        with self._asked(event) as inbound:
            async with contextlib.aclosing(inbound):
                async for chunk in inbound:
                    yield decode_plain(chunk)

    @contextlib.contextmanager
    def _asked(self, event: Event) -> Iterator[Inbound]:
        """Send the event to the peer, which may send events in its context meanwhile."""
        self.causes[event.context.id] = event.context
        try:
            yield self._peer.ask(event.name, event.data, event.context)
        except Unavailable as error:
            if self._peer.connected:
                raise  # the peer's own answer
            gone = f"whoever answers {event.name} has gone away"
            raise Unavailable(gone, retry_after_s=0.5) from error
        finally:
            self.causes.pop(event.context.id, None)  # two contributors answer one event

"""The application: what the routes share, and the server around them."""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef
from msgspec import UNSET, UnsetType

from ksi_client import AsyncClient, Subscription
from ksi_client.client import RECONNECTED
from ksi_client.transports import Transport
from ksi_daemon.protocol import Conflict, KsiError, NotFound, Unavailable
from ksi_http.agui import room as agui
from ksi_http.events import (
    HttpAuthenticate,
    HttpCaller,
    HttpConfigure,
    HttpConfigured,
    HttpConnect,
    HttpConnected,
    HttpKeyRevoked,
)
from ksi_http.keys import Presented
from ksi_http.openai import room as openai
from ksi_http.rest import room as rest
from ksi_http.settings import HttpSettings
from ksi_http.sidecar import errors, generated, guards, openapi, probes
from ksi_http.sidecar.callers import Caller, Callers
from ksi_http.sidecar.chats import Chats
from ksi_http.sidecar.connection import ClientConnection
from ksi_http.sidecar.connections import Connections
from ksi_http.sidecar.exposed import Exposed
from ksi_http.sidecar.limits import Limits
from ksi_http.sidecar.metrics import Metrics
from ksi_http.sidecar.own import OwnConnections
from ksi_http.v1 import room as v1
from ksi_system.events import EventDescription, SystemDescribe, SystemDescribed

log = logging.getLogger(__name__)

AUTHENTICATE_S: Final = 10.0
BACKLOG: Final = 1024
SHUTDOWN_S: Final = 1.0
AGAIN_S: Final = 0.2
REVOKED: Final = "http:key_revoked"

Routes = Callable[["Sidecar"], list[AbstractRouteDef]]

ENTRY_POINTS: Final = "ksi.http"

# What is answered, each room by itself.
ROOMS: Final[tuple[Routes, ...]] = (
    probes.routes,
    openapi.routes,
    agui.routes,
    openai.routes,
    v1.routes,
    rest.routes,
)


def all_rooms() -> Iterator[Routes]:
    """Yield this server's own rooms, those that plugins bring, and what takes the routes left."""
    yield from ROOMS
    for each in sorted(entry_points(group=ENTRY_POINTS), key=attrgetter("name")):
        try:
            yield each.load()
        except Exception as error:  # the boundary to other people's code
            log.error("a room can't be opened", exc_info=error, extra={"room": each.name})
    yield generated.routes


class Sidecar:
    """What every route needs.

    Attributes:
        settings: The section ``[http]``.
        connections: To the daemon.
        exposed: The events that may be reached.
        callers: Who has which key.
        limits: How much one key may take.
        metrics: What is counted.
        chats: Looks up agents, conversations and turns.
        own: Connections that are a caller's own, for what is to be limited by the daemon itself.
    """

    def __init__(self, settings: HttpSettings, connections: Connections) -> None:
        self.settings = settings
        self.connections = connections
        self.exposed = Exposed(self._describe)
        self.callers = Callers(self._authenticate, settings.known_s)
        self.limits = Limits(settings)
        self.metrics = Metrics()
        self.chats = Chats(connections.taken)
        self.own = OwnConnections(self._connect, connections.transport)
        self._tasks: asyncio.TaskGroup | None = None
        self._begun: set[asyncio.Task[None]] = set()

    # -- for routes -----------------------------------------------------------------------------

    def caller(self, request: web.Request) -> Caller:
        """Return who makes a request; its key was checked before."""
        return request[guards.CALLER]

    def request_id(self, request: web.Request) -> str:
        """Return the id of a request, as it is in the log and in the answer."""
        return request[guards.REQUEST_ID]

    def note(self, request: web.Request, error: KsiError) -> None:
        """Log an error that a route tells its client itself, within a stream."""
        errors.note(error, **guards.fields_of(request))

    async def request(
        self,
        caller: Caller,
        event: str,
        data: Any = None,
        *,
        result_type: Any = None,
        idempotency_key: str | None = None,
        timeout_s: float | UnsetType | None = UNSET,
    ) -> Any:
        """Send an event in a caller's name and return its answer.

        Args:
            caller: Whose key must have the event's scope.
            event: Its name.
            data: Its payload.
            result_type: What to decode the answer into; `msgspec.Raw` leaves it as it is.
            idempotency_key: The caller's own, apart from those of other keys.
            timeout_s: How long to wait; ``http.request_timeout_s`` unless given.

        Raises:
            KsiError: What the daemon answered; `NotFound` where nobody may reach the event.
        """
        await self.exposed.check(caller, event)
        key = None if idempotency_key is None else f"{caller.id} {idempotency_key}"
        limit = self.settings.request_timeout_s if timeout_s is UNSET else timeout_s
        async with self.connections.taken() as client:
            return await client.request(
                event,
                data,
                result_type=result_type,
                timeout_s=limit,
                idempotency_key=key,
                context=caller.context,
            )

    async def stream(
        self, caller: Caller, event: str, data: Any = None, *, result_type: Any = None
    ) -> AsyncGenerator[Any]:
        """Send an event in a caller's name and yield the chunks of its answer; use `aclosing`.

        Raises:
            KsiError: What the daemon answered; `NotFound` where nobody may reach the event.
        """
        async with self.client_for(caller, event) as client:
            chunks = client.stream(event, data, result_type=result_type, context=caller.context)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    @asynccontextmanager
    async def client_for(self, caller: Caller, *events: str) -> AsyncIterator[AsyncClient]:
        """Yield a client with room for one request or stream, if a caller may send these events.

        Give what it sends ``context=caller.context``.

        Raises:
            KsiError: The caller may not, or there is no daemon, or no room.
        """
        for event in events:
            await self.exposed.check(caller, event)
        async with self.connections.taken() as client:
            yield client

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something that outlasts the request; it raises nothing, and ends with the server."""
        assert self._tasks is not None
        task = self._tasks.create_task(work, name=name)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def subscribed(self, pattern: str) -> Subscription:
        """Follow what the daemon tells to everybody; where it is away, wait for it."""
        while True:
            try:
                return await self.connections.first.subscribe(pattern)
            except Unavailable:
                await asyncio.sleep(AGAIN_S)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Have room for what outlasts requests, and end that."""
        async with asyncio.TaskGroup() as self._tasks:
            following = self._tasks.create_task(self.follow(), name="news")
            try:
                yield
            finally:
                for task in (following, *self._begun):
                    task.cancel()

    # -- what the daemon says -------------------------------------------------------------------

    async def _describe(self) -> dict[str, EventDescription]:
        async with self.connections.taken() as client:
            found = await client.request(
                "system:describe", SystemDescribe(), result_type=SystemDescribed
            )
        return {each.event: each for each in found.events}

    async def _authenticate(self, presented: Presented) -> HttpCaller:
        ask = HttpAuthenticate(id=presented.id, digest=presented.digest)
        async with self.connections.taken() as client:
            caller: HttpCaller = await client.request(
                "http:authenticate", ask, result_type=HttpCaller, timeout_s=AUTHENTICATE_S
            )
        return caller

    async def _connect(self, ask: HttpConnect) -> HttpConnected:
        async with self.connections.taken() as client:
            made: HttpConnected = await client.request(
                "http:connect", ask, result_type=HttpConnected, timeout_s=AUTHENTICATE_S
            )
        return made

    async def follow(self) -> None:
        """Forget keys that are revoked, and look anew at what there is after a loss; for ever."""
        subscription = await self.subscribed(REVOKED)
        async for event in subscription:
            try:
                if event.name == RECONNECTED:
                    await self.exposed.refresh()
                elif event.name == REVOKED:
                    self.callers.forget(msgspec.convert(event.data, HttpKeyRevoked).id)
            except (KsiError, msgspec.ValidationError) as error:
                log.warning("news could not be taken", extra={"why": str(error)})


def make_application(app: Sidecar) -> web.Application:
    """Make the aiohttp application of all routes."""
    guard = guards.Guard(app)
    application = web.Application(middlewares=[guard.stand_before], client_max_size=0)
    application.on_response_prepare.append(guards.prepared)
    for room in all_rooms():
        application.add_routes(room(app))
    return application


@asynccontextmanager
async def serving(app: Sidecar) -> AsyncIterator[tuple[str, int]]:
    """Answer requests; yields the address and the port.

    Raises:
        Conflict: The port is taken.
        NotFound: There is no such address here.
    """
    runner = web.AppRunner(make_application(app), handler_cancellation=True)
    await app.exposed.refresh()
    await runner.setup()
    try:
        assert runner.server is not None
        accept = partial(ClientConnection, runner.server, app.settings, app.metrics)
        listener = await _listen(accept, app.settings)
        async with app.working():
            try:
                yield listener.sockets[0].getsockname()[:2]
            finally:
                listener.close()
                await app.connections.close()  # so that streams end, and say so
    finally:
        await runner.shutdown()
        assert runner.server is not None
        await runner.server.shutdown(SHUTDOWN_S)
        await runner.cleanup()


async def _listen(accept: Callable[[], ClientConnection], settings: HttpSettings) -> asyncio.Server:
    host, port = settings.host, settings.port
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(accept, host, port, backlog=BACKLOG)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            message = f"{host}:{port} is taken or not ours to take; choose another http.port"
            raise Conflict(message) from error
        raise NotFound(f"http.host: this machine has no address {host!r}: {error}") from error


@asynccontextmanager
async def connected(
    transport: Callable[[], Transport | None], token: str | None = None
) -> AsyncIterator[Sidecar]:
    """Connect to the daemon, and yield what it says this server is to be.

    Args:
        transport: Makes a transport for each connection.
        token: Whom to act as; the inherited one, or this user, unless given.

    Raises:
        InvalidData: The inherited token can't be read.
        Unavailable: No daemon listens.
    """
    async with Connections(transport, token) as connections:
        told = await connections.first.request(
            "http:configure", HttpConfigure(), result_type=HttpConfigured
        )
        yield Sidecar(msgspec.convert(told.settings, HttpSettings), connections)

"""Has the SDK answer requests of the HTTP server: ASGI on one side, aiohttp on the other.

The body is read once; after that ``receive`` waits until the client is gone, which ends the
request. What is told of the caller goes along with each request, so that two requests of one
session are two callers where they come for two.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http import EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from msgspec import Struct
from starlette.types import Message, Scope

from ksi_client import Subscription
from ksi_client.client import RECONNECTED
from ksi_daemon.protocol import Busy, Conflict, Failed, KsiError, Unavailable
from ksi_daemon.protocol.wire import DECODE_ERRORS
from ksi_http.events import HttpKeyRevoked
from ksi_http.rooms import Caller, Sidecar, read_body, shown
from ksi_mcp.events import McpChanged, McpServing, McpUpdated, McpYou
from ksi_mcp.server.news import News
from ksi_mcp.server.replay import Replay
from ksi_mcp.server.serving import Serving
from ksi_system.events import EventDescription

log = logging.getLogger(__name__)

SDK: Final = "mcp"
CALLER: Final = "ksi.caller"
ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
OPEN_S: Final = 5.0
RETRY_MS: Final = 1000  # after which time a client is to take up a stream that was cut
AGAIN_S: Final = 2.0
SESSION: Final = "Mcp-Session-Id"
CHANGED, UPDATED, REVOKED = "mcp:changed", "mcp:updated", "http:key_revoked"
# Headers that this server sets itself, or that are of one connection.
OWN_HEADERS: Final = frozenset({"content-length", "connection", "transfer-encoding", "server"})
SECRET_HEADERS: Final = frozenset({"authorization", "x-api-key", "sec-websocket-protocol"})

_CALLER: Final[ContextVar[Caller | None]] = ContextVar("ksi_mcp_caller", default=None)


class HttpReach:
    """The daemon in the name of a key.

    Args:
        app: The server.
        caller: Whom the request is for.
    """

    def __init__(self, app: Sidecar, caller: Caller) -> None:
        self._app = app
        self._caller = caller
        self.name = name_of(caller)
        self.tenant = caller.tenant

    def may(self, scope: str) -> bool:
        """Say whether the key has a scope."""
        return self._caller.may(scope)

    async def events(self) -> Mapping[str, EventDescription]:
        """Return the events that may be reached from outside."""
        with contextlib.suppress(Unavailable):  # what is known does, too
            await self._app.exposed.are_new(AGAIN_S)
        return self._app.exposed.events

    async def ask(self, event: str, data: Any = None, *, result_type: Any = None) -> Any:
        """Send an event in the caller's name, for as long as it takes."""
        async with self._app.client_for(self._caller) as client:
            return await client.request(
                event,
                data,
                result_type=result_type,
                timeout_s=None,
                context=self._caller.context,
            )

    async def follow(self, event: str, data: Any, *, result_type: Any) -> AsyncGenerator[Any]:
        """Send an event in the caller's name, and yield the chunks of its answer."""
        async with self._app.client_for(self._caller) as client:
            chunks = client.stream(
                event, data, result_type=result_type, context=self._caller.context
            )
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    def shown(self, error: KsiError) -> str:
        """Return what leaves this process of an error."""
        return shown(error).message


def name_of(caller: Caller) -> str:
    """Return what tells a caller from others: the key, and whom it is for."""
    return f"{caller.id} {caller.user or ''}"


class Sessions(StreamableHTTPSessionManager):
    """The SDK's sessions, each with a memory of its own of what it was told."""

    @property
    def event_store(self) -> EventStore | None:
        """Return what remembers for a session that begins."""
        return Replay()

    @event_store.setter
    def event_store(self, given: EventStore | None) -> None:
        """Leave it: there is none for all."""


class Bridge:
    """Answers the requests of the HTTP server.

    Args:
        app: The server.
    """

    def __init__(self, app: Sidecar) -> None:
        self._app = app
        self._manager: StreamableHTTPSessionManager | None = None
        self._is_open = asyncio.Event()
        self._ids = Ids()
        self._open: dict[str, set[Exchange]] = {}  # by key

    async def open(self) -> None:
        """Begin to answer; ends with the server.

        Raises:
            Unavailable: The daemon is away.
        """
        logging.getLogger(SDK).setLevel(logging.WARNING)  # it tells of every session
        settings = await self._settings()
        serving = Serving(settings, self._reach_of)

        def schema_of(tool: str) -> dict[str, Any] | None:
            caller = _CALLER.get()
            return None if caller is None else serving.catalogues.schema(name_of(caller), tool)

        self._manager = Sessions(
            serving.server(schema_of),
            session_idle_timeout=settings.session_idle_s,
            max_request_body_size=self._app.settings.max_body_bytes,
            max_sessions=settings.max_sessions,
            retry_interval=RETRY_MS,
        )
        self._app.begin(self._run(self._manager, serving.news), "mcp")
        async with asyncio.timeout(OPEN_S):
            await self._is_open.wait()

    async def _settings(self) -> McpServing:
        async with self._app.connections.taken() as client:
            told: McpYou = await client.request("mcp:whoami", result_type=McpYou)
        return told.serving

    async def _run(self, manager: StreamableHTTPSessionManager, news: News) -> None:
        async with manager.run():
            self._is_open.set()
            await self._follow(news)

    async def _follow(self, news: News) -> None:
        """Hand on what the daemon says to have changed; for ever."""
        subscriptions = [
            await self._app.connections.first.subscribe(pattern)
            for pattern in (CHANGED, UPDATED, REVOKED)
        ]
        async with asyncio.TaskGroup() as tasks:
            for subscription in subscriptions:
                tasks.create_task(self._take(subscription, news), name="mcp news")

    def _end(self, key_id: str) -> None:
        """End what a key has open that is not valid any more."""
        for exchange in tuple(self._open.get(key_id, ())):
            exchange.end()

    async def _take(self, subscription: Subscription, news: News) -> None:
        async for event in subscription:
            try:
                if event.name == CHANGED:
                    changed = msgspec.convert(event.data, McpChanged)
                    await news.changed(changed.kind, changed.tenant)
                elif event.name == UPDATED:
                    updated = msgspec.convert(event.data, McpUpdated)
                    await news.updated(updated.uri, updated.tenant)
                elif event.name == REVOKED:
                    self._end(msgspec.convert(event.data, HttpKeyRevoked).id)
                elif event.name == RECONNECTED:
                    await news.all_changed()
            except msgspec.ValidationError as error:
                log.warning("news could not be taken", extra={"why": str(error)})

    def _reach_of(self, ctx: ServerRequestContext[Any, Any]) -> HttpReach:
        assert ctx.request is not None  # every message came with a request
        return HttpReach(self._app, ctx.request.scope[CALLER])

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        assert self._manager is not None
        caller = self._app.caller(request)
        body = await read_body(request, self._app.settings)
        user = _user_of(caller.id)
        scope = _scope_of(request, caller, user)
        exchange = Exchange(self._app, request, body)
        _CALLER.set(caller)
        auth_context_var.set(user)  # what is to come back with answers is bound to the key
        open_ones = self._open.setdefault(caller.id, set())
        open_ones.add(exchange)
        try:
            with self._ids.held(request, body):
                self._app.begin(exchange.run(self._manager, scope), "mcp request")
                return await exchange.answered()
        finally:
            open_ones.discard(exchange)
            if not open_ones:
                self._open.pop(caller.id, None)


class Named(Struct, frozen=True):
    """What of a message tells it from others."""

    id: str | int | float | None = None
    method: str | None = None


class Ids:
    """The requests that are under way in each session: the SDK would mix up two of one id."""

    def __init__(self) -> None:
        self._held: set[tuple[str, str | int | float]] = set()

    @contextlib.contextmanager
    def held(self, request: web.Request, body: bytes) -> Iterator[None]:
        """Have a request's id be its own while it is under way.

        Raises:
            Conflict: Another of the same session has it.
        """
        key = self._key(request, body)
        if key is None:
            yield
            return
        if key in self._held:
            raise Conflict(f"the request {key[1]!r} is still under way: give each an id of its own")
        self._held.add(key)
        try:
            yield
        finally:
            self._held.discard(key)

    @staticmethod
    def _key(request: web.Request, body: bytes) -> tuple[str, str | int | float] | None:
        session = request.headers.get(SESSION)
        if session is None or request.method != hdrs.METH_POST:
            return None
        try:
            named = msgspec.json.decode(body, type=Named)
        except DECODE_ERRORS:
            return None  # which is told to be wrong by others
        if named.id is None or named.method is None:
            return None
        return session, named.id


class Exchange:
    """One request, and its answer.

    Args:
        app: The server.
        request: What is answered.
        body: What came with it.
    """

    def __init__(self, app: Sidecar, request: web.Request, body: bytes) -> None:
        self._app = app
        self._request = request
        self._body: bytes | None = body
        self._stack = contextlib.ExitStack()
        self._is_over = asyncio.Event()
        self._is_gone = asyncio.Event()
        self._failure: KsiError | None = None
        self._head: tuple[int, list[tuple[str, str]]] = (500, [])
        self.response: web.StreamResponse = web.Response(status=500)

    async def run(self, manager: StreamableHTTPSessionManager, scope: Scope) -> None:
        """Have the request answered; never raises, since it is in a group with others."""
        try:
            with self._stack:  # while it is a stream, it is counted as one
                await manager.handle_request(scope, self.receive, self.send)
        except Exception as error:  # the boundary of a task in a shared group
            log.error("a request of MCP broke", exc_info=error)
            self._failure = Failed("a request of MCP broke")
        finally:
            self._is_over.set()

    async def answered(self) -> web.StreamResponse:
        """Return the answer. A client that goes is told of: its session is to outlive that."""
        try:
            await self._is_over.wait()
        finally:
            self._is_gone.set()
        if self._failure is not None:
            raise self._failure
        return self.response

    def end(self) -> None:
        """Cut it off, as if the client had gone."""
        self._is_gone.set()

    async def receive(self) -> Message:
        """Return the body; asked again, wait until the client is gone."""
        if self._body is None:
            await self._is_gone.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Take a part of the answer; who is gone gets nothing more."""
        if self._is_gone.is_set():
            return
        try:
            await self._send(message)
        except Busy as error:
            self._failure = error
            self._is_gone.set()
        except ConnectionError:
            self._is_gone.set()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in message["headers"]]
            kept = [each for each in headers if each[0].lower() not in OWN_HEADERS]
            self._head = (message["status"], kept)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self.response.prepared:
            await self._begin(body, is_whole=not more)
            if not more:
                return
        if body:
            await self.response.write(body)
        if not more:
            await self.response.write_eof()

    async def _begin(self, body: bytes, *, is_whole: bool) -> None:
        status, headers = self._head
        if is_whole:
            self.response = web.Response(status=status, body=body)
        else:
            self._stack.enter_context(self._app.limits.stream(self._app.caller(self._request).id))
            self.response = web.StreamResponse(status=status)
        for name, value in headers:
            self.response.headers[name] = value
        if not is_whole:
            await self.response.prepare(self._request)


@lru_cache(maxsize=1000)
def _user_of(key_id: str) -> AuthenticatedUser:
    """Return whose a session is: a key's, whomever its requests are for."""
    return AuthenticatedUser(AccessToken(token="", client_id=key_id, scopes=[]))


def _scope_of(request: web.Request, caller: Caller, user: AuthenticatedUser) -> Scope:
    # The key itself goes no further than the guards.
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in request.headers.items()
        if name.lower() not in SECRET_HEADERS
    ]
    return {
        "type": "http",
        "asgi": ASGI,
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.rel_url.raw_path.encode(),
        "query_string": request.query_string.encode(),
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "user": user,
        CALLER: caller,
    }

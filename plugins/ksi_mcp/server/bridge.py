"""Has the SDK answer requests of the HTTP server: ASGI on one side, aiohttp on the other.

The body is read once; after that ``receive`` waits until the client is gone, which ends the
request. What is told of the caller goes along with each request, so that two requests of one
session are two callers where they come for two.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

import msgspec
import pydantic_core
from aiohttp import hdrs, web
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.types import Message, Scope

from ksi_client import Subscription
from ksi_daemon.protocol import Failed, KsiError, Unavailable
from ksi_http.events import HttpKeyRevoked
from ksi_http.rooms import Caller, Sidecar, read_body, shown
from ksi_mcp.events import McpServing, McpYou
from ksi_mcp.server.news import CHANGED, UPDATED, News
from ksi_mcp.server.serving import Serving
from ksi_mcp.server.sessions import Sessions
from ksi_mcp.server.under_way import Call
from ksi_system.events import EventDescription

log = logging.getLogger(__name__)

SDK: Final = "mcp"
CALLER: Final = "ksi.caller"
ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
OPEN_S: Final = 5.0
AGAIN_S: Final = 2.0
BAD_REQUEST: Final = 400
STREAM: Final = "text/event-stream"
OLDEST: Final = HANDSHAKE_PROTOCOL_VERSIONS[0]  # what a program speaks that names none
SESSION, VERSION = "Mcp-Session-Id", "MCP-Protocol-Version"
REVOKED: Final = "http:key_revoked"
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


class Bridge:
    """Answers the requests of the HTTP server.

    Args:
        app: The server.
    """

    def __init__(self, app: Sidecar) -> None:
        self._app = app
        self._sessions: Sessions | None = None
        self._is_open = asyncio.Event()
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

        max_body_bytes = self._app.settings.max_body_bytes
        self._sessions = Sessions(serving.server(schema_of), settings, max_body_bytes)
        self._app.begin(self._run(self._sessions, serving.news), "mcp")
        async with asyncio.timeout(OPEN_S):
            await self._is_open.wait()

    async def _settings(self) -> McpServing:
        async with self._app.connections.taken() as client:
            told: McpYou = await client.request("mcp:whoami", result_type=McpYou)
        return told.serving

    async def _run(self, sessions: Sessions, news: News) -> None:
        try:
            async with sessions.run():
                self._is_open.set()
                await self._follow(news)
        except Exception as error:  # the boundary of a task in a shared group
            log.error("MCP has ended; it begins anew with the next request", exc_info=error)
        finally:
            self._is_open.clear()

    @property
    def is_open(self) -> bool:
        """Say whether it answers; what has ended never does again."""
        return self._is_open.is_set()

    async def _follow(self, news: News) -> None:
        """Hand on what the daemon says to have changed; for ever."""
        subscriptions = [
            await self._app.subscribed(pattern) for pattern in (CHANGED, UPDATED, REVOKED)
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
            if event.name == REVOKED:
                self._end(msgspec.convert(event.data, HttpKeyRevoked).id)
            else:
                await news.take(event, subscription.pattern)

    def _reach_of(self, ctx: ServerRequestContext[Any, Any]) -> HttpReach:
        assert ctx.request is not None  # every message came with a request
        return HttpReach(self._app, ctx.request.scope[CALLER])

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request.

        Raises:
            Busy: The key, or all together, have too many under way; nothing was done.
            Conflict: Another of the session has the same id.
        """
        caller = self._app.caller(request)
        body = await read_body(request, self._app.settings)
        user = _user_of(caller.id)
        exchange = Exchange(request, body)
        _CALLER.set(caller)
        auth_context_var.set(user)  # what is to come back with answers is bound to the key
        open_ones = self._open.setdefault(caller.id, set())
        open_ones.add(exchange)
        try:
            self._begin(exchange, caller, user, _message(body))
            return await exchange.answered()
        finally:
            open_ones.discard(exchange)
            if not open_ones:
                self._open.pop(caller.id, None)

    def _begin(
        self, exchange: "Exchange", caller: Caller, user: AuthenticatedUser, message: Any
    ) -> None:
        """Take all that a request needs before anything is done for it; then begin."""
        scope = _scope_of(exchange.request, caller, user)
        with contextlib.ExitStack() as room:
            if _asks(exchange.request, message):
                room.enter_context(self._app.limits.stream(caller.id))
            call = self._call(exchange.request, user, message)
            work = self._served(exchange, scope, room.pop_all(), call)
        self._app.begin(work, "mcp request")

    def _call(self, request: web.Request, user: AuthenticatedUser, message: Any) -> Call | None:
        """Return the call that a message begins in a session; ``None`` where it begins none."""
        session = request.headers.get(SESSION)
        if session is None or request.method != hdrs.METH_POST or not _asks(request, message):
            return None
        if request.headers.get(VERSION, OLDEST) not in HANDSHAKE_PROTOCOL_VERSIONS:
            return None  # it stands alone, whatever session it names
        assert self._sessions is not None
        under_way = self._sessions.under_way(session, user)
        request_id = message["id"] if isinstance(message, dict) else None
        if under_way is None or not isinstance(request_id, int | str):
            return None  # which the SDK tells
        return under_way.begin(request_id)

    async def _served(
        self, exchange: "Exchange", scope: Scope, room: contextlib.ExitStack, call: Call | None
    ) -> None:
        """Have a request answered; a call takes its room until it ends, client or no client."""
        assert self._sessions is not None
        with room:
            await exchange.run(self._sessions, scope)
            if call is None:
                return
            if exchange.status >= BAD_REQUEST:  # it did not get as far as its session
                call.end()
            await call.over.wait()


def _message(body: bytes) -> Any:
    """Return what a body says, read as the SDK reads it: what one can't, the other can't."""
    try:
        return pydantic_core.from_json(body)
    except ValueError:
        return None


def _asks(request: web.Request, message: Any) -> bool:
    """Say whether a request is answered by more than that it was taken."""
    if request.method == hdrs.METH_POST and isinstance(message, dict):
        return "id" in message and "method" in message
    return request.method != hdrs.METH_DELETE


class Exchange:
    """One request, and its answer.

    Attributes:
        request: What is answered.
        response: The answer.
        status: The answer's, as far as there is one; known also when its client has gone.

    Args:
        request: The same.
        body: What came with it.
    """

    def __init__(self, request: web.Request, body: bytes) -> None:
        self.request = request
        self.response: web.StreamResponse = web.Response(status=500)
        self.status = 0
        self._body: bytes | None = body
        self._headers: list[tuple[str, str]] = []
        self._is_over = asyncio.Event()
        self._is_gone = asyncio.Event()
        self._failure: KsiError | None = None

    async def run(self, sessions: Sessions, scope: Scope) -> None:
        """Have the request answered; never raises, since it is in a group with others."""
        try:
            await sessions.handle_request(scope, self.receive, self.send)
        except KsiError as error:
            self._failure = error
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
        if message["type"] == "http.response.start":
            self._take_head(message)
        if self._is_gone.is_set():
            return
        try:
            await self._send(message)
        except ConnectionError:
            self._is_gone.set()

    def _take_head(self, message: Message) -> None:
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in message["headers"]]
        self._headers = [each for each in headers if each[0].lower() not in OWN_HEADERS]
        self.status = message["status"]

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if any(value.startswith(STREAM) for _, value in self._headers):
                await self._begin()  # at once: its first message may be long in coming
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self.response.prepared:
            self.response = web.Response(status=self.status, body=body)
            self.response.headers.update(self._headers)
            return
        if body:
            await self.response.write(body)
        if not more:
            await self.response.write_eof()

    async def _begin(self) -> None:
        self.response = web.StreamResponse(status=self.status)
        self.response.headers.update(self._headers)
        await self.response.prepare(self.request)


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

"""The daemon's own protocol over a WebSocket: a message for each line."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from ksi_client.transports import UnixTransport
from ksi_daemon.protocol import Denied, Unavailable
from ksi_http.sidecar.openapi import described

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

PROTOCOL: Final = "ksi.v1"
LINE_BYTES: Final = 16 * 1024 * 1024
AUTHENTICATION: Final = "ksi-socket"
AUTHENTICATE_S: Final = 10.0

DESCRIBED: Final = {
    "summary": "Speak the daemon's protocol over a WebSocket.",
    "description": "Each message is a line of the protocol. It may do what the key may: send "
    "events with their scopes, subscribe with events:read, publish with events:publish, serve with "
    "events:serve. A web page offers the subprotocols ksi.v1 and bearer.<key>.",
    "tags": ["events"],
    "responses": {
        "101": {"description": "From here on it is a WebSocket."},
        "default": {"$ref": "#/components/responses/Error"},
    },
}


class Line:
    """A connection to the daemon, line by line.

    Args:
        reader: What it says.
        writer: What it is told.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, line: bytes) -> None:
        """Send a line; waits while the daemon reads too slowly.

        Raises:
            ConnectionError: It is gone.
        """
        self._writer.write(line + b"\n")
        await self._writer.drain()

    async def read(self) -> bytes:
        """Return the next line; nothing at the end."""
        try:
            return await self._reader.readline()
        except (ValueError, ConnectionError):
            return b""  # a line that is too long ends it as well


class Sockets:
    """Connects WebSockets to the daemon.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app

    @described(DESCRIBED)
    async def open(self, request: web.Request) -> web.StreamResponse:
        """Hand on what comes, both ways, until one side ends."""
        app, caller = self._app, self._app.caller(request)
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,),
            heartbeat=app.settings.heartbeat_s,
            max_msg_size=app.settings.max_body_bytes,
        )
        with app.limits.stream(caller.id):
            async with self._connected(caller) as line:
                await socket.prepare(request)
                await _relay(socket, line)
        return socket

    @asynccontextmanager
    async def _connected(self, caller: "Caller") -> AsyncIterator[Line]:
        """Yield a connection that may do what a caller may.

        Raises:
            Unavailable: The daemon is away.
            Denied: The key is not valid any more.
        """
        own = self._app.own
        async with AsyncExitStack() as stack:
            token = await own.token(caller)
            try:
                line = await stack.enter_async_context(self._line(token))
            except Denied:
                token = await own.token(caller, but=token)
                line = await stack.enter_async_context(self._line(token))
            yield line

    @asynccontextmanager
    async def _line(self, token: str) -> AsyncIterator[Line]:
        reader = asyncio.StreamReader(LINE_BYTES)
        protocol = _Protocol(reader)
        transport = self._app.connections.transport() or UnixTransport()
        await transport.connect(cast(Any, lambda: protocol))  # it needs no more than a protocol
        assert protocol.transport is not None
        loop = asyncio.get_running_loop()
        writer = asyncio.StreamWriter(protocol.transport, protocol, reader, loop)
        line = Line(reader, writer)
        try:
            await _authenticate(line, token)
            yield line
        finally:
            writer.close()


class _Protocol(asyncio.StreamReaderProtocol):
    """A stream whose transport can be had."""

    transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        super().connection_made(transport)


async def _authenticate(line: Line, token: str) -> None:
    asked = {"id": AUTHENTICATION, "event": "router:authenticate", "data": {"token": token}}
    try:
        async with asyncio.timeout(AUTHENTICATE_S):
            await line.send(msgspec.json.encode(asked))
            told = await line.read()
    except (TimeoutError, ConnectionError) as error:
        raise Unavailable("the daemon does not answer") from error
    if not told:
        raise Unavailable("the daemon is away")
    if "error" in msgspec.json.decode(told):
        raise Denied("the key is not valid any more")


async def _relay(socket: web.WebSocketResponse, line: Line) -> None:
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(_tell(socket, line), name="to the client")
        try:
            await _listen(socket, line)
        finally:
            telling.cancel()


async def _tell(socket: web.WebSocketResponse, line: Line) -> None:
    """Hand on what the daemon says; its end is the WebSocket's."""
    try:
        while told := await line.read():
            await socket.send_str(told.decode().rstrip("\n"))
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"the daemon hung up")
    except ConnectionError:
        pass  # the client is gone, which the other direction sees


async def _listen(socket: web.WebSocketResponse, line: Line) -> None:
    """Hand on what the client says."""
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"send text")
            return
        try:
            # Between the tokens of JSON a line's end is a blank; within them there is none.
            await line.send(message.data.encode().replace(b"\n", b" "))
        except ConnectionError:
            return

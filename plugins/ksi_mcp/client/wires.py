"""The ways to a server, as the SDK wants them: a process of ours, or HTTP.

Whatever goes wrong on the way becomes an answer to the request that it concerns, which says whether
the server can have got that; so no failure breaks more than it has to.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx2
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import (
    METHOD_NOT_FOUND,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from ksi_mcp.client.errors import GONE, LOST, NOT_SENT, REFUSED
from ksi_mcp.client.lines import Lines, TooLong, answered_id
from ksi_mcp.client.listing import mended
from ksi_models.api import GuardedProcess

READ_BYTES: Final = 65_536
CLOSE_S: Final = 1.0
MAX_ERROR_BYTES: Final = 65_536
BURST_S: Final = 2.0
NEVER: Final = math.inf
NO_SAMPLING: Final = "servers are not given answers of models, which cost money"
ELICIT: Final = "elicitation/create"
REPLIES: Final[dict[str, dict[str, Any]]] = {
    "ping": {},
    "roots/list": {"roots": []},
    ELICIT: {"action": "decline"},
}
SESSION_HEADER: Final = "mcp-session-id"
Message = SessionMessage | Exception
Read = ObjectReceiveStream[Message]
Write = ObjectSendStream[SessionMessage]
Wire = contextlib.AbstractAsyncContextManager[tuple[Any, Any]]


class Over(Exception):
    """A server says nothing more; has how that came."""


def failure(request_id: int | str | None, code: int, message: str) -> JSONRPCError:
    """Make an answer in a server's place."""
    data = ErrorData(code=code, message=message)
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=data)


# -- what all have in common -----------------------------------------------------------------------


class Pace:
    """Lets notifications pass as fast as is bearable; answers always.

    Args:
        per_s: How many pass in a second.
    """

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._room = per_s * BURST_S
        self._at = 0.0

    async def keep(self) -> None:
        """Wait until another may pass."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._room = min(self._per_s * BURST_S, self._room + (now - self._at) * self._per_s)
        self._at = now
        self._room -= 1
        if self._room < 0:
            await asyncio.sleep(-self._room / self._per_s)


@asynccontextmanager
async def watched(
    wire: Wire,
    per_s: int,
    *,
    may_ask: Callable[[], bool],
    on_message: Callable[[], None],
    on_end: Callable[[str], None],
) -> AsyncIterator[tuple[Any, Any]]:
    """Let a server say no more than is bearable.

    What it asks of us is answered here, one after the other, but for what a person is asked: so one
    that asks and never reads the answers is read no more.

    Args:
        wire: The way to it.
        per_s: How many notifications pass in a second.
        may_ask: Says whether a person can be asked what it wants to know, and will be.
        on_message: Called when it says something.
        on_end: Told why when it says nothing more.
    """
    pace = Pace(per_s)
    async with wire as (read, write):
        send, receive = anyio.create_memory_object_stream[Message](0)

        async def pump() -> None:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with send:
                    async for each in read:
                        on_message()
                        if not _is_answer(each):
                            await pace.keep()
                        reply = _reply_to(each, may_ask)
                        if isinstance(each, Over):
                            on_end(str(each))
                        elif reply is not None:
                            await write.send(SessionMessage(reply))
                        elif not isinstance(each, Exception):
                            await send.send(mended(each))
            on_end("it closed the connection")

        async with receive, anyio.create_task_group() as group:
            group.start_soon(pump)
            yield receive, write
            group.cancel_scope.cancel()


def _is_answer(each: Message) -> bool:
    return isinstance(each, SessionMessage) and isinstance(
        each.message, JSONRPCResponse | JSONRPCError
    )


def _reply_to(each: Message, may_ask: Callable[[], bool]) -> JSONRPCMessage | None:
    if isinstance(each, Exception) or not isinstance(each.message, JSONRPCRequest):
        return None
    request_id, method = each.message.id, each.message.method
    if method == ELICIT and may_ask():
        return None
    if method in REPLIES:
        return JSONRPCResponse(jsonrpc="2.0", id=request_id, result=REPLIES[method])
    if method == "sampling/createMessage":
        return failure(request_id, METHOD_NOT_FOUND, NO_SAMPLING)
    return failure(request_id, METHOD_NOT_FOUND, "this client has no such method")


# -- a process -------------------------------------------------------------------------------------


class _Pipes:
    """Talks with a process in lines of JSON."""

    def __init__(self, process: GuardedProcess, max_bytes: int) -> None:
        self._process = process
        self._max_bytes = max_bytes
        self._written = 0
        # Where each request that is not answered ends in all that was written.
        self._asked: dict[int | str, float] = {}
        self._wanted = asyncio.Event()

    async def read(self, send: ObjectSendStream[Message]) -> None:
        lines = Lines(self._max_bytes)
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with send:
                while data := await self._process.read(READ_BYTES):
                    for line in lines.feed(data):
                        for message in self._messages(line):
                            await send.send(message)
                how = await ended(self._process)
                while True:  # who asks after this is told too
                    while self._asked:
                        await send.send(SessionMessage(self._unanswered(how)))
                    await send.send(Over(how))
                    self._wanted.clear()
                    await self._wanted.wait()

    def _messages(self, line: bytes | TooLong) -> list[Message]:
        if isinstance(line, TooLong):
            why = f"a message of {line.size} bytes is too large (mcp.max_result_bytes)"
            return self._unreadable(line.head, why)
        if not line.strip():
            return []
        try:
            message = _parsed(line)
        except ValidationError as error:
            return [error, *self._unreadable(line[:300], "it sent what is no JSON-RPC")]
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            self._asked.pop(message.id, None)
        return [SessionMessage(message)]

    def _unreadable(self, head: bytes, why: str) -> list[Message]:
        request_id = answered_id(head)
        if request_id is None:
            return [ValueError(why)]
        return [SessionMessage(failure(request_id, LOST, why))]

    def _unanswered(self, how: str) -> JSONRPCError:
        """Tell of a request whether the process, which has ended, can have read it."""
        request_id, end = self._asked.popitem()
        unread = self._process.ended.unread_bytes
        if end != NEVER and (unread is None or end <= self._written - unread):
            return failure(request_id, LOST, how)
        return failure(request_id, NOT_SENT, f"{how} before it got the request")

    async def write(self, receive: ObjectReceiveStream[SessionMessage]) -> None:
        async with receive:
            async for each in receive:
                message = each.message
                data = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
                takes_it = self._process.takes_input
                self._written += len(data) if takes_it else 0
                if isinstance(message, JSONRPCRequest):
                    self._asked[message.id] = self._written if takes_it else NEVER
                    self._wanted.set()
                with contextlib.suppress(OSError):  # its end tells those who wait
                    await self._process.write(data)


def _parsed(line: bytes) -> JSONRPCMessage:
    """Read a message; one with bytes that are no UTF-8 with marks in their place.

    Raises:
        ValidationError: It is none.
    """
    try:
        return jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError:
        text = line.decode(errors="replace")
        if text.encode() == line:
            raise
        return jsonrpc_message_adapter.validate_json(text, by_name=False)


async def ended(process: GuardedProcess) -> str:
    """End a process that says nothing more, and return how it has ended.

    Its input is closed first: then its guard can tell how much of that it left unread.
    """
    process.write_and_close(b"")
    if not await process.until_gone(CLOSE_S):
        process.end()
        await process.until_gone()
        return "it closed its output"
    how = process.ended
    return f"it ended ({f'exit code {how.code}' if how.signal is None else how.signal})"


@asynccontextmanager
async def process_wire(process: GuardedProcess, max_bytes: int) -> AsyncIterator[tuple[Any, Any]]:
    """Talk with a process, and end it: it may end by itself first, when its input is closed.

    Args:
        process: It.
        max_bytes: How large a message of its may be.
    """
    pipes = _Pipes(process, max_bytes)
    send, read = anyio.create_memory_object_stream[Message](0)
    write, receive = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with read, write, anyio.create_task_group() as group:
            group.start_soon(pipes.read, send)
            group.start_soon(pipes.write, receive)
            yield read, write
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await ended(process)


# -- HTTP ------------------------------------------------------------------------------------------


class Endpoint(httpx2.AsyncBaseTransport):
    """The way to a server by HTTP: bounds its answers, and tells what failed and how.

    Args:
        url: The server's.
        max_bytes: How large an answer may be.
        inner: What speaks HTTP.
    """

    def __init__(self, url: str, max_bytes: int, inner: httpx2.AsyncBaseTransport) -> None:
        self._url = httpx2.URL(url)
        self._max_bytes = max_bytes
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        is_call = request.method == "POST" and request.url == self._url
        try:
            response = await self._inner.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            return _made(request, 502, NOT_SENT, f"it can't be reached: {_told(error)}")
        except httpx2.TransportError as error:
            return _made(request, 502, LOST, f"the connection was lost: {_told(error)}")
        try:
            return await self._bounded(request, response, is_call=is_call)
        except httpx2.TransportError as error:
            await response.aclose()
            return _made(request, 502, LOST, f"the connection was lost: {_told(error)}")

    async def _bounded(
        self, request: httpx2.Request, response: httpx2.Response, *, is_call: bool
    ) -> httpx2.Response:
        kind = response.headers.get("content-type", "").lower()
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            return _made(request, 502, LOST, "its answer is packed, which nobody asked for")
        if response.status_code < 400 and kind.startswith("text/event-stream"):
            return response
        limit = self._max_bytes if response.status_code < 400 else MAX_ERROR_BYTES
        body = await _read(response, limit)
        if is_call and response.status_code >= 400:
            return _refusal(request, response, body)
        if body is None:
            return _made(
                request, 502, LOST, f"an answer has more than {limit} bytes (mcp.max_result_bytes)"
            )
        headers = [each for each in response.headers.raw if each[0].lower() != b"content-length"]
        if kind.startswith("application/json"):
            body = body.decode(errors="replace").encode()
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


async def _read(response: httpx2.Response, limit: int) -> bytes | None:
    """Return the body of a response, if it isn't too large."""
    parts, size = [], 0
    try:
        async for part in response.aiter_raw():
            size += len(part)
            if size > limit:
                return None
            parts.append(part)
    finally:
        await response.aclose()
    return b"".join(parts)


def _refusal(
    request: httpx2.Request, response: httpx2.Response, body: bytes | None
) -> httpx2.Response:
    """Tell why a server did not take a request; as it says it itself, where it does."""
    status = response.status_code
    with contextlib.suppress(ValidationError):
        if isinstance(
            jsonrpc_message_adapter.validate_json(body or b"", by_name=False), JSONRPCError
        ):
            return httpx2.Response(
                status, headers=_json_headers(response), content=body, request=request
            )
    is_gone = status == 404 and SESSION_HEADER in request.headers
    code = GONE if is_gone else REFUSED if status < 500 or status == 503 else LOST
    if status == 404 and not is_gone:
        return httpx2.Response(404, content=b"", request=request)
    made = _made(request, status, code, f"it answered with HTTP {status}")
    made.headers.update(_kept(response.headers))
    return made


def _json_headers(response: httpx2.Response) -> dict[str, str]:
    return {"content-type": "application/json", **_kept(response.headers)}


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in ("www-authenticate", "retry-after") if name in headers}


def _made(request: httpx2.Request, status: int, code: int, why: str) -> httpx2.Response:
    body = failure(None, code, why).model_dump_json(by_alias=True).encode()
    headers = {"content-type": "application/json"}
    return httpx2.Response(status, headers=headers, content=body, request=request)


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__


@asynccontextmanager
async def http_wire(
    url: str,
    headers: Mapping[str, str],
    auth: httpx2.Auth | None,
    *,
    max_bytes: int,
    connect_timeout_s: float,
) -> AsyncIterator[tuple[Any, Any]]:
    """Talk with a server by HTTP.

    Args:
        url: Where it is.
        headers: What is sent with each request, secrets among it.
        auth: Who logs in, where one does.
        max_bytes: How large an answer of its may be.
        connect_timeout_s: How long it may take until one is connected.
    """
    client = httpx2.AsyncClient(
        transport=Endpoint(url, max_bytes, httpx2.AsyncHTTPTransport()),
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(connect_timeout_s, read=None),
        auth=auth,
    )
    async with (
        client,
        streamable_http_client(url, http_client=client, max_sse_event_size=max_bytes) as streams,
    ):
        yield streams

"""The way to a server by HTTP.

Whatever goes wrong on the way becomes an answer to the request that it concerns, which says whether
the server can have got that; so no failure breaks more than it has to.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp_types import JSONRPCError, jsonrpc_message_adapter
from pydantic import ValidationError

from ksi_mcp.client.errors import GONE, LOST, NOT_SENT, REFUSED
from ksi_mcp.client.wires.watching import MESSAGES_PER_S, Pace, failure
from ksi_mcp.lines import Bounds, Lines, TooLong, answered_id, head_of, why_not

MAX_ERROR_BYTES: Final = 65_536
SESSION_HEADER: Final = "mcp-session-id"


class Endpoint(httpx2.AsyncBaseTransport):
    """The way to a server by HTTP: bounds its answers, and tells what failed and how.

    Args:
        url: The server's.
        bounds: What a message of its may be.
        inner: What speaks HTTP.
    """

    def __init__(self, url: str, bounds: Bounds, inner: httpx2.AsyncBaseTransport) -> None:
        self._url = httpx2.URL(url)
        self._bounds = bounds
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
            stream = _Events(response, self._bounds)
            return httpx2.Response(200, headers=response.headers, stream=stream, request=request)
        limit = self._bounds.max_bytes if response.status_code < 400 else MAX_ERROR_BYTES
        body = await _read(response, limit)
        if is_call and response.status_code >= 400:
            return _refusal(request, response, body)
        if body is None:
            return _made(
                request, 502, LOST, f"an answer has more than {limit} bytes (mcp.max_result_bytes)"
            )
        if (why := await why_not(body, self._bounds)) is not None:
            return _made(request, 502, LOST, why)
        headers = [each for each in response.headers.raw if each[0].lower() != b"content-length"]
        if kind.startswith("application/json"):
            body = body.decode(errors="replace").encode()
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


class _Events(httpx2.AsyncByteStream):
    """A stream of events, as fast as is bearable; in place of one that can't be read stands why.

    Args:
        response: What brings it.
        bounds: What a message may be.
    """

    def __init__(self, response: httpx2.Response, bounds: Bounds) -> None:
        self._response = response
        self._bounds = bounds
        self._pace = Pace(bounds.max_bytes * MESSAGES_PER_S)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its lines."""
        lines = Lines(self._bounds.max_bytes)
        async for part in self._response.aiter_raw():
            await self._pace.keep(len(part))
            for line in lines.feed(part):
                yield await self._readable(line) + b"\n"

    async def _readable(self, line: bytes | TooLong) -> bytes:
        why = await why_not(line, self._bounds)
        if not isinstance(line, TooLong) and why is None:
            return line
        request_id = answered_id(head_of(line))
        if request_id is None:
            return b":"
        told = failure(request_id, LOST, why or "")
        return b"data: " + told.model_dump_json(by_alias=True, exclude_unset=True).encode()

    async def aclose(self) -> None:
        """Have no more of it."""
        await self._response.aclose()


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
    bounds: Bounds,
    connect_timeout_s: float,
) -> AsyncIterator[tuple[Any, Any]]:
    """Talk with a server by HTTP.

    Args:
        url: Where it is.
        headers: What is sent with each request, secrets among it.
        auth: Who logs in, where one does.
        bounds: What a message of its may be.
        connect_timeout_s: How long it may take until one is connected.
    """
    client = httpx2.AsyncClient(
        transport=Endpoint(url, bounds, httpx2.AsyncHTTPTransport()),
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(connect_timeout_s, read=None),
        auth=auth,
    )
    async with (
        client,
        streamable_http_client(
            url, http_client=client, max_sse_event_size=bounds.max_bytes
        ) as streams,
    ):
        yield streams

"""Servers by HTTP, and what may go wrong on the way."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.events import McpServer
from ksi_mcp.settings import McpSettings
from ksi_mcp.tests.client.conftest import Connected

INPUT = {"type": "object", "properties": {"text": {"type": "string"}}}
Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Far:
    """A server by hand; ``answer`` says what becomes of a call."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.calls: list[str] = []
        self.session = "one"
        self.answer: Answer = self.done
        self.url = ""

    async def post(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        message = await request.json()
        number, method = message.get("id"), message["method"]
        if number is None:
            return web.Response(status=202)
        if method == "initialize":
            result = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "far", "version": "1"},
            }
            return self.said(number, result, headers={"Mcp-Session-Id": self.session})
        if request.headers.get("Mcp-Session-Id") != self.session:
            return web.Response(status=404, text="no such session")
        if method == "tools/list":
            return self.said(number, {"tools": [{"name": "echo", "inputSchema": INPUT}]})
        self.calls.append(message["params"]["arguments"].get("text", ""))
        return await self.answer(request, message)

    def said(self, number: int, result: Any, **more: Any) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": number, "result": result}, **more)

    async def done(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        return self.said(message["id"], {"content": [{"type": "text", "text": "done"}]})


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    """Run a server on loopback."""
    made = Far()
    app = web.Application()
    app.router.add_post("/mcp", made.post)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}/mcp"
    yield made
    await runner.cleanup()


def server(far: Far, *, query: str = "", **more: Any) -> McpServer:
    """Return how it is reached."""
    return McpServer(url=f"{far.url}{query}", **{"handshake": "legacy", **more})


async def test_a_tool_is_called_by_http_with_the_headers_and_the_query_that_were_given(
    far: Far, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_TOKEN", "sk-123456")
    monkeypatch.setenv("FAR_USER", "me & you/?")
    given = server(
        far, headers={"Authorization": "Bearer ${env:FAR_TOKEN}"}, query="?user=${env:FAR_USER}"
    )
    async with connected(given) as (connection, told):
        result = await connection.call("echo", {"text": "a"}, told.progressed)

    assert result["content"][0]["text"] == "done"
    assert {each.headers["Authorization"] for each in far.requests} == {"Bearer sk-123456"}
    assert {each.query["user"] for each in far.requests} == {"me & you/?"}


async def test_a_secret_that_is_not_there_is_told_by_where_it_should_be(
    far: Far, connected: Connected
) -> None:
    given = server(far, headers={"Authorization": "Bearer ${env:NOT_THERE}"})
    async with connected(given) as (connection, _):
        pass

    where = "${env:NOT_THERE} in the daemon's environment"
    assert connection.why == f"Authorization: there is nothing at {where}"
    assert far.requests == []


async def status(code: int) -> web.StreamResponse:
    """Answer with a status alone."""
    return web.Response(status=code, text="no")


@pytest.mark.parametrize(
    ("code", "error"),
    [(400, AnswerError), (401, AnswerError), (503, AnswerError), (500, LostError)],
)
async def test_a_status_tells_whether_a_call_was_taken(
    far: Far, connected: Connected, code: int, error: type[Exception]
) -> None:
    far.answer = lambda request, message: status(code)
    async with connected(server(far)) as (connection, told):
        with pytest.raises(error, match=f"HTTP {code}"):
            await connection.call("echo", {}, told.progressed)
        far.answer = far.done
        await connection.call("echo", {}, told.progressed)


async def test_a_session_that_the_server_has_forgotten_did_not_take_the_call(
    far: Far, connected: Connected
) -> None:
    async with connected(server(far)) as (connection, told):
        far.session = "two"
        with pytest.raises(NotSentError):
            await connection.call("echo", {}, told.progressed)

    assert far.calls == []


async def test_a_server_that_is_not_there_did_not_take_the_call(connected: Connected) -> None:
    async with connected(McpServer(url="http://127.0.0.1:1/mcp")) as (connection, _):
        pass

    assert "can't be reached" in str(connection.why)


async def broken_off(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Begin an answer, and be gone."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    assert request.transport is not None
    request.transport.abort()
    return response


async def cut(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Be gone before there is an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def large(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Answer with more than is taken."""
    return web.json_response({"jsonrpc": "2.0", "id": 1, "result": "x" * 200_000})


async def large_event(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Answer with an event that is larger than is taken."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(4):
        await response.write(b"data: " + b"x" * 50_000 + b"\n")
    await response.write(b"\n")
    return response


async def laborious(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Answer with many values."""
    result = {"content": [], "structuredContent": {"n": [[]] * 1000}}
    return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})


async def laborious_event(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Answer with an event that has many values."""
    answer = await laborious(request, message)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    await response.write(b"data: " + answer.body + b"\r\n\r\n")
    return response


async def packed(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Answer with what would grow when it is unpacked."""
    response = web.json_response({"x": "x" * 1000})
    response.enable_compression(web.ContentCoding.gzip)
    response.headers["Content-Encoding"] = "gzip"
    return response


async def deep(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Answer with JSON of depth 100,000."""
    return web.Response(text="[" * 100_000, content_type="application/json")


@pytest.mark.parametrize(
    "answer", [broken_off, cut, large, large_event, laborious, laborious_event, packed, deep]
)
async def test_what_breaks_an_answer_leaves_its_call_in_doubt_and_the_others_alone(
    far: Far, connected: Connected, answer: Answer
) -> None:
    settings = McpSettings(max_result_bytes=100_000, max_result_values=1_000)
    async with connected(server(far), settings) as (connection, told):
        far.answer = answer
        with pytest.raises(LostError):
            await connection.call("echo", {"text": "a"}, told.progressed)
        far.answer = far.done
        result = await connection.call("echo", {"text": "b"}, told.progressed)

    assert result["content"][0]["text"] == "done"
    assert far.calls == ["a", "b"]


async def test_a_redirect_elsewhere_is_not_followed_with_the_headers(
    far: Far, connected: Connected
) -> None:
    async def elsewhere(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://127.0.0.2:1/mcp")

    far.answer = elsewhere
    async with connected(server(far, headers={"Authorization": "secret"})) as (connection, told):
        with pytest.raises(AnswerError, match="not followed"):
            await connection.call("echo", {}, told.progressed)

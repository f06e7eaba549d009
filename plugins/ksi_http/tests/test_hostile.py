"""Clients that mean harm, or are broken: the server outlives them, and others feel nothing."""

import asyncio
import gzip
import importlib.util
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from ksi_http.testing import HttpServer
from ksi_http.tests.odd_plugin import Odd

LIMIT_S = 15.0
ECHO = "/v1/odd/echo"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run on the loop that the server has in real life: its transports are not asyncio's."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


class Raw:
    """A client that sends whatever bytes it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def answer(self) -> tuple[int, Any]:
        """Read one answer of a known length; a status of 0 is a connection that was closed."""
        try:
            async with asyncio.timeout(LIMIT_S):
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].split("\r\n")[0])
                body = await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, None
        return int(head.split()[1]), json.loads(body)

    async def closed(self) -> bool:
        """Wait until the server closes the connection."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while await self.reader.read(65536):
                    pass
        except ConnectionError:
            pass
        return True


@asynccontextmanager
async def raw(http: HttpServer) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


def head(http: HttpServer, path: str = ECHO, *more: str, kind: str = "application/json") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{http.port}",
        f"Authorization: Bearer {http.key}",
        f"Content-Type: {kind}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def whole(http: HttpServer, body: bytes, path: str = ECHO, **options: str) -> bytes:
    return head(http, path, f"Content-Length: {len(body)}", **options) + body


async def still_answers(http: HttpServer) -> bool:
    return (await http.post(ECHO, {"text": "x"}))[0] == 200


# -- what can't be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "a',
        b'{"text": "a"} x',
        b'{"text": "a"}\n{"event": "odd:inside"}',
        b"\xff\xfe",
        b'{"text": "\xc3"}',
        b'{"text": NaN}',
        b"[" * 100_000,
        b'{"text":' * 50_000,
        b"null",
        b"[]",
        b'"text"',
        b"3",
    ],
)
async def test_what_is_no_payload_is_told_and_the_connection_goes_on(
    http: HttpServer, body: bytes
) -> None:
    async with raw(http) as client:
        client.send(whole(http, body), whole(http, b'{"text": "a"}'))

        assert (await client.answer())[0] == 400
        assert (await client.answer())[0] == 200


async def test_a_payload_of_several_lines_is_one(http: HttpServer) -> None:
    async with raw(http) as client:
        client.send(whole(http, b'{\n\n"text"\r\n: "a\\nb"\n}\n'))

        status, answer = await client.answer()

    assert (status, answer["text"]) == (200, "a\nb")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
async def test_another_content_type_is_refused(http: HttpServer, kind: str) -> None:
    async with raw(http) as client:
        client.send(whole(http, b'{"text": "a"}', kind=kind))

        status, answer = await client.answer()

    assert (status, answer["error"]["code"]) == (415, "invalid_data")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/odd/echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 500 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_no_request_is_answered_in_the_one_shape_and_closed(
    http: HttpServer, sent: bytes
) -> None:
    async with raw(http) as client:
        client.send(sent)
        status, answer = await client.answer()

    assert (status, answer["error"]["code"]) == (400, "invalid_data")
    assert await still_answers(http)


async def test_a_request_smuggled_behind_another_length_is_not_heard(
    http: HttpServer, odd: Odd
) -> None:
    hidden = whole(http, b'{"text": "smuggled"}')
    async with raw(http) as client:
        client.send(
            head(http, ECHO, f"Content-Length: {len(hidden) + 5}", "Transfer-Encoding: chunked"),
            b"0\r\n\r\n",
            hidden,
        )
        status, _ = await client.answer()
        await client.closed()

    assert status == 400
    assert odd.echoed == 0


# -- what is too large ----------------------------------------------------------------------------


@pytest.mark.parametrize("http_settings", [{"max_body_bytes": 1000}])
async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(http: HttpServer) -> None:
    async with raw(http) as client:
        client.send(head(http, ECHO, "Content-Length: 1000000000000"))

        status, answer = await client.answer()

    assert (status, answer["error"]["code"]) == (413, "invalid_data")
    assert "http.max_body_bytes" in answer["error"]["message"]


@pytest.mark.parametrize("http_settings", [{"max_body_bytes": 100_000}])
async def test_a_body_of_no_known_length_is_refused_where_it_passes_the_bound(
    http: HttpServer,
) -> None:
    part = b"10000\r\n" + b" " * 65536 + b"\r\n"
    async with raw(http) as client:
        client.send(head(http, ECHO, "Transfer-Encoding: chunked"), part, part)

        status, answer = await client.answer()

    assert (status, answer["error"]["code"]) == (413, "invalid_data")


async def test_a_body_that_grows_when_it_is_unpacked_is_not_unpacked(http: HttpServer) -> None:
    packed = gzip.compress(b'{"text": "a"}')
    more = (f"Content-Length: {len(packed)}", "Content-Encoding: gzip")
    async with raw(http) as client:
        client.send(head(http, ECHO, *more), packed)

        status, answer = await client.answer()

    assert (status, answer["error"]["code"]) == (415, "invalid_data")


# -- who is too slow ------------------------------------------------------------------------------


@pytest.mark.parametrize("http_settings", [{"header_timeout_s": 0.1}])
@pytest.mark.parametrize("begun", [b"", b"POST /v1/odd/echo HTTP/1.1\r\nHost: loc"])
async def test_a_head_that_does_not_come_to_its_end_is_given_up(
    http: HttpServer, begun: bytes
) -> None:
    async with raw(http) as client:
        client.send(begun)

        assert await client.closed()
    assert http.app.metrics.cut_off == {"header_timeout_s": 1}


@pytest.mark.parametrize("http_settings", [{"header_timeout_s": 0.1}])
async def test_a_second_head_that_does_not_come_to_its_end_is_given_up_too(
    http: HttpServer,
) -> None:
    async with raw(http) as client:
        client.send(whole(http, b'{"text": "a"}'))
        first = await client.answer()
        client.send(b"POST /v1")

        assert first[0] == 200
        assert await client.closed()


@pytest.mark.parametrize("http_settings", [{"header_timeout_s": 0.1, "keep_alive_s": 30.0}])
async def test_a_connection_that_is_idle_between_requests_is_not_slow(http: HttpServer) -> None:
    async with raw(http) as idle:
        idle.send(whole(http, b'{"text": "a"}'))
        assert (await idle.answer())[0] == 200
        async with raw(http) as slow:
            await slow.closed()  # by then the idle one would be gone as well
        idle.send(whole(http, b'{"text": "b"}'))

        assert (await idle.answer())[0] == 200


@pytest.mark.parametrize("http_settings", [{"body_timeout_s": 0.1}])
async def test_a_body_that_does_not_come_is_a_time_out(http: HttpServer) -> None:
    async with raw(http) as client:
        client.send(head(http, ECHO, "Content-Length: 100"), b'{"text"')

        status, answer = await client.answer()

    assert (status, answer["error"]["code"]) == (504, "timeout")


@pytest.mark.parametrize("http_settings", [{"write_timeout_s": 0.2, "heartbeat_s": 0.05}])
async def test_a_client_that_never_reads_is_cut_off_and_its_stream_ends(
    http: HttpServer, odd: Odd
) -> None:
    async with raw(http) as client:
        sock: socket.socket = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's has it
        client.send(whole(http, b'{"to": 1000000, "padding": 50000}', "/v1/odd/count"))
        async with asyncio.timeout(LIMIT_S):
            await odd.stopped.wait()

    assert http.app.metrics.cut_off == {"write_timeout_s": 1}
    assert http.app.limits.streams == 0
    assert await still_answers(http)


@pytest.mark.parametrize("http_settings", [{"write_timeout_s": 0.2, "requests_per_s": 0.0}])
async def test_answers_that_nobody_reads_do_not_pile_up(http: HttpServer) -> None:
    body = json.dumps({"text": "x" * 1000, "times": 1000}).encode()
    async with raw(http) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's has it
        client.send(whole(http, body) * 30)
        async with asyncio.timeout(LIMIT_S):
            while not http.app.metrics.cut_off:
                assert await still_answers(http)

    assert http.app.metrics.cut_off == {"write_timeout_s": 1}


# -- who is too many ------------------------------------------------------------------------------


@pytest.mark.parametrize("http_settings", [{"max_connections": 3}])
async def test_one_connection_too_many_is_closed_and_the_others_go_on(http: HttpServer) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw(http)) for _ in range(3)]
        for client in clients:
            client.send(whole(http, b'{"text": "a"}'))
            assert (await client.answer())[0] == 200
        one_more = await stack.enter_async_context(raw(http))

        assert await one_more.closed()
        assert http.app.metrics.cut_off == {"max_connections": 1}
        clients[0].send(whole(http, b'{"text": "a"}'))
        assert (await clients[0].answer())[0] == 200


@pytest.mark.parametrize(
    "http_settings", [{"requests_per_s": 0.0, "max_connections": 1100, "max_streams": 1000}]
)
async def test_a_thousand_idle_streams_are_borne_and_end_with_their_clients(
    http: HttpServer, odd: Odd
) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw(http)) for _ in range(1000)]
        for client in clients:
            client.send(whole(http, b'{"to": 1, "wait": true}', "/v1/odd/count"))
        for client in clients:
            async with asyncio.timeout(LIMIT_S):
                await client.reader.readuntil(b"data: 0\n\n")

        assert odd.counting == 1000
        assert await still_answers(http)

    async with asyncio.timeout(LIMIT_S):
        while odd.counting:
            odd.stopped.clear()
            await odd.stopped.wait()
    assert http.app.limits.streams == 0


async def test_many_requests_on_one_connection_are_answered_in_their_order(
    http: HttpServer,
) -> None:
    texts = [str(number) for number in range(50)]
    async with raw(http) as client:
        client.send(*(whole(http, json.dumps({"text": text}).encode()) for text in texts))

        assert [(await client.answer())[1]["text"] for _ in texts] == texts

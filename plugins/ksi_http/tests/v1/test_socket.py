"""The daemon's own protocol over a WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from ksi_client import AsyncClient
from ksi_http.testing import HttpServer


class Socket:
    """Speaks the protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, frame: dict[str, Any]) -> None:
        await self.socket.send_str(json.dumps(frame, indent=1))

    async def read(self) -> Any:
        return json.loads(await self.socket.receive_str(timeout=20))

    async def ask(self, name: str, /, **data: Any) -> Any:
        await self.send({"id": 1, "event": name, "data": data})
        return await self.read()


@asynccontextmanager
async def connected(http: HttpServer, key: str | None = None) -> AsyncIterator[Socket]:
    protocols = ("ksi.v1", f"bearer.{key or http.key}")
    url = http.url + "/v1/socket"
    async with http.session.ws_connect(url, protocols=protocols) as socket:
        assert socket.protocol == "ksi.v1"
        yield Socket(socket)


async def test_events_are_sent_and_answered(http: HttpServer) -> None:
    async with connected(http) as socket:
        answer = await socket.ask("odd:echo", text="hello")
        await socket.send({"id": 2, "event": "odd:count", "data": {"to": 2}})
        streamed = [await socket.read() for _ in range(3)]

    assert answer["result"]["text"] == "hello"
    assert [frame.get("chunk") for frame in streamed][:2] != [None, None]


async def test_a_key_may_do_there_what_it_may_elsewhere(
    http: HttpServer, make_key: Callable[..., Any]
) -> None:
    async with connected(http, await make_key("odd:read")) as socket:
        answers = {
            "echo": await socket.ask("odd:echo", text="hello"),
            "stop": await socket.ask("system:shutdown"),
            "keys": await socket.ask("http:key_create", name="x", scopes=["*"]),
            "subscribe": await socket.ask("router:subscribe", pattern="odd:*"),
            "serve": await socket.ask("router:serve", event="my:tool"),
        }

    assert "result" in answers.pop("echo")
    assert {name: each["error"]["code"] for name, each in answers.items()} == dict.fromkeys(
        answers, "denied"
    )


async def test_events_are_subscribed_to_and_served_where_that_is_granted(
    http: HttpServer, client: AsyncClient, make_key: Callable[..., Any]
) -> None:
    key = await make_key("events:*", user="anna")
    async with connected(http, key) as socket, asyncio.TaskGroup() as tasks:
        await socket.ask("router:subscribe", pattern="odd:news")
        await client.request(
            "router:publish", {"event": "odd:news", "data": {}}, context={"user": "anna"}
        )
        news = await socket.read()
        await socket.ask("router:serve", event="my:tool")
        asked = tasks.create_task(client.request("my:tool", {"n": 1}))
        request = await socket.read()
        await socket.send({"id": request["id"], "result": {"n": 2}})
        answer = await asked

    assert news["event"] == "odd:news"
    assert request["data"] == {"n": 1}
    assert answer == {"n": 2}


async def test_it_ends_with_its_key(
    http: HttpServer, client: AsyncClient, make_key: Callable[..., Any]
) -> None:
    key = await make_key("odd:read")
    async with connected(http, key) as socket:
        await client.request("http:key_revoke", {"id": key.split("_")[2]})

        message = await socket.socket.receive(timeout=20)

    assert message.type is aiohttp.WSMsgType.CLOSE
    assert message.data == aiohttp.WSCloseCode.TRY_AGAIN_LATER


async def test_without_a_key_or_from_a_foreign_page_it_is_refused(http: HttpServer) -> None:
    url = http.url + "/v1/socket"
    foreign = {**http.authorization(), "Origin": "https://evil.example"}

    for headers, status in (({}, 401), (foreign, 403)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.session.ws_connect(url, headers=headers)
        assert refused.value.status == status
    assert (await http.get("/v1/socket"))[0] == 400


async def test_what_is_no_text_ends_it(http: HttpServer) -> None:
    async with connected(http) as socket:
        await socket.socket.send_bytes(b"\x00")
        message = await socket.socket.receive(timeout=20)

    assert message.data == aiohttp.WSCloseCode.UNSUPPORTED_DATA

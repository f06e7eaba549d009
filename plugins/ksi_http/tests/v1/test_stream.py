"""The bus as a stream of server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from ksi_client import AsyncClient
from ksi_http.testing import HttpServer


class Reader:
    """Reads a stream, an event at a time."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.id = ""

    async def next(self) -> Any:
        """Return the next event's data; notes its id."""
        async for line in self.response.content:
            if line.startswith(b"id: "):
                self.id = line[4:].decode().strip()
            if line.startswith(b"data: "):
                return json.loads(line[6:])
        return None

    async def begun(self) -> None:
        """Wait until events can come: its first id is there."""
        async for line in self.response.content:
            if line.startswith(b"id: "):
                self.id = line[4:].decode().strip()
                return


@asynccontextmanager
async def streaming(
    http: HttpServer, path: str = "?pattern=odd:*", key: str | None = None, last: str = ""
) -> AsyncIterator[Reader]:
    headers = http.authorization(key) | ({"Last-Event-ID": last} if last else {})
    url = http.url + "/v1/events/stream" + path
    async with http.session.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        yield Reader(response)


async def publish(client: AsyncClient, *numbers: int, **context: Any) -> None:
    for number in numbers:
        news = {"event": "odd:news", "data": {"number": number}}
        await client.request("router:publish", news, context=context or None)


async def test_events_come_as_they_happen(http: HttpServer, client: AsyncClient) -> None:
    async with streaming(http) as reader:
        await reader.begun()
        await client.request("router:publish", {"event": "even:news", "data": {}})
        await publish(client, 1)

        event = await reader.next()

    assert (event["event"], event["data"]) == ("odd:news", {"number": 1})
    assert event["context"]["id"]


async def test_a_stream_that_was_cut_goes_on_without_a_gap(
    http: HttpServer, client: AsyncClient
) -> None:
    async with streaming(http) as reader:
        await reader.begun()
        await publish(client, 1, 2, 3)
        first = await reader.next()
    await publish(client, 4)

    async with streaming(http, last=reader.id) as again:
        rest = [(await again.next())["data"]["number"] for _ in range(3)]
        await publish(client, 5)
        rest.append((await again.next())["data"]["number"])

    assert first["data"]["number"] == 1
    assert rest == [2, 3, 4, 5]


class TestOfLittleRoom:
    """What can't be taken up says so."""

    @pytest.fixture
    def http_settings(self) -> dict[str, Any]:
        return {"resume_events": 2}

    async def test_what_is_lost_is_counted(self, http: HttpServer, client: AsyncClient) -> None:
        async with streaming(http) as reader:
            await reader.begun()
        async with streaming(http) as witness:
            await witness.begun()
            await publish(client, 1, 2, 3, 4)
            while (await witness.next())["data"].get("number") != 4:
                pass

        async with streaming(http, last=reader.id) as again:
            events = [await again.next() for _ in range(3)]

        assert events[0] == {"event": "router:lagged", "data": {"missed": 2}}
        assert [event["data"]["number"] for event in events[1:]] == [3, 4]


async def test_a_stream_of_another_or_of_another_time_begins_anew_and_says_so(
    http: HttpServer, client: AsyncClient, make_key: Callable[..., Any]
) -> None:
    async with streaming(http) as reader:
        await reader.begun()
    other = await make_key("events:read")

    for mark, key in ((reader.id, other), ("0123456789abcdef-7", None)):
        async with streaming(http, last=mark, key=key) as again:
            event = await again.next()
        assert event["event"] == "router:reconnected"
        assert again.id != reader.id


async def test_only_who_may_read_events_sees_them_and_only_his(
    http: HttpServer, client: AsyncClient, make_key: Callable[..., Any]
) -> None:
    anna = await make_key("events:read", user="anna")
    chat = await make_key("chat:*")
    async with streaming(http, key=anna) as reader:
        await reader.begun()
        await publish(client, 1, user="ben")
        await publish(client, 2, user="anna")

        event = await reader.next()
        denied, _ = await http.get("/v1/events/stream", key=chat)

    assert event["data"]["number"] == 2
    assert denied == 403


async def test_what_makes_no_sense_is_refused(http: HttpServer) -> None:
    many = "&".join(f"pattern=odd:n{n}" for n in range(21)).replace("n1", "na")

    assert (await http.get("/v1/events/stream?pattern=A%20b"))[0] == 400
    assert (await http.get("/v1/events/stream?" + many))[0] == 400
    assert (await http.get("/v1/events/stream", headers={"Last-Event-ID": "7"}))[0] == 400


async def test_a_stream_ends_with_its_key(
    http: HttpServer, client: AsyncClient, make_key: Callable[..., Any]
) -> None:
    key = await make_key("events:read")
    async with streaming(http, key=key) as reader:
        await reader.begun()
        await client.request("http:key_revoke", {"id": key.split("_")[2]})

        async with asyncio.timeout(20):
            last = await reader.next()

    assert last["error"]["code"] == "denied"

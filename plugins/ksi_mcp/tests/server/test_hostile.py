"""What programs send that they should not."""

import asyncio
import contextlib
import io
from collections.abc import Callable
from typing import Any, Final

import pytest

from ksi_client import AsyncClient
from ksi_http.testing import HttpServer
from ksi_mcp.tests.server.conftest import Connect
from ksi_mcp.tests.server.tools import Toolbox

HEAD: Final = {"Accept": "application/json, text/event-stream"}
VERSION: Final = {"MCP-Protocol-Version": "2025-11-25"}
MODERN: Final = {"MCP-Protocol-Version": "2026-07-28"}
HELLO: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}
SAME: Final = (1, "1", "01", " 1", "+1")  # to the SDK, one id
MakeKey = Callable[..., Any]


class Raw:
    """A session of which every message is written by hand."""

    def __init__(self, http: HttpServer, key: str | None = None) -> None:
        self.http = http
        self.key = key
        self.session: dict[str, str] = {}

    async def begin(self) -> None:
        _, headers, _ = await self.send({"id": 0, "method": "initialize", "params": HELLO})
        self.session = {"Mcp-Session-Id": headers["Mcp-Session-Id"]}
        await self.send({"method": "notifications/initialized"})

    async def send(self, message: Any, **headers: str) -> tuple[int, Any, str]:
        body = {"jsonrpc": "2.0", **message} if isinstance(message, dict) else message
        given = self.http.authorization(self.key) | HEAD | VERSION | self.session | headers
        url = f"{self.http.url}/mcp"
        async with self.http.session.post(url, json=body, headers=given) as answer:
            return answer.status, answer.headers, await answer.text()

    async def call(
        self, number: Any, name: str, arguments: Any, **headers: str
    ) -> tuple[int, Any, str]:
        params = {"name": name, "arguments": arguments}
        asked = {"id": number, "method": "tools/call", "params": params}
        return await self.send(asked, **headers)


@pytest.fixture
async def raw(http: HttpServer) -> Raw:
    """A session that has begun."""
    session = Raw(http)
    await session.begin()
    return session


async def test_a_session_bears_what_should_not_be_sent(raw: Raw, toolbox: Toolbox) -> None:
    cancelled = {"method": "notifications/cancelled", "params": {"requestId": 4711}}

    answers = [
        await raw.send(cancelled),
        await raw.send({"id": 1, "method": "tools/call", "params": {"name": 3}}),
        await raw.send({"id": 2, "method": "no/such/thing"}),
        await raw.send({"id": {"a": 1}, "method": "tools/list"}),
        await raw.send([{"jsonrpc": "2.0", "id": 3, "method": "tools/list"}]),
        await raw.send({"id": 4, "method": "tools/list", "params": {"cursor": "%%%"}}),
        await raw.send({"id": 77, "result": {"nobody": "asked"}}),
        await raw.send({"id": 5, "method": "logging/setLevel", "params": {"level": "loud"}}),
        await raw.call(6, "add", ["not", "an", "object"]),
        await raw.call(7, "nothing", {}),
    ]
    _, _, sound = await raw.call(8, "add", {"a": 20, "b": 22})

    assert [status for status, _, _ in answers if status >= 500] == []
    assert answers[0][0] == 202
    assert '\\"sum\\":42' in sound


async def test_the_same_id_twice_hangs_nobody_and_gets_nobody_elses_answer(
    http: HttpServer, make_key: MakeKey, toolbox: Toolbox
) -> None:
    raw = Raw(http, await make_key("*", user="ann", may_act_for_others=True))
    await raw.begin()

    async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks:
        of_ann = tasks.create_task(raw.call(1, "wait", {}))
        await toolbox.begun.wait()
        of_bob = [await raw.call(same, "add", {}, **{"x-user-id": "bob"}) for same in SAME]
        _, _, other = await raw.call(2, "add", {"a": 20, "b": 22})
        await raw.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
        _, _, told = await of_ann

    assert [status for status, _, _ in of_bob] == [409] * len(SAME)
    assert "give each an id of its own" in of_bob[0][2]
    assert '\\"sum\\":42' in other
    assert toolbox.ended.is_set()
    assert "Request cancelled" in told


async def test_an_id_is_that_of_its_call_until_it_has_ended_though_its_client_has_gone(
    raw: Raw, toolbox: Toolbox
) -> None:
    async with asyncio.timeout(20.0):
        first = asyncio.create_task(raw.call(7, "wait", {}))
        await toolbox.begun.wait()
        first.cancel()
        await asyncio.wait([first])
        await raw.send({"id": 8, "method": "ping"})
        again, _, _ = await raw.call(7, "add", {"a": 20, "b": 22})
        await raw.send({"method": "notifications/cancelled", "params": {"requestId": 7}})
        await toolbox.ended.wait()
        while (answer := await raw.call(7, "add", {"a": 20, "b": 22}))[0] == 409:
            pass

    assert again == 409
    assert '\\"sum\\":42' in answer[2]


class TestOneStream:
    """Where a key may have one stream."""

    @pytest.fixture
    def http_settings(self) -> dict[str, Any]:
        """One stream."""
        return {"max_streams_per_key": 1}

    async def test_who_is_told_to_come_again_has_done_nothing(
        self, http: HttpServer, raw: Raw, toolbox: Toolbox
    ) -> None:
        async with asyncio.timeout(20.0):
            first = asyncio.create_task(raw.call(1, "wait", {}))
            await toolbox.begun.wait()
            busy = await raw.call(2, "shout", {"text": "first"})
            first.cancel()
            await asyncio.wait([first])
            await raw.send({"method": "notifications/initialized"})
            still = await raw.call(3, "shout", {"text": "second"})
            await raw.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
            await toolbox.ended.wait()
            while (await raw.call(4, "shout", {"text": "third"}))[0] == 429:
                pass

        assert (busy[0], still[0]) == (429, 429)
        assert "http.max_streams_per_key" in busy[2]
        assert toolbox.calls == ["third"]


async def test_a_request_without_a_key_or_of_another_page_gets_nowhere(http: HttpServer) -> None:
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
    bare = await http.session.post(f"{http.url}/mcp", json=hello, headers=HEAD)
    page = await http.post("/mcp", hello, headers={**HEAD, "Origin": "https://evil.example"})
    host = await http.post("/mcp", hello, headers={**HEAD, "Host": "evil.example"})
    large = await http.session.post(
        f"{http.url}/mcp", data=io.BytesIO(b"x" * 5_000_000), headers=http.authorization() | HEAD
    )
    old = {**HEAD, **VERSION, "Mcp-Session-Id": "0" * 32}
    gone = await http.post("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=old)

    assert (bare.status, page[0], host[0], large.status) == (401, 403, 403, 413)
    assert gone[0] == 404


async def test_what_comes_back_with_answers_is_ours_and_the_callers_own(
    http: HttpServer, make_key: MakeKey
) -> None:
    def request(**more: Any) -> dict[str, Any]:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
        }
        params = {
            "name": "ask_user",
            "arguments": {"question": "Which colour?"},
            "_meta": meta,
            **more,
        }
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

    routed = {"Mcp-Method": "tools/call", "Mcp-Name": "ask_user"}
    headers = {**HEAD, **MODERN, **routed}
    _, asked = await http.post("/mcp", request(), headers=headers)
    result = asked["result"]
    assert result["resultType"] == "input_required"
    answer = {"question": {"action": "accept", "content": {"answer": "blue"}}}
    sealed = {"requestState": result["requestState"], "inputResponses": answer}
    tampered = {**sealed, "requestState": result["requestState"][:-4] + "AAAA"}

    _, forged = await http.post("/mcp", request(**tampered), headers=headers)
    other = await make_key("*")
    _, stolen = await http.post("/mcp", request(**sealed), headers=headers, key=other)
    _, right = await http.post("/mcp", request(**sealed), headers=headers)

    assert forged["error"]["code"] == -32602
    assert stolen["error"]["code"] == -32602
    assert right["result"]["content"][0]["text"] == "blue"


class TestFewSessions:
    """Where only three sessions may be open, and two of one key."""

    @pytest.fixture
    def ksi_settings(self) -> list[str]:
        """Three sessions, and two."""
        return ["mcp.max_sessions=3", "mcp.max_sessions_per_key=2"]

    async def test_sessions_are_bounded_for_each_key_and_can_be_ended(
        self, http: HttpServer, make_key: MakeKey
    ) -> None:
        key, hello = await make_key("*"), {"id": 0, "method": "initialize", "params": HELLO}
        of_one, of_other = [Raw(http) for _ in range(3)], [Raw(http, key) for _ in range(2)]
        for each in of_one:
            await each.begin()
        await of_other[0].begin()

        alive = [(await each.send({"id": 1, "method": "ping"}))[0] for each in of_one]
        refused, _, why = await of_other[1].send(hello)
        given = http.authorization() | HEAD | VERSION | of_one[1].session
        ended = await http.session.delete(f"{http.url}/mcp", headers=given)
        accepted, _, _ = await of_other[1].send(hello)

        assert alive == [404, 200, 200]
        assert refused == 429
        assert "mcp.max_sessions" in why
        assert ended.status == 200
        assert accepted == 200

    async def test_a_session_that_is_used_makes_room_for_none(self, http: HttpServer) -> None:
        used = [Raw(http), Raw(http)]
        async with contextlib.AsyncExitStack() as stack:
            for each in used:
                await each.begin()
                given = http.authorization() | {"Accept": "text/event-stream"} | each.session
                listening = http.session.get(f"{http.url}/mcp", headers=given)
                await stack.enter_async_context(listening)

            refused, _, why = await Raw(http).send({"id": 0, "method": "initialize"})

        assert refused == 429
        assert "mcp.max_sessions_per_key" in why


async def test_a_client_that_never_reads_holds_up_nobody(
    http: HttpServer, raw: Raw, connect: Connect
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", http.port)
    key = http.authorization()["Authorization"]
    for number in range(50):
        body = f'{{"jsonrpc":"2.0","id":{number},"method":"tools/list"}}'
        head = (
            f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {key}\r\n"
            f"Content-Type: application/json\r\nAccept: {HEAD['Accept']}\r\n"
            f"Mcp-Session-Id: {raw.session['Mcp-Session-Id']}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        writer.write(head.encode())
    await writer.drain()

    async with asyncio.timeout(20.0):
        _, _, same = await raw.call(99, "add", {"a": 20, "b": 22})
        async with connect() as program:
            other = await program.call_tool("add", {"a": 1, "b": 2})
    writer.close()

    assert '\\"sum\\":42' in same
    assert other.structured_content == {"sum": 3}


async def test_a_key_that_is_revoked_ends_what_it_listens_to(
    http: HttpServer, raw: Raw, client: AsyncClient, make_key: MakeKey
) -> None:
    key = await make_key("*")
    listener = Raw(http, key)
    await listener.begin()
    given = http.authorization(key) | {"Accept": "text/event-stream"} | listener.session
    stream = await http.session.get(f"{http.url}/mcp", headers=given)

    await client.request("http:key_revoke", {"id": key.split("_")[2]})
    async with asyncio.timeout(20.0):
        await stream.content.read()
    status, _, _ = await listener.send({"id": 1, "method": "tools/list"})

    assert stream.status == 200
    assert status == 401

"""What programs send that they should not."""

import asyncio
import contextlib
import io
from collections.abc import Callable
from typing import Any, Final, cast

import anyio
import mcp_types as types
import pytest
from mcp.shared.message import SessionMessage

from ksi_client import AsyncClient, Subscription
from ksi_daemon.protocol import KsiError, Unavailable
from ksi_http.testing import HttpServer
from ksi_mcp.events import McpServing
from ksi_mcp.server import news
from ksi_mcp.server.news import News
from ksi_mcp.server.serving import Serving
from ksi_mcp.tests.server.conftest import Connect
from ksi_mcp.tests.server.tools import Toolbox
from ksi_system.events import EventDescription

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
        _, _, other = await raw.call(2, "odd_whose", {}, **{"x-user-id": "bob"})
        await raw.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
        _, _, told = await of_ann

    assert [status for status, _, _ in of_bob] == [409] * len(SAME)
    assert "give each an id of its own" in of_bob[0][2]
    assert '\\"user\\":\\"bob\\"' in other
    assert toolbox.ended.is_set()
    assert "Request cancelled" in told


async def leave(raw: Raw, number: int, toolbox: Toolbox) -> None:
    """Make a call, and go while it waits."""
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(raw.call(number, "wait", {}), name="call")
        await toolbox.begun.wait()
        call.cancel()


async def test_an_id_is_that_of_its_call_until_it_has_ended_though_its_client_has_gone(
    raw: Raw, toolbox: Toolbox
) -> None:
    async with asyncio.timeout(20.0):
        await leave(raw, 7, toolbox)
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
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(raw.call(1, "wait", {}), name="call")
                await toolbox.begun.wait()
                busy = await raw.call(2, "shout", {"text": "first"})
                first.cancel()
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


ROUTED: Final = {**HEAD, **MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "ask_user"}


def question(elicits: str = "form", **more: Any) -> dict[str, Any]:
    """Return the request that has a person asked, by a program that knows no sessions."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {elicits: {}}},
    }
    arguments = {"question": "Which colour?"}
    params = {"name": "ask_user", "arguments": arguments, "_meta": meta, **more}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def test_what_comes_back_with_answers_is_ours_and_the_callers_own(
    http: HttpServer, make_key: MakeKey
) -> None:
    _, asked = await http.post("/mcp", question(), headers=ROUTED)
    result = asked["result"]
    assert result["resultType"] == "input_required"
    answer = {"question": {"action": "accept", "content": {"answer": "blue"}}}
    sealed = {"requestState": result["requestState"], "inputResponses": answer}
    tampered = {**sealed, "requestState": result["requestState"][:-4] + "AAAA"}

    _, forged = await http.post("/mcp", question(**tampered), headers=ROUTED)
    other = await make_key("*")
    _, stolen = await http.post("/mcp", question(**sealed), headers=ROUTED, key=other)
    _, right = await http.post("/mcp", question(**sealed), headers=ROUTED)

    assert forged["error"]["code"] == -32602
    assert stolen["error"]["code"] == -32602
    assert right["result"]["content"][0]["text"] == "blue"


async def test_who_has_not_answered_is_asked_again_by_the_same_call(
    http: HttpServer, client: AsyncClient
) -> None:
    _, told = await http.post("/mcp", question(), headers=ROUTED)
    blue = {"action": "accept", "content": {"answer": "blue"}}
    wrong: list[dict[str, Any]] = [{}, {"other": blue}, {"question": {"roots": []}}]
    for no_answer in wrong:
        state = {"requestState": told["result"]["requestState"]}
        _, told = await http.post(
            "/mcp", question(**state, inputResponses=no_answer), headers=ROUTED
        )
        asked = told["result"]["inputRequests"]["question"]
        assert asked["params"]["message"] == "Which colour?"
    state = {"requestState": told["result"]["requestState"]}
    _, told = await http.post(
        "/mcp", question(**state, inputResponses={"question": blue}), headers=ROUTED
    )
    calls = (await client.request("tool:calls"))["calls"]

    assert told["result"]["content"][0]["text"] == "blue"
    assert [each["status"] for each in calls] == ["done"]


async def test_a_program_that_has_no_forms_is_sent_none(http: HttpServer) -> None:
    _, told = await http.post("/mcp", question(elicits="url"), headers=ROUTED)

    assert told["result"]["isError"]
    assert told["result"]["_meta"]["ksi/status"] == "waiting"


async def test_the_progress_of_a_call_goes_to_whoever_made_it_first(
    client: AsyncClient, toolbox: Toolbox
) -> None:
    call = {"name": "wait", "call_id": "c1"}
    async with (
        asyncio.timeout(20.0),
        contextlib.aclosing(client.stream("mcp:call", call)) as first,
        contextlib.aclosing(client.stream("mcp:call", call)) as second,
        asyncio.TaskGroup() as tasks,
    ):
        told = tasks.create_task(anext(first), name="first")
        await toolbox.begun.wait()
        late = tasks.create_task(anext(second), name="second")
        await client.request("system:health")
        await client.publish("tool:progress", {"call_id": "c1", "message": "half", "name": "wait"})

        assert (await told)["message"] == "half"
        late.cancel()


async def test_mcp_that_breaks_begins_anew_and_waits_for_a_daemon_that_is_away(
    http: HttpServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe = AsyncClient.subscribe
    troubles = [Unavailable("the daemon is away"), RuntimeError("the news broke")]

    async def lost(self: AsyncClient, pattern: str) -> Subscription:
        if troubles:
            raise troubles.pop()
        return await subscribe(self, pattern)

    monkeypatch.setattr(AsyncClient, "subscribe", lost)
    broken, _, _ = await Raw(http).send({"id": 0, "method": "initialize", "params": HELLO})
    async with connect() as program:
        result = await program.call_tool("add", {"a": 1, "b": 2})
    again, _, _ = await Raw(http).send({"id": 0, "method": "initialize", "params": HELLO})

    assert (broken, again) == (500, 200)
    assert result.structured_content == {"sum": 3}
    assert troubles == []


class Hearing:
    """A session that hears what it is told, or never reads.

    Args:
        reads: Whether it does.
    """

    def __init__(self, *, reads: bool) -> None:
        self.session, self._connection, self.outbound = self, self, self
        self.heard = asyncio.Event()
        self._reads = reads

    async def notify(self, method: str, params: Any) -> None:
        if not self._reads:
            await asyncio.Event().wait()
        self.heard.set()


async def test_who_does_not_read_keeps_the_news_from_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(news, "TELL_S", 1000.0)
    known, deaf, hearing = News(), Hearing(reads=False), Hearing(reads=True)
    for each in (deaf, hearing):
        known.subscribe(cast("news.Ctx", each), "default", "ksi://health")

    async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks:
        for told in (known.changed("tools"), known.updated("ksi://health")):
            hearing.heard.clear()
            telling = tasks.create_task(told, name="news")
            await hearing.heard.wait()
            telling.cancel()


class Slow:
    """A daemon that says nothing before it is told to."""

    name, tenant = "slow", "default"

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    def may(self, scope: str) -> bool:
        return False

    async def events(self) -> dict[str, EventDescription]:
        return {}

    async def ask(self, event: str, data: Any = None, *, result_type: Any = None) -> Any:
        self.begun.set()
        await self.go.wait()
        raise Unavailable("it says nothing")

    def follow(self, event: str, data: Any, *, result_type: Any) -> Any:
        raise NotImplementedError

    def shown(self, error: KsiError) -> str:
        return error.message


async def test_where_all_come_one_way_an_id_is_one_requests_own_too() -> None:
    slow = Slow()
    server = Serving(McpServing(), lambda _: slow).server()
    say, incoming = anyio.create_memory_object_stream[Any](9)
    outgoing, hear = anyio.create_memory_object_stream[Any](9)

    async def said(**message: Any) -> None:
        whole = {"jsonrpc": "2.0", **message}
        await say.send(SessionMessage(types.jsonrpc_message_adapter.validate_python(whole)))

    async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks, say, hear:
        options = server.create_initialization_options()
        tasks.create_task(server.run(incoming, outgoing, options), name="server")
        await said(id=0, method="initialize", params=HELLO)
        await hear.receive()
        await said(method="notifications/initialized")
        await said(id=1, method="tools/list")
        await slow.begun.wait()
        await said(id="1", method="tools/list")
        second = (await hear.receive()).message
        slow.go.set()
        first = (await hear.receive()).message
        await said(id=1, method="tools/list")
        third = (await hear.receive()).message
        say.close()

    assert isinstance(second, types.JSONRPCError)
    assert second.error.code == types.INVALID_REQUEST
    assert "give each an id of its own" in second.error.message
    assert [getattr(each, "id", None) for each in (first, second, third)] == [1, "1", 1]


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

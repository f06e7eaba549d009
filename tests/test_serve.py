"""Events that a connection answers: the daemon asks, the peer answers, and dies now and then."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from ksi_client import (
    AsyncClient,
    Busy,
    Conflict,
    Context,
    Denied,
    Failed,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import current_context, event_contributor, event_handler
from ksi_daemon.loader import EntryPoint
from ksi_daemon.principals import Principal
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import Wire, module_plugin

MakeWire = Callable[[], Awaitable[Wire]]
MakeClient = Callable[..., Awaitable[AsyncClient]]


@event_handler("who:asks")
async def who_asks() -> dict[str, Any]:
    context = current_context()
    assert context is not None
    return {"user": context.user, "parent": context.parent, "tenant": context.tenant}


@event_contributor("mood:tell")
def tell_mood() -> str:
    return "fine"


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    return [module_plugin("some", who=who_asks, mood=tell_mood)]


class Server:
    """Handlers of a client."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.contexts: list[Context] = []

    async def echo(self, data: Any, context: Context) -> Any:
        """Give back what comes."""
        self.contexts.append(context)
        return {"echo": data}

    async def never(self, data: Any, context: Context) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def count(self, data: Any, context: Context) -> AsyncGenerator[int]:
        for number in range(data["to"]):
            yield number

    async def endless(self, data: Any, context: Context) -> AsyncGenerator[int]:
        try:
            while True:
                yield 1
        finally:
            self.ended.set()

    async def busy(self, data: Any, context: Context) -> None:
        raise Busy("not now", retry_after_s=2.5, details={"queue": 3})

    async def broken(self, data: Any, context: Context) -> None:
        raise ZeroDivisionError("oh")


@pytest.fixture
def server() -> Server:
    return Server()


async def until(happened: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await happened.wait()


async def test_a_client_answers_an_event_for_others(
    client: AsyncClient, connect: MakeClient, server: Server
) -> None:
    tool = await connect()
    await tool.serve("my:tool", server.echo)

    answer = await client.request("my:tool", {"a": [1, None, "ü"]})

    assert answer == {"echo": {"a": [1, None, "ü"]}}
    assert server.contexts[0].origin == "owner"
    described = (await client.request("system:describe", {"event": "my:tool"}))["events"][0]
    assert described["doc"] == "Give back what comes."


async def test_a_client_may_ask_itself(client: AsyncClient, server: Server) -> None:
    await client.serve("my:tool", server.echo)

    assert await client.request("my:tool", 1) == {"echo": 1}


async def test_a_client_answers_with_a_stream(
    client: AsyncClient, connect: MakeClient, server: Server
) -> None:
    tool = await connect()
    await tool.serve("my:count", server.count)
    await tool.serve("my:endless", server.endless)

    counted = [chunk async for chunk in client.stream("my:count", {"to": 1000})]
    async with aclosing(client.stream("my:endless")) as chunks:
        assert await anext(chunks) == 1

    assert counted == list(range(1000))
    await until(server.ended)


async def test_its_errors_reach_the_asker_as_they_are(
    client: AsyncClient, connect: MakeClient, server: Server
) -> None:
    tool = await connect()
    await tool.serve("my:busy", server.busy)
    await tool.serve("my:broken", server.broken)

    with pytest.raises(Busy, match="not now") as caught:
        await client.request("my:busy")
    with pytest.raises(Failed, match="ZeroDivisionError"):
        await client.request("my:broken")

    assert caught.value.retry_after_s == 2.5
    assert caught.value.details == {"queue": 3}


async def test_a_served_event_has_a_deadline(
    client: AsyncClient, connect: MakeClient, server: Server
) -> None:
    tool = await connect()
    await tool.serve("my:never", server.never, timeout_s=0.1)

    with pytest.raises(TimedOut, match="my:never"):
        await client.request("my:never", timeout_s=None)

    await until(server.ended)


async def test_who_gives_up_stops_the_peer_s_work(
    client: AsyncClient, connect: MakeClient, server: Server
) -> None:
    tool = await connect()
    await tool.serve("my:never", server.never)

    with pytest.raises(TimedOut):
        await client.request("my:never", timeout_s=0.1)

    await until(server.ended)


async def test_when_the_peer_dies_the_asker_is_told_and_the_name_is_free(
    client: AsyncClient, wire: MakeWire
) -> None:
    tool = await wire()
    await tool.ask("router:serve", {"event": "my:tool"})

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_raised(client, "my:tool"))
        await tool.receive()
        await tool.close()

    assert isinstance(asking.result(), Unavailable)
    assert "gone away" in str(asking.result())
    assert isinstance(await _raised(client, "my:tool"), NotFound)


@pytest.mark.parametrize("listens", [True, False])
async def test_a_peer_that_sends_nothing_more_serves_nothing_more(
    client: AsyncClient, wire: MakeWire, listens: bool
) -> None:
    tool = await wire()
    await tool.ask("router:serve", {"event": "my:tool"})
    if listens:
        await tool.ask("router:subscribe", {"pattern": "news:*"})

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_raised(client, "my:tool"))
        await tool.receive()
        tool.writer.write_eof()

    assert isinstance(asking.result(), Unavailable)
    assert isinstance(await _raised(client, "my:tool"), NotFound)


async def test_when_the_peer_dies_a_stream_ends_with_an_error(
    client: AsyncClient, wire: MakeWire
) -> None:
    tool = await wire()
    await tool.ask("router:serve", {"event": "my:tool", "streams": True})
    chunks = client.stream("my:tool")

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(anext(chunks))
        asked = await tool.receive()
        tool.send({"id": asked["id"], "chunk": 1})
    assert first.result() == 1
    await tool.close()

    with pytest.raises(Unavailable):
        await anext(chunks)


async def _raised(client: AsyncClient, event: str) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  the caller looks at it
        await client.request(event, timeout_s=None)
    return caught.value


@pytest.mark.parametrize("name", ["my:tool", "who:asks", "router:serve", "mood:tell"])
async def test_a_name_that_is_answered_is_refused(
    client: AsyncClient, connect: MakeClient, server: Server, name: str
) -> None:
    await client.serve("my:tool", server.echo)
    other = await connect()

    with pytest.raises(Conflict):
        await other.serve(name, server.broken)

    assert await client.request("my:tool", 1) == {"echo": 1}


async def test_serving_a_name_twice_keeps_the_first(client: AsyncClient, server: Server) -> None:
    await client.serve("my:tool", server.echo)

    with pytest.raises(Conflict):
        await client.serve("my:tool", server.broken)

    assert await client.request("my:tool", 1) == {"echo": 1}


async def test_a_client_contributes_beside_plugins(
    client: AsyncClient, connect: MakeClient, server: Server
) -> None:
    tool = await connect()
    await tool.serve("mood:tell", server.echo, contributor=True)

    answers = (await client.request("mood:tell"))["contributions"]

    assert [answer["plugin"] for answer in answers] == ["client owner", "some"]
    assert [answer["result"] for answer in answers] == [{"echo": {}}, "fine"]


async def test_two_contributors_on_one_connection_both_answer(
    client: AsyncClient, wire: MakeWire
) -> None:
    tool = await wire()
    for _ in range(2):
        await tool.ask("router:serve", {"event": "my:mood", "contributor": True})

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(client.request("my:mood"))
        for mood in ("good", "bad"):
            asked = await tool.receive()
            tool.send({"id": asked["id"], "result": mood})

    results = [answer.get("result") for answer in asking.result()["contributions"]]
    assert sorted(results) == ["bad", "good"]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": 1},
        {"error": {"code": "no_such_code", "message": "?"}},
    ],
)
async def test_an_answer_that_is_none_is_the_peer_s_failure(
    client: AsyncClient, wire: MakeWire, answer: dict[str, Any]
) -> None:
    tool = await wire()
    await tool.ask("router:serve", {"event": "my:tool"})

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_raised(client, "my:tool"))
        asked = await tool.receive()
        tool.send({"id": asked["id"], **answer})

    assert isinstance(asking.result(), Failed)


async def test_an_answer_nested_too_deeply_is_the_peer_s_failure(
    client: AsyncClient, wire: MakeWire
) -> None:
    tool = await wire()
    await tool.ask("router:serve", {"event": "my:tool"})

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_raised(client, "my:tool"))
        asked = await tool.receive()
        nested = b"[" * 900 + b"]" * 900 + b"," + b"[" * 100_000
        tool.send(b'{"id":%d,"result":%b}\n' % (asked["id"], nested))
        refusal = await tool.receive()
        await tool.close()

    assert refusal["error"]["code"] == "invalid_data"
    assert isinstance(asking.result(), Unavailable)


@pytest.fixture
async def agent(daemon: Daemon, wire: MakeWire) -> Wire:
    """A peer that may serve its tools and ask who asks, and nothing else."""
    principal = Principal("agent", Grants(call=("who:asks",), serve=("my:*",)))
    made = await wire()
    token = daemon.tokens.issue(principal, ttl_s=60)
    assert "result" in await made.ask("router:authenticate", {"token": token})
    return made


async def test_a_peer_serves_no_more_than_it_was_granted(agent: Wire) -> None:
    refusal = await agent.ask("router:serve", {"event": "your:tool"})

    assert refusal["error"]["code"] == Denied.code


async def test_a_peer_acts_in_the_context_of_what_it_answers_and_no_longer(
    client: AsyncClient, agent: Wire
) -> None:
    assert "result" in await agent.ask("router:serve", {"event": "my:tool"})

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(client.request("my:tool", context={"user": "ann"}))
        asked = await agent.receive()
        cause = asked["context"]["id"]
        inside = await agent.ask("who:asks", context={"parent": cause})
        greedy = await agent.ask("who:asks", context={"parent": cause, "user": "bob"})
        same = await agent.ask("who:asks", context={"parent": cause, "user": "ann"})
        made_up = await agent.ask("who:asks", context={"parent": "made-up"})
        agent.send({"id": asked["id"], "result": "done"})
    late = await agent.ask("who:asks", context={"parent": cause})

    assert asking.result() == "done"
    assert inside["result"] == {"user": "ann", "parent": cause, "tenant": "default"}
    for refusal in (greedy, same, made_up, late):
        assert refusal["error"]["code"] == Denied.code


async def test_one_peer_may_not_act_in_what_another_answers(
    client: AsyncClient, agent: Wire, wire: MakeWire
) -> None:
    other = await wire()
    await other.ask("router:serve", {"event": "other:tool"})

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.request("other:tool", context={"user": "ann"}))
        asked = await other.receive()
        refusal = await agent.ask("who:asks", context={"parent": asked["context"]["id"]})
        other.send({"id": asked["id"], "result": None})

    assert refusal["error"]["code"] == Denied.code


async def test_too_many_served_events_are_busy(daemon: Daemon, wire: MakeWire) -> None:
    daemon.server.hub.max_subscriptions = 2
    tool = await wire()
    for number in range(2):
        assert "result" in await tool.ask("router:serve", {"event": f"my:tool{number}"})

    refusal = await tool.ask("router:serve", {"event": "my:tool2"})

    assert refusal["error"]["code"] == Busy.code
    assert "max_subscriptions" in refusal["error"]["message"]

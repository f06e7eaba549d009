"""The clients: typed errors, lost connections, repeated requests, and the blocking one."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_client import (
    AsyncClient,
    Client,
    Conflict,
    Context,
    Denied,
    InvalidData,
    KsiError,
    LocalTransport,
    NotFound,
    TimedOut,
    Transport,
    Unavailable,
    UnixTransport,
)
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.loader import EntryPoint
from ksi_daemon.principals import Principal
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import module_plugin, running_daemon


class Work:
    def __init__(self) -> None:
        self.count = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.ended = asyncio.Event()

    @event_handler("work:do")
    async def do(self, data: Any) -> int:
        self.count += 1
        self.started.set()
        try:
            await self.go.wait()
        finally:
            self.ended.set()
        return self.count

    @event_handler("work:echo")
    def echo(self, data: Any) -> Any:
        return data

    @event_handler("work:whose")
    def whose(self, data: Any) -> str:
        context = current_context()
        assert context is not None
        return context.tenant


class Answer(msgspec.Struct):
    number: int


class Proxy:
    """Stands between clients and a daemon, and cuts their connections."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.closed_at_once = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.closed_at_once:
            writer.close()
            return
        there, back = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, back}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, back))
                tasks.create_task(self._pump(there, writer))
        finally:
            writer.close()
            back.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        writer.close()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def ksi_plugins(work: Work) -> list[EntryPoint]:
    return [module_plugin("work", do=work.do, echo=work.echo, whose=work.whose)]


@pytest.fixture
async def proxy(daemon: Daemon, ksi_home: Path) -> AsyncIterator[Proxy]:
    made = Proxy(daemon.home.socket)
    server = await asyncio.start_unix_server(made.serve, ksi_home / "proxy.sock")
    async with server:
        yield made
        made.cut()


@pytest.fixture
async def cuttable(proxy: Proxy, ksi_home: Path) -> AsyncIterator[AsyncClient]:
    """A client whose connection the proxy can cut."""
    async with AsyncClient(ksi_home / "proxy.sock") as client:
        yield client


@pytest.fixture(params=["unix", "local"])
def transport(request: pytest.FixtureRequest, daemon: Daemon) -> Transport:
    made: Transport = (
        UnixTransport(daemon.home.socket) if request.param == "unix" else LocalTransport(daemon)
    )
    return made


async def test_both_transports_ask_stream_emit_subscribe_and_serve(transport: Transport) -> None:
    async def double(data: Any, context: Context) -> Any:
        return data * 2

    async with AsyncClient(transport) as client:
        subscription = await client.subscribe("work:*")
        await client.serve("my:double", double)
        await client.emit("work:echo", 1)

        assert await client.request("my:double", 21) == 42
        assert (await anext(subscription)).name == "work:echo"
        with pytest.raises(InvalidData, match="answers once"):
            await anext(client.stream("work:echo", 1))


async def test_an_answer_is_read_into_the_type_that_is_asked_for(client: AsyncClient) -> None:
    answer = await client.request("work:echo", {"number": 7}, result_type=Answer)

    assert answer == Answer(7)
    with pytest.raises(InvalidData, match="not what was asked for"):
        await client.request("work:echo", {"number": "seven"}, result_type=Answer)


async def test_a_request_without_an_answer_in_time_is_cancelled(
    client: AsyncClient, work: Work
) -> None:
    with pytest.raises(TimedOut, match=r"0\.05"):
        await client.request("work:do", timeout_s=0.05)

    async with asyncio.timeout(5):
        await work.ended.wait()


async def test_a_client_may_have_a_timeout_of_its_own(
    connect: Callable[..., Awaitable[AsyncClient]],
) -> None:
    hasty = await connect(timeout_s=0.05)

    with pytest.raises(TimedOut):
        await hasty.request("work:do")


@pytest.mark.parametrize("data", [object(), {"a": {1, object()}}, "x" * 5_000_000, "\ud800"])
async def test_what_cannot_be_sent_is_an_error_of_the_sender(
    client: AsyncClient, data: Any
) -> None:
    with pytest.raises(InvalidData):
        await client.request("work:echo", data)

    assert await client.request("work:echo", 1) == 1


async def test_a_request_under_way_fails_when_the_connection_is_lost(
    cuttable: AsyncClient, proxy: Proxy, work: Work
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_raised(cuttable.request("work:do")))
        await work.started.wait()
        proxy.cut()

    assert isinstance(asking.result(), Unavailable)
    assert await cuttable.request("work:echo", "again") == "again"


async def _raised(awaitable: Awaitable[Any]) -> KsiError:
    with pytest.raises(KsiError) as caught:
        await awaitable
    return caught.value


async def test_a_keyed_request_under_way_is_repeated_and_done_once(
    cuttable: AsyncClient, proxy: Proxy, work: Work
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(cuttable.request("work:do", idempotency_key="k"))
        await work.started.wait()
        proxy.cut()
        work.go.set()

    assert asking.result() == 1
    assert work.count == 1
    assert proxy.connections == 2


async def test_subscriptions_come_back_each_with_its_own_events(
    cuttable: AsyncClient, client: AsyncClient, proxy: Proxy
) -> None:
    ended = await cuttable.subscribe("zero:*")
    one = await cuttable.subscribe("one:*")
    two = await cuttable.subscribe("two:*")
    await ended.close()  # so that the ids will be others

    proxy.cut()
    assert (await anext(one)).name == "router:reconnected"
    assert (await anext(two)).name == "router:reconnected"
    await client.publish("two:event", 2)
    await client.publish("one:event", 1)

    assert (await anext(one)).data == 1
    assert (await anext(two)).data == 2


async def test_what_was_served_is_served_again(
    cuttable: AsyncClient, client: AsyncClient, proxy: Proxy
) -> None:
    async def answer(data: Any, context: Context) -> str:
        return "here"

    await cuttable.serve("my:tool", answer)
    subscription = await cuttable.subscribe("news:*")

    proxy.cut()
    async with asyncio.timeout(10):
        assert (await anext(subscription)).name == "router:reconnected"

    assert await client.request("my:tool") == "here"


async def test_a_stream_ends_with_an_error_when_the_connection_is_lost(
    cuttable: AsyncClient, client: AsyncClient, proxy: Proxy
) -> None:
    async def once(data: Any, context: Context) -> AsyncGenerator[int]:
        yield 1
        await asyncio.Event().wait()

    await client.serve("my:stream", once)
    chunks = cuttable.stream("my:stream")
    assert await anext(chunks) == 1

    proxy.cut()

    with pytest.raises(Unavailable):
        await anext(chunks)


async def test_a_daemon_that_closes_at_once_is_not_stormed(
    cuttable: AsyncClient, proxy: Proxy
) -> None:
    proxy.closed_at_once = True
    before = proxy.connections

    proxy.cut()
    with pytest.raises(TimedOut):
        await cuttable.request("work:echo", idempotency_key="k", timeout_s=0.5)

    assert 1 <= proxy.connections - before <= 5


async def test_a_client_waits_for_a_daemon_that_starts_again(ksi_home: Path) -> None:
    home = ksi_home / "other"
    async with running_daemon(home):
        client = AsyncClient(home / "run" / "ksi.sock")
        await client.__aenter__()
        subscription = await client.subscribe("news:*")

    async with running_daemon(home):
        greeting = await client.request("system:hello", timeout_s=10)
        again = await anext(subscription)
        await client.__aexit__(None, None, None)

    assert greeting["principal"] == "owner"
    assert again.name == "router:reconnected"


async def test_a_client_whose_token_is_gone_gives_up_and_tells_who_waits(
    daemon: Daemon, proxy: Proxy, ksi_home: Path
) -> None:
    token = daemon.tokens.issue(Principal("x", Grants(call=("*",))), ttl_s=60)
    told: list[KsiError] = []
    path = ksi_home / "proxy.sock"
    async with AsyncClient(path, token=token, on_error=told.append) as client:
        daemon.tokens.revoke(daemon.tokens.records()[0].id)
        await client.closed.wait()
        with pytest.raises(Unavailable):
            await client.request("work:echo", idempotency_key="k", timeout_s=None)

    assert any(isinstance(error, Denied) for error in told)


async def test_who_waits_for_a_connection_is_told_when_the_client_is_closed(
    daemon: Daemon, proxy: Proxy, ksi_home: Path
) -> None:
    async with asyncio.TaskGroup() as tasks, AsyncClient(ksi_home / "proxy.sock") as client:
        proxy.closed_at_once = True
        proxy.cut()
        waiting = tasks.create_task(
            _raised(client.request("work:echo", idempotency_key="k", timeout_s=None))
        )
        with pytest.raises(TimedOut):
            await client.request("work:echo", idempotency_key="l", timeout_s=0.1)

    assert isinstance(waiting.result(), Unavailable)


async def test_a_late_cancellation_is_no_error(
    connect: Callable[..., Awaitable[AsyncClient]], work: Work
) -> None:
    told: list[KsiError] = []
    client = await connect(on_error=told.append)
    chunks = client.stream("work:echo", 1)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(anext(chunks, None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()

    await client.request("work:echo", 1)

    assert told == []


async def test_a_token_that_is_not_valid_is_told_at_once(daemon: Daemon) -> None:
    with pytest.raises(Denied):
        async with AsyncClient(daemon.home.socket, token="ksi_no_such"):
            pass


# -- the blocking client --------------------------------------------------------------------------


async def test_the_blocking_client_asks_and_gets_typed_errors(daemon: Daemon) -> None:
    def use() -> None:
        with Client(daemon.home.socket) as client:
            assert client.request("work:echo", {"number": 1}, result_type=Answer) == Answer(1)
            with pytest.raises(NotFound, match="did you mean work:echo"):
                client.request("work:ecko")
            with pytest.raises(TimedOut):
                client.request("work:do", timeout_s=0.05)
            assert client.request("work:echo", "after") == "after"
            assert client.request("work:whose", context={"tenant": "acme"}) == "acme"

    await asyncio.to_thread(use)


async def test_the_blocking_client_sees_events(daemon: Daemon, client: AsyncClient) -> None:
    names: list[str] = []
    subscribed = threading.Event()

    def watch() -> None:
        with Client(daemon.home.socket) as watcher:
            for event in watcher.events("*"):
                names.append(event.name)
                subscribed.set()
                if event.name == "news:last":
                    return

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(watch))
        while not subscribed.is_set():
            await client.publish("news:first", 1)
        await client.publish("news:last", 2)

    assert names[-1] == "news:last"


async def test_both_clients_act_as_the_token_that_they_inherit(
    daemon: Daemon, ksi_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ksi_home / "token"
    file.write_text(daemon.tokens.issue(Principal("child", Grants()), ttl_s=60) + "\n")
    monkeypatch.setenv("KSI_TOKEN_FILE", os.fspath(file))

    def ask() -> str:
        with Client(daemon.home.socket) as client:
            return str(client.request("system:hello")["principal"])

    async with AsyncClient(daemon.home.socket) as client:
        assert (await client.request("system:hello"))["principal"] == "token:child"
    assert await asyncio.to_thread(ask) == "token:child"


async def test_the_blocking_client_with_a_wrong_token_leaves_nothing_open(daemon: Daemon) -> None:
    def connect() -> None:
        with pytest.raises(Denied):
            Client(daemon.home.socket, token="ksi_no_such")

    await asyncio.to_thread(connect)


async def test_a_serving_that_is_refused_is_not_repeated(
    cuttable: AsyncClient, proxy: Proxy
) -> None:
    async def answer(data: Any, context: Context) -> str:
        return "mine"

    with pytest.raises(Conflict):
        await cuttable.serve("work:echo", answer)
    proxy.cut()

    assert await cuttable.request("work:echo", "theirs", idempotency_key="k") == "theirs"

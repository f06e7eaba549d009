"""Answers that come in pieces: their order, their pauses, and all the ways in which they end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from msgspec import Struct

from ksi_client import AsyncClient, Cancelled, Client, Failed, InvalidData, TimedOut
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Context, Limits
from ksi_daemon.testing import Wire, module_plugin

MakeWire = Callable[[], Awaitable[Wire]]

WINDOW = 8


class One(Struct, frozen=True, tag="one", tag_field="kind"):
    """A chunk."""

    text: str


class Two(Struct, frozen=True, tag="two", tag_field="kind"):
    """Another chunk."""

    count: int


class Other(Struct, frozen=True):
    """No chunk."""


class Source:
    """Streams that say how far they got."""

    def __init__(self) -> None:
        self.made = 0
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.seen: list[Context | None] = []

    @event_handler("stream:count")
    async def count(self, data: dict[str, int]) -> AsyncIterator[int]:
        for number in range(data["to"]):
            yield number

    @event_handler("stream:endless")
    async def endless(self, data: dict[str, int]) -> AsyncIterator[str]:
        filling = "x" * data.get("bytes", 1)
        self.seen.append(current_context())
        try:
            while True:
                self.made += 1
                self.started.set()
                yield filling
                await asyncio.sleep(0)
        finally:
            self.seen.append(current_context())
            self.ended.set()

    @event_handler("stream:silent")
    async def silent(self) -> AsyncIterator[int]:
        try:
            yield 1
            self.started.set()
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @event_handler("stream:timely", timeout_s=0.1)
    async def timely(self) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @event_handler("stream:united")
    async def united(self) -> AsyncIterator[One | Two]:
        """Yield what it says it does, and then something else."""
        yield One("a")
        yield Two(1)
        yield Other()  # type: ignore[misc]  # that is what is tested

    @event_handler("stream:typed")
    async def typed(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]  # that is the point

    @event_handler("stream:empty")
    async def empty(self) -> AsyncIterator[int]:
        for number in range(0):
            yield number


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def ksi_plugins(source: Source) -> list[EntryPoint]:
    names = ("count", "endless", "silent", "timely", "typed", "united", "empty")
    return [module_plugin("source", **{name: getattr(source, name) for name in names})]


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["daemon.reader_timeout_s=0.3", "daemon.max_buffer_bytes=65536"]


async def until(happened: asyncio.Event) -> None:
    """Wait for an event, but not for ever."""
    async with asyncio.timeout(5):
        await happened.wait()


async def test_chunks_come_in_order_and_then_the_result(wire: MakeWire) -> None:
    mine = await wire()

    mine.send({"id": "s", "event": "stream:count", "data": {"to": 3}})
    frames = [await mine.receive() for _ in range(4)]

    assert frames == [*({"id": "s", "chunk": number} for number in range(3)), frames[-1]]
    assert frames[-1] == {"id": "s", "result": None}


async def test_a_stream_may_be_empty(client: AsyncClient) -> None:
    assert [chunk async for chunk in client.stream("stream:empty")] == []


async def test_streams_of_one_connection_run_side_by_side(client: AsyncClient) -> None:
    async with aclosing(client.stream("stream:silent")) as silent:
        await anext(silent)

        chunks = [chunk async for chunk in client.stream("stream:count", {"to": 1000})]

    assert chunks == list(range(1000))


async def test_a_reader_that_lags_pauses_the_generator_and_goes_on_later(
    daemon: Daemon, source: Source
) -> None:
    limits = Limits(stream_window_chunks=WINDOW)
    async with (
        AsyncClient(daemon.home.socket, limits=limits) as client,
        aclosing(client.stream("stream:endless", {})) as chunks,
    ):
        await anext(chunks)
        for _ in range(50):
            await client.request("system:hello")
        made = source.made
        for _ in range(50):
            await client.request("system:hello")

        assert source.made == made < 100
        for _ in range(made + WINDOW):
            await anext(chunks)
        assert source.made > made


async def test_the_pause_crosses_the_wire_in_both_directions(
    wire: MakeWire, source: Source
) -> None:
    mine = await wire()
    mine.send({"id": 7, "event": "stream:endless", "data": {}})
    await mine.receive()

    mine.send({"id": 7, "pause": True})
    await mine.ask("system:hello")
    made = source.made
    await mine.ask("system:hello")
    assert source.made == made
    mine.send({"id": 7, "pause": False})
    await mine.receive()

    assert source.made > made


async def test_a_reader_that_never_comes_back_is_cut_off(wire: MakeWire, source: Source) -> None:
    mine = await wire()
    mine.send({"id": 7, "event": "stream:endless", "data": {}})
    await mine.receive()

    mine.send({"id": 7, "pause": True})
    ended = await mine.answer_to(7)

    assert ended["error"]["code"] == "timeout"
    assert "reader_timeout_s" in ended["error"]["message"]
    assert source.ended.is_set()
    assert "result" in await mine.ask("system:hello")


async def test_a_connection_that_is_not_read_pauses_its_streams_and_is_cut_off(
    wire: MakeWire, source: Source
) -> None:
    reader, writer = await asyncio.open_unix_connection(
        (await wire()).writer.get_extra_info("peername"), limit=1
    )
    lazy = Wire(reader, writer)

    lazy.send({"id": 1, "event": "stream:endless", "data": {"bytes": 10_000}})
    await until(source.ended)

    assert source.made * 10_000 < 10_000_000
    await lazy.close()


async def test_a_generator_that_never_waits_does_not_keep_the_loop(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    other = await connect()
    async with (
        asyncio.timeout(3),
        aclosing(client.stream("stream:count", {"to": 10_000_000})) as chunks,
    ):
        await anext(chunks)

        assert (await other.request("system:hello"))["principal"] == "owner"


async def test_a_reader_that_was_busy_elsewhere_is_not_cut_off(daemon: Daemon) -> None:
    async with AsyncClient(daemon.home.socket, limits=Limits(stream_window_chunks=2)) as client:
        chunks = [chunk async for chunk in client.stream("stream:count", {"to": 50_000})]

    assert chunks == list(range(50_000))


async def test_a_reader_that_is_slow_but_reads_gets_everything(daemon: Daemon) -> None:
    limits = Limits(stream_window_chunks=1)
    async with AsyncClient(daemon.home.socket, limits=limits) as client:
        chunks = []
        async for chunk in client.stream("stream:count", {"to": 200}):
            chunks.append(chunk)
            await client.request("system:hello")

    assert chunks == list(range(200))


async def test_closing_a_stream_ends_its_handler(client: AsyncClient, source: Source) -> None:
    async with aclosing(client.stream("stream:silent")) as chunks:
        assert await anext(chunks) == 1

    await until(source.ended)


async def test_leaving_ends_the_handler(daemon: Daemon, source: Source) -> None:
    async with AsyncClient(daemon.home.socket) as client:
        chunks = client.stream("stream:silent")
        assert await anext(chunks) == 1
        await until(source.started)

    await until(source.ended)
    await chunks.aclose()


async def test_a_cancelled_stream_ends_with_that_error(wire: MakeWire, source: Source) -> None:
    mine = await wire()
    mine.send({"id": 1, "event": "stream:silent"})
    await mine.receive()

    mine.send({"id": 1, "cancel": True})

    assert (await mine.receive())["error"]["code"] == "cancelled"
    assert source.ended.is_set()


async def test_a_stream_is_stopped_at_its_deadline(client: AsyncClient, source: Source) -> None:
    chunks = client.stream("stream:timely")
    assert await anext(chunks) == 1

    with pytest.raises(TimedOut, match="stream:timely"):
        await anext(chunks)
    assert source.ended.is_set()


async def test_a_chunk_of_the_wrong_type_fails_the_stream(client: AsyncClient) -> None:
    chunks = client.stream("stream:typed")
    assert await anext(chunks) == 1

    with pytest.raises(Failed, match="returned str instead of int"):
        await anext(chunks)


async def test_chunks_of_several_classes_are_passed_on_as_they_are_and_others_refused(
    client: AsyncClient,
) -> None:
    chunks = client.stream("stream:united")
    assert await anext(chunks) == {"kind": "one", "text": "a"}
    assert await anext(chunks) == {"kind": "two", "count": 1}

    with pytest.raises(Failed, match=r"returned Other instead of .*One"):
        await anext(chunks)


async def test_asking_for_one_answer_where_a_stream_comes_says_so_and_ends_it(
    client: AsyncClient, source: Source
) -> None:
    with pytest.raises(InvalidData, match=r"stream\(\)"):
        await client.request("stream:silent")

    await until(source.ended)


async def test_streaming_what_is_no_stream_says_what_to_call(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="answers once: ask with request"):
        await anext(client.stream("system:hello"))


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_stream_keeps_its_own_context_to_its_end(
    wire: MakeWire, source: Source, how: str
) -> None:
    mine = await wire()
    await mine.ask("stream:count", {"to": 0})
    await mine.ask("system:hello")

    # The hello is answered inline, just before: its context must not stay behind.
    mine.send(
        {"id": 98, "event": "system:hello"},
        {"id": 99, "event": "stream:endless", "data": {}, "context": {"user": "ann"}},
    )
    await until(source.started)
    if how == "cancel":
        mine.send({"id": 99, "cancel": True})
    else:
        await mine.close()
    await until(source.ended)

    assert [seen.user for seen in source.seen if seen] == ["ann", "ann"]


@pytest.mark.parametrize("event", ["stream:silent", "stream:endless"])
async def test_the_outcome_of_a_cancelled_stream_is_shown(
    client: AsyncClient, connect: Callable[..., Any], event: str
) -> None:
    watcher = await connect()
    outcomes = aiter(await watcher.subscribe("stream:*", outcomes=True))

    async with aclosing(client.stream(event, {})) as chunks:
        await anext(chunks)
    async with asyncio.timeout(5):
        shown = await anext(outcomes)

    assert shown.outcome.error.code == Cancelled.code


async def test_an_emitted_stream_runs_to_its_end_unheard(wire: MakeWire) -> None:
    mine = await wire()

    mine.send({"event": "stream:count", "data": {"to": 5}})
    answer = await mine.ask("stream:count", {"to": 0})

    assert answer["result"] is None


async def test_the_blocking_client_reads_streams_and_can_stop_early(
    daemon: Daemon, source: Source
) -> None:
    def read() -> list[Any]:
        with Client(daemon.home.socket) as client:
            everything = list(client.stream("stream:count", {"to": 3}))
            for chunk in client.stream("stream:endless", {}):
                everything.append(chunk)
                break
            everything.append(client.request("system:hello")["principal"])
            return everything

    read_chunks = await asyncio.to_thread(read)

    assert read_chunks == [0, 1, 2, "x", "owner"]
    await until(source.ended)


async def test_the_blocking_client_may_stop_at_a_stream_that_had_ended(daemon: Daemon) -> None:
    def read() -> str:
        with Client(daemon.home.socket) as client:
            for _ in client.stream("stream:count", {"to": 3}):
                client.request("system:hello")  # by now the stream has ended
                break
            client.request("system:hello")
            return str(client.request("system:hello")["principal"])

    assert await asyncio.to_thread(read) == "owner"

"""Tests of the client's turns, with a daemon that is played by handlers of the test's own."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import anyio.to_thread
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_client import (
    AsyncClient,
    Client,
    Completion,
    Failed,
    RestartedChunk,
    StatusChunk,
    TextChunk,
    Unavailable,
    turns,
)
from ksi_client.turns import AcceptedChunk, CompletionChunk, Following, StepChunk, TokenUsage
from ksi_completion import events
from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import ErrorBody
from ksi_daemon.testing import module_plugin, running_daemon

IDS = {"run_id": "r1", "conversation_id": "c1", "request_id": "q1"}
RESULT = {"kind": "result", **IDS, "turn": 1, "status": "succeeded", "text": "hello world"}


# -- shapes --------------------------------------------------------------------------------------


def shape(kind: Any) -> Any:
    """Describe a Struct by the names, the types and the tag that cross the wire."""
    return {field.encode_name: field.required for field in msgspec.structs.fields(kind)} | {
        "": kind.__struct_config__.tag
    }


def test_the_clients_chunks_are_the_daemons() -> None:
    theirs = {kind.__struct_config__.tag: shape(kind) for kind in get_args(events.StreamChunk)}
    ours = {kind.__struct_config__.tag: shape(kind) for kind in get_args(CompletionChunk)}

    assert ours == theirs


def test_a_chunk_of_a_newer_daemon_with_one_field_more_is_understood() -> None:
    chunk = {"kind": "text", "attempt": 1, "offset": 0, "text": "a", "novelty": 1}

    assert msgspec.convert(chunk, CompletionChunk) == TextChunk(attempt=1, offset=0, text="a")


# -- the place in a stream -----------------------------------------------------------------------


@given(
    text=st.text(min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    overlap=st.integers(0, 5),
)
def test_a_stream_that_is_cut_anywhere_comes_whole_and_once(
    text: str, sizes: list[int], cuts: list[int], overlap: int
) -> None:
    place = Following({}, run_id="r1")
    got: list[CompletionChunk] = []
    for stop in [*sorted(cuts), len(text)]:
        begin = max(place.request["offset"] - overlap, 0)  # some of it may come twice
        for chunk in pieces(text, begin, sizes):
            if chunk.offset >= stop:
                break
            got.extend(place.take(chunk))

    assert "".join(chunk.text for chunk in got if isinstance(chunk, TextChunk)) == text


def pieces(text: str, begin: int, sizes: list[int]) -> list[TextChunk]:
    found, number = [], 0
    while begin < len(text):
        size = sizes[number % len(sizes)]
        found.append(TextChunk(attempt=1, offset=begin, text=text[begin : begin + size]))
        begin, number = begin + size, number + 1
    return found


def test_what_is_void_is_asked_for_again_from_where_it_began() -> None:
    place = Following(None, run_id="r1")
    usage = TokenUsage()
    step = StepChunk(attempt=1, offset=3, model="m", usage=usage, cost_usd=None)
    for chunk in (TextChunk(attempt=1, offset=0, text="one"), step):
        list(place.take(chunk))
    list(place.take(TextChunk(attempt=1, offset=4, text="void")))

    restarted = RestartedChunk(attempt=2, offset=4, why="the daemon died")
    again = TextChunk(attempt=2, offset=4, text="anew")

    assert [*place.take(restarted), *place.take(again)] == [restarted, again]
    assert place.request == {"run_id": "r1", "offset": 8, "attempt": 2}


@pytest.mark.parametrize("options", [{"modle": "x"}, {"prompt": "x"}, {"wait_s": 1.0}])
def test_an_option_that_there_is_not_is_refused_at_once(options: Any) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        turns.turn_request("hi", options)


def test_a_new_turn_is_asked_for_with_the_same_request_until_it_is_accepted() -> None:
    place = Following(turns.turn_request("hi", {}))
    first = place.request
    place.lost(Unavailable("gone"))

    assert place.request == first
    assert first["start"]["request_id"].startswith("client-")
    list(place.take(AcceptedChunk(run_id="r1", conversation_id="c1", request_id="q1")))
    assert place.request == {"run_id": "r1", "offset": 0, "attempt": 1}


# -- with a daemon -------------------------------------------------------------------------------


class Played:
    """Answers as the daemon's plugin would; its stream breaks off once, where it is told to."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.breaks_after: int | None = 1
        self.result: dict[str, Any] = RESULT
        self.cuts: list[str] = []  # which requests lose their connection, or find no daemon yet
        self.daemon: Any = None

    def cut(self, event: str) -> None:
        """Break off every connection, the first time; the second time refuse."""
        for what in (event, f"{event} refused"):
            if what in self.cuts:
                self.cuts.remove(what)
                if what == event:
                    for connection in list(self.daemon.server.connections):
                        connection.transport.abort()
                raise Unavailable("the daemon is just starting")

    @event_handler("completion:stream")
    async def stream(self, data: dict[str, Any]) -> AsyncIterator[Any]:
        self.asked.append(data)
        yield {"kind": "accepted", **IDS}
        texts, offset = ("hello ", "world"), 0
        for number, text in enumerate(texts):
            if self.breaks_after == number:
                self.breaks_after = None
                raise Unavailable("the daemon is stopping")
            if offset >= data.get("offset", 0):
                yield {"kind": "text", "attempt": 1, "offset": offset, "text": text}
            offset += len(text)
        yield self.result

    @event_handler("completion:async")
    async def accept(self, data: dict[str, Any]) -> Any:
        self.cut("accept")
        self.asked.append(data)
        return {**IDS, "turn": 1, "status": "running"}

    @event_handler("completion:wait")
    async def wait(self, data: dict[str, Any]) -> Any:
        self.cut("wait")
        self.asked.append(data)
        if len(self.asked) < 3:
            return {**RESULT, "status": "running", "text": ""}
        return self.result

    @event_handler("completion:cancel")
    async def cancel(self, data: dict[str, Any]) -> Any:
        return {"run_id": data["run_id"], "status": "cancelled"}


@contextlib.asynccontextmanager
async def playing(home: Path, played: Played) -> AsyncIterator[Path]:
    plugin: Any = module_plugin(
        "played", **{n: getattr(played, n) for n in ("stream", "accept", "wait", "cancel")}
    )
    async with running_daemon(home, plugin) as daemon:
        played.daemon = daemon
        yield daemon.home.socket


async def test_a_cut_stream_is_taken_up_again_without_a_gap(ksi_home: Path) -> None:
    played = Played()
    async with playing(ksi_home, played) as path, AsyncClient(path) as client:
        chunks = [chunk async for chunk in client.stream_completion("hi", model="m")]

    assert [type(each) for each in chunks] == [
        AcceptedChunk,
        TextChunk,
        StatusChunk,
        TextChunk,
        Completion,
    ]
    assert "".join(each.text for each in chunks if isinstance(each, TextChunk)) == "hello world"
    assert played.asked[0]["start"]["prompt"] == "hi"
    assert played.asked[1] == {"run_id": "r1", "offset": 6, "attempt": 1}


async def test_a_completion_is_waited_for_however_long_it_takes(ksi_home: Path) -> None:
    played = Played()
    async with playing(ksi_home, played) as path, AsyncClient(path) as client:
        response = await client.create_completion(prompt="hi", conversation_id="c1")

    assert (response.text, response.status) == ("hello world", "succeeded")
    assert (response.run_id, response.conversation_id) == ("r1", "c1")
    assert response.usage.output_tokens == 0
    assert response.cost_usd is None
    assert len(played.asked) == 3


async def test_who_does_not_want_to_wait_gets_the_turn_as_it_stands(ksi_home: Path) -> None:
    async with playing(ksi_home, Played()) as path, AsyncClient(path) as client:
        response = await client.create_completion("hi", wait_s=0)
        cancelled = await client.cancel_completion(response.run_id)

    assert response.is_open
    assert cancelled == "cancelled"


async def test_a_failed_turn_raises_its_error_with_the_turns_ids(ksi_home: Path) -> None:
    played = Played()
    body = msgspec.to_builtins(ErrorBody("unavailable", "no model", None, {"kind": "network"}))
    played.result = {**RESULT, "status": "failed", "error": body}
    async with playing(ksi_home, played) as path, AsyncClient(path) as client:
        with pytest.raises(Unavailable, match="no model") as streamed:
            async for _ in client.stream_completion("hi"):
                pass
        with pytest.raises(Unavailable, match="no model") as waited:
            await client.create_completion("hi")

    for error in (streamed.value, waited.value):
        assert error.details == {"kind": "network", **IDS}


async def test_a_turn_that_failed_without_a_reason_is_a_failure_all_the_same(
    ksi_home: Path,
) -> None:
    played = Played()
    played.result = {**RESULT, "status": "failed"}
    async with playing(ksi_home, played) as path, AsyncClient(path) as client:
        with pytest.raises(Failed):
            await client.create_completion("hi")


CUTS = ["accept", "accept refused", "wait", "wait refused"]


async def test_a_turn_that_is_waited_for_is_found_again_after_a_cut(ksi_home: Path) -> None:
    played = Played()
    played.cuts = list(CUTS)
    async with playing(ksi_home, played) as path, AsyncClient(path) as client:
        response = await client.create_completion("hi", request_id="q1")

    assert (response.text, played.cuts) == ("hello world", [])
    assert {asked.get("request_id", "q1") for asked in played.asked} == {"q1"}


async def test_the_blocking_client_finds_its_turn_again_too(ksi_home: Path) -> None:
    played = Played()
    played.cuts = list(CUTS)

    def ask(path: Path) -> Completion:
        with Client(path) as client:
            return client.create_completion("hi", request_id="q1")

    async with playing(ksi_home, played) as path:
        response = await anyio.to_thread.run_sync(ask, path)

    assert (response.text, played.cuts) == ("hello world", [])


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_daemon_that_always_refuses_is_given_up(ksi_home: Path, blocking: bool) -> None:
    played = Played()
    played.cuts = ["accept refused"] * 1000

    async def ask(path: Path) -> None:
        async with AsyncClient(path) as client:
            await client.create_completion("hi", reconnect_s=0.2)

    def ask_blocking(path: Path) -> None:
        with Client(path) as client:
            client.create_completion("hi", reconnect_s=0.2)

    async with playing(ksi_home, played) as path:
        asking = anyio.to_thread.run_sync(ask_blocking, path) if blocking else ask(path)
        with pytest.raises(Unavailable, match="did not come back"):
            await asking


async def test_a_daemon_that_does_not_come_back_is_given_up(ksi_home: Path) -> None:
    played = Played()
    async with playing(ksi_home, played) as path:
        client = await AsyncClient(path).__aenter__()
        chunks = client.stream_completion("hi", reconnect_s=0.2)
        first = [await anext(chunks), await anext(chunks), await anext(chunks)]
    try:
        with pytest.raises(Unavailable, match="ksi turn wait r1"):
            await anext(chunks)
    finally:
        await client.__aexit__(None, None, None)

    assert isinstance(first[-1], StatusChunk)


async def test_the_blocking_client_does_the_same(ksi_home: Path) -> None:
    played = Played()

    def ask(path: Path) -> tuple[list[Any], Completion]:
        with Client(path) as client:
            streamed = list(client.stream_completion("hi", model="m"))
            return streamed, client.create_completion("hi")

    async with playing(ksi_home, played) as path:
        streamed, created = await anyio.to_thread.run_sync(ask, path)

    assert "".join(each.text for each in streamed if isinstance(each, TextChunk)) == "hello world"
    assert streamed[-1].status == created.status == "succeeded"
    assert any(isinstance(each, StatusChunk) and each.waits_for == "daemon" for each in streamed)

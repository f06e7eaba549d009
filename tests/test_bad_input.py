"""Bad input: a typed error or a closed connection for the guilty one, and no other is hurt."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_client import AsyncClient, Busy, Failed, TimedOut, Unavailable
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_handler, event_observer
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Conflict, Event, InvalidData, KsiError
from ksi_daemon.testing import Wire, module_plugin, running_daemon

MakeWire = Callable[[], Awaitable[Wire]]

MAX_FRAME_BYTES = 64 * 1024


class Point(msgspec.Struct):
    x: int
    tags: list[str] = []


class Fussy(msgspec.Struct):
    def __post_init__(self) -> None:
        raise KeyError("nothing pleases it")


class OutOfThisWorld(BaseException):
    pass


class Stage:
    """Handlers that misbehave, and what the tests see of them."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.seen = asyncio.Event()

    @event_handler("point:echo")
    def echo_point(self, point: Point) -> Point:
        return point

    @event_handler("plain:echo")
    def echo(self, data: Any) -> Any:
        return data

    @event_handler("plain:fussy")
    def fussy(self, data: Fussy) -> None:
        return None

    @event_handler("slow:fussy")
    async def slow_fussy(self, data: Fussy) -> None:
        return None

    @event_handler("never:ends")
    async def never(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @event_handler("never:timely", timeout_s=0.1)
    async def never_timely(self) -> None:
        await asyncio.Event().wait()

    @event_handler("raises:plainly")
    def raise_plainly(self, data: str) -> None:
        raise RAISED[data]

    @event_handler("raises:slowly")
    async def raise_slowly(self, data: str) -> None:
        await asyncio.sleep(0)
        raise RAISED[data]

    @event_handler("raises:streaming")
    async def raise_streaming(self, data: str) -> AsyncIterator[int]:
        yield 1
        raise RAISED[data]

    @event_handler("wrong:type")
    def wrong_type(self) -> Point:
        return "no point"  # type: ignore[return-value]  # that is the point

    @event_handler("wrong:slow")
    async def wrong_slow(self) -> Point:
        return "no point"  # type: ignore[return-value]  # that is the point

    @event_handler("wrong:unspeakable")
    def unspeakable(self) -> Any:
        return object()

    @event_handler("wrong:unspeakable_slow")
    async def unspeakable_slow(self) -> Any:
        return object()

    @event_handler("wrong:huge")
    def huge(self) -> Any:
        return "x" * (MAX_FRAME_BYTES + 1)

    @event_handler("wrong:huge_slow")
    async def huge_slow(self) -> Any:
        return "x" * (MAX_FRAME_BYTES + 1)

    @event_observer("observed:*")
    async def observe(self, event: Event) -> None:
        if event.name == "observed:badly":
            raise OutOfThisWorld
        self.seen.set()

    @event_handler("observed:badly")
    def observed_badly(self) -> str:
        return "unharmed"

    @event_handler("observed:well")
    def observed_well(self) -> str:
        return "unharmed"


RAISED: dict[str, BaseException] = {
    "ordinary": ZeroDivisionError("of no concern to the asker"),
    "base": OutOfThisWorld(),
    "cancelled": asyncio.CancelledError(),
    "timeout": TimeoutError(),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "stop": StopAsyncIteration(),
    "typed": Busy("come back later", retry_after_s=1.5, details={"queue": 7}),
    "unspeakable": Busy("come back later", details={"object": object()}),
    "endless": Busy("x" * (2 * MAX_FRAME_BYTES)),
    "surrogate": Busy("\ud800"),
}


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def ksi_plugins(stage: Stage) -> list[EntryPoint]:
    members = {name: getattr(stage, name) for name in dir(stage) if not name.startswith("_")}
    return [module_plugin("stage", **{n: m for n, m in members.items() if callable(m)})]


@pytest.fixture
def ksi_settings() -> list[str]:
    return [
        f"daemon.max_frame_bytes={MAX_FRAME_BYTES}",
        f"daemon.max_buffer_bytes={MAX_FRAME_BYTES}",
        "daemon.max_in_flight=20",
        "daemon.max_subscriptions=10",
        "daemon.reader_timeout_s=0.3",
        "daemon.shutdown_grace_s=0.1",
        "daemon.stop_timeout_s=2",
    ]


@pytest.fixture(autouse=True)
async def _nobody_else_is_hurt(daemon: Daemon, wire: MakeWire) -> AsyncIterator[None]:
    bystander = await wire()

    yield

    greeting = await bystander.ask("system:hello")
    assert greeting["result"]["principal"] == "owner"
    newcomer = await wire()
    assert "result" in await newcomer.ask("system:hello")


def assert_error(frame: dict[str, Any], code: str) -> dict[str, Any]:
    """Check the documented shape of an error; return it."""
    error: dict[str, Any] = frame["error"]
    assert error["code"] == code
    assert isinstance(error["message"], str)
    assert error["message"]
    assert set(error) <= {"code", "message", "retry_after_s", "details"}
    assert set(frame) <= {"id", "error"}
    assert isinstance(error.get("retry_after_s", 0.0), float)
    assert isinstance(error.get("details", {}), dict)
    return error


# -- lines that are no frames ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"}",
        b"nonsense",
        b"[]",
        b"[1, 2]",
        b"null",
        b"17",
        b'"event"',
        b'{"id": 1, "event": "plain:echo"',
        b'{"id": 1, "event": "plain:echo"}}',
        b'{"id": 1 "event": "plain:echo"}',
        b"{'id': 1, 'event': 'plain:echo'}",
        b'{"event": "plain:echo", "data": {"a": NaN}}',
        b"\x00",
        b"\xff\xfe\xfd",
        b'{"id": 1, "event": "plain:echo", "data": "\xc3\x28"}',
        b'{"id": 1, "event": "plain:echo", "data": "\xed\xa0\x80"}',
        b'{"id": 1, "event": "plain:echo", "data": "\\ud800"}',
        b'{"id": 1, "event": "\\udfff:x"}',
        b"GET / HTTP/1.1",
    ],
)
async def test_a_line_that_is_no_frame_is_answered_with_a_typed_error(
    wire: MakeWire, line: bytes
) -> None:
    mine = await wire()

    mine.send(line + b"\n")
    refusal = await mine.receive()

    assert_error(refusal, "invalid_data")
    assert "result" in await mine.ask("plain:echo")


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": None},
        {"id": 1.5},
        {"id": True},
        {"id": []},
        {"id": {"a": 1}},
        {"event": 3},
        {"event": None},
        {"event": ["plain:echo"]},
        {"idempotency_key": 5},
        {"cancel": "yes"},
        {"pause": 1},
        {"subscription": 4},
        {"error": "so it was"},
        {"error": {"code": 1, "message": 2}},
        {"outcome": []},
    ],
)
async def test_a_member_of_the_wrong_type_is_refused(wire: MakeWire, wrong: dict[str, Any]) -> None:
    mine = await wire()

    mine.send({"id": 1, "event": "plain:echo", "data": {}, **wrong})
    refusal = await mine.receive()

    assert_error(refusal, "invalid_data")
    assert refusal.get("id", 1) == 1


@pytest.mark.parametrize(
    ("context", "code"),
    [("me", "invalid_data"), ({"user": 7}, "invalid_data"), ({"uid": 0}, "invalid_data")],
)
async def test_a_context_of_the_wrong_form_is_refused(
    wire: MakeWire, context: Any, code: str
) -> None:
    mine = await wire()

    refusal = await mine.ask("plain:echo", context=context)

    assert_error(refusal, code)


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"id": 5},
        {"id": "five"},
        {"data": {}},
        {"id": 5, "data": {"forgot": "the event"}},
        {"id": "five", "result": {}},
        {"chunk": 1},
        {"subscription": "s1"},
    ],
)
async def test_a_frame_that_asks_nothing_is_told_what_is_missing(
    wire: MakeWire, frame: dict[str, Any]
) -> None:
    mine = await wire()

    mine.send(frame)
    refusal = await mine.receive()

    assert_error(refusal, "invalid_data")


async def test_an_answer_that_nobody_waits_for_is_dropped(wire: MakeWire) -> None:
    mine = await wire()

    mine.send(
        {"id": 5, "result": {}}, {"id": 6, "chunk": 1}, {"error": {"code": "x", "message": ""}}
    )

    assert (await mine.ask("plain:echo", {"still": "here"}))["result"] == {"still": "here"}


@pytest.mark.parametrize("depth", [200, 5_000, 15_000])
async def test_deep_nesting_is_answered_or_refused(wire: MakeWire, depth: int) -> None:
    mine = await wire()

    nested = b"[" * depth + b"]" * depth
    mine.send(b'{"id":1,"event":"plain:echo","data":' + nested + b"}\n")
    answer = await mine.receive()

    if "error" in answer:
        assert answer["error"]["code"] in {"invalid_data", "failed"}
    assert "result" in await mine.ask("plain:echo")


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "9" * 400, "-" + "9" * 5000, "1" * 30, "18446744073709551616"]
)
async def test_huge_numbers_are_answered_or_refused(wire: MakeWire, number: str) -> None:
    mine = await wire()

    for event in ("plain:echo", "point:echo"):
        line = f'{{"id":1,"event":"{event}","data":{{"x":{number}}}}}\n'
        mine.send(line.encode())
        answer = await mine.receive()

        if "error" in answer:
            assert_error(answer, "invalid_data")


@pytest.mark.parametrize(
    "number", ["1e999", "9" * 400, "1" * 30, "-5", "0", "18446744073709551616"]
)
async def test_odd_ids_come_back_as_they_were_or_are_refused(wire: MakeWire, number: str) -> None:
    mine = await wire()

    mine.send(f'{{"id":{number},"event":"plain:echo"}}\n'.encode())
    answer = await mine.receive()

    if "error" in answer:
        assert_error(answer, "invalid_data")
    else:
        assert answer["id"] == int(number)


# -- frames that are too large, or come in a strange way ------------------------------------------


@pytest.mark.parametrize("ending", [b"", b"\n"])
async def test_an_oversized_frame_closes_its_connection_with_an_error(
    wire: MakeWire, ending: bytes
) -> None:
    mine = await wire()

    start = b'{"id":1,"event":"plain:echo","data":"'
    mine.send(start + b"x" * (MAX_FRAME_BYTES + 1 - len(start) - len(b'"}')) + b'"}' + ending)
    frames = await mine.until_closed()

    assert len(frames) == 1
    assert "max_frame_bytes" in assert_error(frames[0], "invalid_data")["message"]


async def test_the_largest_frame_is_taken(wire: MakeWire) -> None:
    mine = await wire()

    start = b'{"id":1,"event":"plain:echo","data":"'
    line = start + b"x" * (MAX_FRAME_BYTES - len(start) - len(b'"}')) + b'"}'
    assert len(line) == MAX_FRAME_BYTES
    mine.send(line + b"\n")
    answer = await mine.receive()

    assert len(answer["result"]) > MAX_FRAME_BYTES - 50


async def test_what_came_before_an_oversized_frame_is_answered(wire: MakeWire) -> None:
    mine = await wire()

    await mine.ask("plain:echo")
    mine.send({"id": 2, "event": "plain:echo"}, b"x" * (MAX_FRAME_BYTES + 1) + b"\n")
    frames = await mine.until_closed()

    assert frames[0] == {"id": 2, "result": {}}
    assert_error(frames[1], "invalid_data")


async def test_a_frame_in_a_thousand_pieces_is_one_frame(wire: MakeWire) -> None:
    mine = await wire()

    line = json.dumps({"id": 1, "event": "plain:echo", "data": "x" * 1000}).encode() + b"\n"
    for position in range(len(line)):
        mine.send(line[position : position + 1])
        await mine.writer.drain()
        await asyncio.sleep(0)

    assert (await mine.receive())["result"] == "x" * 1000


async def test_blank_lines_and_carriage_returns_are_let_pass(wire: MakeWire) -> None:
    mine = await wire()

    mine.send(b"\n\r\n  \n\t\n", b'{"id":1,"event":"plain:echo"}\r\n', b"\n\n")

    assert await mine.receive() == {"id": 1, "result": {}}


async def test_a_half_closed_connection_gets_its_answers_and_is_closed(wire: MakeWire) -> None:
    mine = await wire()

    mine.send({"id": 1, "event": "plain:echo"}, {"id": 2, "event": "never:timely"})
    mine.writer.write_eof()
    frames = await mine.until_closed()

    assert frames[0] == {"id": 1, "result": {}}
    assert_error(frames[1], "timeout")
    assert len(frames) == 2


async def test_a_half_closed_connection_goes_on_listening(
    wire: MakeWire, client: AsyncClient
) -> None:
    mine = await wire()

    mine.send({"id": 1, "event": "router:subscribe", "data": {"pattern": "news:*"}})
    mine.writer.write_eof()
    await mine.receive()
    await client.publish("news:today", {"weather": "fair"})

    assert (await mine.receive())["data"] == {"weather": "fair"}


async def test_a_line_that_was_not_ended_is_not_acted_upon(wire: MakeWire, stage: Stage) -> None:
    mine = await wire()

    mine.send(b'{"id":1,"event":"never:ends"}')
    mine.writer.write_eof()

    assert await mine.until_closed() == []
    assert not stage.started.is_set()


async def test_who_leaves_with_requests_in_flight_has_them_cancelled(
    wire: MakeWire, stage: Stage
) -> None:
    mine = await wire()

    mine.send({"id": 1, "event": "never:ends"})
    await stage.started.wait()
    await mine.close()

    async with asyncio.timeout(5):
        await stage.ended.wait()


async def test_who_half_closes_and_then_leaves_has_its_requests_cancelled(
    wire: MakeWire, stage: Stage
) -> None:
    mine = await wire()

    mine.send({"id": 1, "event": "never:ends"})
    mine.writer.write_eof()
    await stage.started.wait()
    await mine.close()

    async with asyncio.timeout(5):
        await stage.ended.wait()


async def test_a_connection_is_forgotten_when_its_subscriber_leaves(
    client: AsyncClient, wire: MakeWire
) -> None:
    mine = await wire()
    assert "result" in await mine.ask("router:subscribe", {"pattern": "rare:*"})

    await mine.close()

    async with asyncio.timeout(5):
        while (await client.request("system:stats"))["subscriptions"]:
            pass


async def test_what_is_emitted_goes_on_when_its_sender_leaves(wire: MakeWire, stage: Stage) -> None:
    mine = await wire()

    mine.send({"event": "never:ends"})
    await mine.close()
    await stage.started.wait()
    bystander = await wire()
    await bystander.ask("plain:echo")

    assert not stage.ended.is_set()


# -- clients that do not read ---------------------------------------------------------------------


async def test_a_client_that_never_reads_is_cut_off(daemon: Daemon, wire: MakeWire) -> None:
    lazy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    lazy.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(lazy, str(daemon.home.socket))
    frame = json.dumps({"id": 1, "event": "plain:echo", "data": "x" * 1000}).encode() + b"\n"
    bystander = await wire()

    async def write_on() -> None:
        while True:
            await loop.sock_sendall(lazy, frame * 50)

    with lazy, pytest.raises(ConnectionError):
        async with asyncio.timeout(10):
            await write_on()

    assert "result" in await bystander.ask("plain:echo")


@pytest.mark.parametrize("event", ["plain:echo", "no:such"])
async def test_ten_thousand_frames_without_reading_are_all_answered_in_the_end(
    wire: MakeWire, event: str
) -> None:
    mine = await wire()
    bystander = await wire()
    sent = [{"id": n, "event": event, "data": "ordinary"} for n in range(10_000)]

    mine.send(*sent)
    asked = await bystander.ask("plain:echo")
    ids = [(await mine.receive())["id"] for _ in sent]

    assert "result" in asked
    assert sorted(ids) == list(range(10_000))


# -- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["plain:echo", "never:ends"])
async def test_an_id_in_use_is_refused(wire: MakeWire, event: str) -> None:
    mine = await wire()
    await mine.ask("plain:echo")  # from now on it is answered inline

    mine.send({"id": "a", "event": "never:ends"}, {"id": "a", "event": event})
    refusal = await mine.receive()

    assert "id" not in refusal
    assert assert_error(refusal, "conflict")["details"] == {"id": "a"}


async def test_an_id_may_be_used_again_once_it_is_answered(wire: MakeWire) -> None:
    mine = await wire()

    answers = []
    for number in range(2):
        mine.send({"id": "a", "event": "plain:echo", "data": number})
        answers.append(await mine.receive())

    assert answers == [{"id": "a", "result": 0}, {"id": "a", "result": 1}]


@pytest.mark.parametrize("frame", [{"id": 9, "cancel": True}, {"id": "x", "pause": True}])
async def test_what_concerns_an_unknown_request_is_refused_without_answering_it(
    wire: MakeWire, frame: dict[str, Any]
) -> None:
    mine = await wire()

    mine.send(frame)
    refusal = await mine.receive()

    assert assert_error(refusal, "not_found")["details"] == {"id": frame["id"]}
    assert "id" not in refusal


async def test_too_many_requests_at_once_are_busy(wire: MakeWire) -> None:
    mine = await wire()

    mine.send(*({"id": n, "event": "never:ends"} for n in range(21)))
    refusal = await mine.receive()

    assert refusal["id"] == 20
    error = assert_error(refusal, "busy")
    assert "max_in_flight" in error["message"]
    assert error["retry_after_s"] > 0


async def test_a_million_subscriptions_are_busy_after_the_tenth(wire: MakeWire) -> None:
    mine = await wire()

    for _ in range(10):
        assert "result" in await mine.ask("router:subscribe", {"pattern": "a:*"})
    refusal = await mine.ask("router:subscribe", {"pattern": "a:*"})

    assert "max_subscriptions" in assert_error(refusal, "busy")["message"]


@pytest.mark.parametrize("pattern", ["", " ", "a:[b]", "a:b\n", "x" * 201, "é:*"])
async def test_a_strange_pattern_is_refused(wire: MakeWire, pattern: str) -> None:
    mine = await wire()

    refusal = await mine.ask("router:subscribe", {"pattern": pattern})

    assert_error(refusal, "invalid_data")


@pytest.mark.parametrize("name", ["", "a", "a:", ":b", "a:*", "a b:c", "x" * 199 + ":y", "a:b\n"])
@pytest.mark.parametrize("event", ["router:serve", "router:publish"])
async def test_a_strange_name_is_refused(wire: MakeWire, event: str, name: str) -> None:
    mine = await wire()

    refusal = await mine.ask(event, {"event": name})

    assert_error(refusal, "invalid_data")


# -- unknown events -------------------------------------------------------------------------------


async def test_an_unknown_event_is_answered_with_the_nearest(wire: MakeWire) -> None:
    mine = await wire()

    error = assert_error(await mine.ask("plain:ecko"), "not_found")

    assert error["details"]["nearest"][0] == "plain:echo"
    assert "plain:echo" in error["message"]


async def test_an_unknown_event_with_an_endless_name_gets_an_error(wire: MakeWire) -> None:
    mine = await wire()

    longest = await mine.ask("x" * 200)
    endless = await mine.ask("x" * (MAX_FRAME_BYTES - 100))

    assert_error(longest, "not_found")
    assert_error(endless, "invalid_data")


async def test_an_endless_id_gets_an_error(wire: MakeWire) -> None:
    mine = await wire()

    mine.send({"id": "x" * 129, "event": "plain:echo"})
    refusal = await mine.receive()

    assert_error(refusal, "invalid_data")
    assert "id" not in refusal
    assert "result" in await mine.ask("plain:echo")


async def test_an_emitted_event_that_fails_says_which_it_was(wire: MakeWire) -> None:
    mine = await wire()

    mine.send({"event": "no:such"})
    refusal = await mine.receive()

    assert assert_error(refusal, "not_found")["details"]["event"] == "no:such"


# -- payloads and answers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"x": "one"}, "$.x"),
        ({"x": 1, "tags": ["a", 2]}, "$.tags[1]"),
        ({}, None),
        ([], None),
        ("x", None),
    ],
)
async def test_a_wrong_payload_is_refused_with_the_path_of_the_field(
    wire: MakeWire, data: Any, path: str | None
) -> None:
    mine = await wire()

    mine.send({"id": 1, "event": "point:echo", "data": data})
    error = assert_error(await mine.receive(), "invalid_data")

    assert error.get("details", {}).get("path") == path
    assert "point:echo" in error["message"]


@pytest.mark.parametrize("event", ["plain:fussy", "slow:fussy"])
async def test_a_payload_whose_class_breaks_is_answered(wire: MakeWire, event: str) -> None:
    mine = await wire()

    assert_error(await mine.ask(event), "failed")


@pytest.mark.parametrize("event", ["raises:plainly", "raises:slowly", "raises:streaming"])
@pytest.mark.parametrize("what", sorted(set(RAISED)))
async def test_whatever_a_handler_raises_is_a_typed_error(
    wire: MakeWire, event: str, what: str
) -> None:
    mine = await wire()

    mine.send({"id": 1, "event": event, "data": what})
    answer = await mine.answer_to(1)

    typed = isinstance(RAISED[what], KsiError)
    error = assert_error(answer, "busy" if typed else "failed")
    if what == "typed":
        assert error == {
            "code": "busy",
            "message": "come back later",
            "retry_after_s": 1.5,
            "details": {"queue": 7},
        }
    assert "of no concern" not in error["message"]


@pytest.mark.parametrize(
    "event",
    [
        "wrong:type",
        "wrong:slow",
        "wrong:unspeakable",
        "wrong:unspeakable_slow",
        "wrong:huge",
        "wrong:huge_slow",
    ],
)
async def test_an_answer_that_cannot_be_sent_is_a_failure(wire: MakeWire, event: str) -> None:
    mine = await wire()

    error = assert_error(await mine.ask(event), "failed")

    assert event in error["message"]


async def test_a_handler_that_never_finishes_is_stopped_at_its_deadline(
    client: AsyncClient,
) -> None:
    with pytest.raises(TimedOut, match="never:timely"):
        await client.request("never:timely", timeout_s=None)


async def test_an_observer_that_raises_harms_nobody_and_goes_on(
    client: AsyncClient, stage: Stage
) -> None:
    assert await client.request("observed:badly") == "unharmed"
    assert await client.request("observed:well") == "unharmed"

    async with asyncio.timeout(5):
        await stage.seen.wait()


async def test_an_event_that_has_no_json_form_harms_neither_sender_nor_subscriber(
    client: AsyncClient, daemon: Daemon
) -> None:
    subscription = await client.subscribe("odd:*")
    context = daemon.router.child_of(None, "test")

    daemon.router.notify(Event("odd:object", object(), context))
    daemon.router.notify(Event("odd:huge", "x" * MAX_FRAME_BYTES, context))
    daemon.router.notify(Event("odd:fine", 1, context))

    assert (await anext(aiter(subscription))).name == "odd:fine"


# -- connections and paths ------------------------------------------------------------------------


async def test_shutdown_answers_what_still_runs_with_unavailable(
    daemon: Daemon, wire: MakeWire, stage: Stage, ksi_home: Path
) -> None:
    async with running_daemon(
        ksi_home / "other", module_plugin("stage", never=stage.never), settings=()
    ) as other:
        mine = await Wire.connect(other.home.socket)
        mine.send({"id": 1, "event": "never:ends"}, {"id": 2, "event": "system:hello"})
        await stage.started.wait()
        await mine.answer_to(2)

        other.shutdown(0.0)
        answer = await mine.answer_to(1)

    error = assert_error(answer, "unavailable")
    assert error["retry_after_s"] > 0
    await mine.close()


async def test_shutdown_does_not_wait_for_keyed_requests_that_never_end(
    wire: MakeWire, stage: Stage, ksi_home: Path
) -> None:
    loop = asyncio.get_running_loop()
    async with running_daemon(
        ksi_home / "other", module_plugin("stage", never=stage.never), settings=()
    ) as other:
        mine = await Wire.connect(other.home.socket)
        mine.send({"id": 1, "event": "never:ends", "idempotency_key": "k"})
        await stage.started.wait()
        began = loop.time()

    assert stage.ended.is_set()
    assert loop.time() - began < 5
    await mine.close()


async def test_one_connection_too_many_is_told_so_and_closed(ksi_home: Path) -> None:
    home = ksi_home / "other"
    async with running_daemon(home, settings=["daemon.max_connections=2"]) as other:
        allowed = [await Wire.connect(other.home.socket) for _ in range(2)]
        for each in allowed:
            await each.ask("system:hello")
        refused = await Wire.connect(other.home.socket)

        frames = await refused.until_closed()

        assert "max_connections" in assert_error(frames[0], "busy")["message"]
        for each in allowed:
            assert "result" in await each.ask("system:hello")
            await each.close()
        await refused.close()


async def test_a_socket_path_that_is_too_long_is_explained(
    ksi_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_SOCKET", str(ksi_home / ("x" * 120)))

    with pytest.raises(InvalidData, match="KSI_SOCKET"):
        await Daemon(ksi_home / "other").run()


async def test_a_home_too_deep_for_a_socket_gets_a_short_one(ksi_home: Path) -> None:
    deep = ksi_home / ("d" * 90) / "other"
    deep.parent.mkdir()

    async with running_daemon(deep) as other:
        async with AsyncClient(other.home.socket) as client:
            assert (await client.request("system:hello"))["principal"] == "owner"
        assert len(os.fsencode(other.home.socket)) < 104

    other.home.socket.parent.rmdir()


async def test_a_directory_in_the_socket_s_place_is_explained_and_left_alone(
    ksi_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ksi_home / "a-directory"
    place.mkdir()
    monkeypatch.setenv("KSI_SOCKET", str(place))

    with pytest.raises(Conflict, match="no socket"):
        await Daemon(ksi_home / "other").run()

    assert place.is_dir()


async def test_a_live_daemon_s_socket_is_left_alone(
    daemon: Daemon, ksi_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_SOCKET", str(daemon.home.socket))

    with pytest.raises(Conflict, match="listens"):
        await Daemon(ksi_home / "other").run()

    assert daemon.home.socket.is_socket()


async def test_a_daemon_too_busy_to_accept_keeps_its_socket(
    ksi_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ksi_home / "hung.sock"
    monkeypatch.setenv("KSI_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX) as hung, socket.socket(socket.AF_UNIX) as queued:
        hung.bind(str(path))
        hung.listen(0)
        queued.connect(str(path))

        with pytest.raises(Conflict, match="listens"):
            await Daemon(ksi_home / "other").run()

        assert path.is_socket()


async def test_a_dead_daemon_s_socket_is_taken_over(
    ksi_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ksi_home / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    monkeypatch.setenv("KSI_SOCKET", str(path))

    async with running_daemon(ksi_home / "other"), AsyncClient(path) as client:
        assert (await client.request("system:hello"))["principal"] == "owner"


async def test_somebody_else_s_socket_is_left_alone(
    ksi_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ksi_home / "theirs.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
    monkeypatch.setenv("KSI_SOCKET", str(path))
    home = ksi_home / "other"
    daemon = Daemon(home)
    owner = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: owner + 1)

    with pytest.raises((Conflict, InvalidData, KsiError), match="belongs to user"):
        await daemon.run()

    assert path.is_socket()


async def test_a_client_without_a_daemon_is_told_how_to_start_one(ksi_home: Path) -> None:
    with pytest.raises(Unavailable, match="ksi start"):
        async with AsyncClient(ksi_home / "nobody.sock"):
            pass


async def test_a_failure_names_the_event_under_which_it_is_logged(client: AsyncClient) -> None:
    with pytest.raises(Failed, match=r"raises:plainly failed with ZeroDivisionError in stage"):
        await client.request("raises:plainly", "ordinary")

"""The wire: any bytes, split in any way, and the daemon stays what it was."""

import asyncio
import itertools
import json
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import Limits
from ksi_daemon.protocol.errors import KsiError
from ksi_daemon.protocol.peer import Peer
from ksi_daemon.protocol.wire import Frame
from ksi_daemon.testing import Wire, module_plugin, running_daemon

Run = Callable[[Coroutine[Any, Any, Any]], Any]

BOUNDED = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MAX_FRAME_BYTES = 2000


class Strict(msgspec.Struct):
    number: int
    names: list[str] = []


def echo(data: Any) -> Any:
    if data == "raise":
        raise ValueError(data)
    return data


async def echo_later(data: Any) -> Any:
    return echo(data)


def check(data: Strict) -> Strict:
    return data


async def check_later(data: Strict) -> Strict:
    return data


def broken_promise(data: Any) -> int:
    return data  # type: ignore[no-any-return]  # that is the point


async def broken_promise_later(data: Any) -> int:
    return data  # type: ignore[no-any-return]  # that is the point


PLUGIN = {
    "a": event_handler("echo:inline")(echo),
    "b": event_handler("echo:a_task")(echo_later),
    "c": event_handler("check:inline")(check),
    "d": event_handler("check:a_task")(check_later),
    "e": event_handler("int:inline")(broken_promise),
    "f": event_handler("int:a_task")(broken_promise_later),
}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run coroutines one after the other on a loop where a daemon runs."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def socket(run: Run) -> Iterator[Path]:
    """The socket of a daemon that serves all the examples of this module."""
    with tempfile.TemporaryDirectory(prefix="ksi-test-") as home:
        daemon = running_daemon(
            Path(home),
            module_plugin("echo", **PLUGIN),
            settings=[f"daemon.max_frame_bytes={MAX_FRAME_BYTES}"],
        )
        stop = asyncio.Event()
        ready = asyncio.Event()

        async def serve() -> None:
            async with daemon:
                ready.set()
                await stop.wait()

        async def start() -> "asyncio.Task[None]":
            task = asyncio.get_running_loop().create_task(serve())
            await ready.wait()
            return task

        task = run(start())
        yield Path(home) / "run" / "ksi.sock"

        async def end() -> None:
            stop.set()
            await task

        run(end())


# -- what is thrown at the daemon -----------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
plain_data = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
known_events = st.sampled_from(
    ["echo:inline", "echo:a_task", "check:inline", "check:a_task", "system:hello", "no:such", "no"]
)
MEMBERS = [*Frame.__struct_fields__, "unheard of"]
odd_members = st.dictionaries(
    st.sampled_from(MEMBERS),
    plain_data | known_events,
    max_size=5,
)


def line(frame: Any) -> bytes:
    return json.dumps(frame, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"


junk = (
    st.binary(max_size=60)
    | odd_members.map(line)
    | plain_data.map(line)
    | st.sampled_from([b"\n", b"\r\n", b"{}\n", b"x" * (MAX_FRAME_BYTES + 1), b'{"id":1}\n{"id"\n'])
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut data into pieces at these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


async def converse(path: Path, pieces: list[bytes]) -> list[dict[str, Any]]:
    """Send pieces, one a turn of the loop, and return every frame until the daemon closes."""
    wire = await Wire.connect(path)
    for piece in pieces:
        wire.send(piece)
        await asyncio.sleep(0)
    wire.writer.write_eof()
    frames = await wire.until_closed()
    await wire.close()
    return frames


async def ping(path: Path) -> None:
    wire = await Wire.connect(path)
    answer = await wire.ask("system:hello")
    assert answer["result"]["principal"] == "owner"
    await wire.close()


def check_shape(frame: dict[str, Any]) -> None:
    """Check that what came is an answer, or the documented form of an error."""
    if "error" not in frame:
        assert set(frame) == {"id", "result"}
        return
    assert set(frame) <= {"id", "error"}
    error = frame["error"]
    assert {"code", "message"} <= set(error) <= {"code", "message", "retry_after_s", "details"}
    assert error["code"].isidentifier()
    assert isinstance(error["message"], str)


# -- properties -----------------------------------------------------------------------------------


@BOUNDED
@given(data=st.binary(max_size=400), places=st.lists(st.integers(min_value=0), max_size=8))
@example(data=b"\xff\n", places=[])
@example(data=b'{"id":1,"event":"echo:inline"}\n' * 3 + b"\x00\n", places=[5])
def test_any_bytes_in_any_pieces_are_answered_with_errors_and_harm_nobody(
    socket: Path, run: Run, data: bytes, places: list[int]
) -> None:
    frames = run(converse(socket, cut(data, places)))

    for frame in frames:
        check_shape(frame)
    run(ping(socket))


@BOUNDED
@given(
    parts=st.lists(st.tuples(st.none() | junk, known_events, plain_data), max_size=8),
    places=st.lists(st.integers(min_value=0), max_size=12),
)
def test_every_well_formed_request_gets_one_answer_whatever_surrounds_it(
    socket: Path, run: Run, parts: list[tuple[bytes | None, str, Any]], places: list[int]
) -> None:
    sent: list[bytes] = []
    fresh: list[str] = []
    closed = False
    for number, (noise, event, data) in enumerate(parts):
        if noise is not None:
            sent.append(noise if noise.endswith(b"\n") else noise + b"\n")
            closed = closed or any(len(each) > MAX_FRAME_BYTES for each in noise.split(b"\n"))
        request = line({"id": f"fresh-{number}", "event": event, "data": data})
        closed = closed or len(request) > MAX_FRAME_BYTES
        sent.append(request)
        fresh.append(f"fresh-{number}")

    frames = run(converse(socket, cut(b"".join(sent), places)))

    for frame in frames:
        if "subscription" not in frame:
            check_shape(frame)
    answered = [frame["id"] for frame in frames if str(frame.get("id")).startswith("fresh-")]
    assert len(answered) == len(set(answered))
    if not closed:
        assert sorted(answered) == sorted(fresh)
    run(ping(socket))


def plainly(frame: dict[str, Any]) -> str:
    """Make two answers comparable: the event's name and id are the only things that may differ."""
    text = json.dumps(frame, sort_keys=True)
    _, marker, _ = text.partition("see event ")
    text = text.replace(":inline", ":").replace(":a_task", ":")
    return text if not marker else text.partition("see event ")[0]


@BOUNDED
@given(
    event=st.sampled_from(["echo", "check", "int"]),
    data=plain_data
    | st.just("raise")
    | st.fixed_dictionaries({"number": scalars}, optional={"names": plain_data})
    | st.just("x" * (MAX_FRAME_BYTES - 70)),
    request_id=st.integers() | st.text(max_size=20).map(lambda text: f"s{text}"),
)
def test_what_is_answered_inline_and_in_a_task_is_the_same(
    socket: Path, run: Run, event: str, data: Any, request_id: int | str
) -> None:
    async def ask(kind: str) -> dict[str, Any]:
        wire = await Wire.connect(socket)
        await wire.ask(f"{event}:{kind}", {"number": 1})  # from now on it is answered inline
        wire.send(line({"id": request_id, "event": f"{event}:{kind}", "data": data}))
        wire.writer.write_eof()
        frames = await wire.until_closed()
        await wire.close()
        assert len(frames) == 1
        return frames[0]

    inline, task = run(ask("inline")), run(ask("a_task"))

    assert plainly(inline) == plainly(task)


class Recorder(Peer):
    """Keeps the events of what it is fed."""

    def __init__(self) -> None:
        super().__init__(Limits(max_frame_bytes=MAX_FRAME_BYTES))
        self.events: list[Any] = []
        self.failures: list[str] = []

    def frame_received(self, frame: Frame) -> None:
        self.events.append(frame.event)

    def fail(self, request_id: Any, error: KsiError) -> None:
        self.failures.append(error.code)


@BOUNDED
@given(
    parts=st.lists(
        st.sampled_from(
            [
                b'{"event":"a:1"}\n',
                b'{"event":"a:2","data":"\xc3\xbc"}\r\n',
                b'  {"event":"a:3"}  \n',
                b"\n",
                b" \n",
                b"broken\n",
                b"\xff\n",
                b'{"event":"a:\n4"}\n',
            ]
        ),
        max_size=12,
    ),
    places=st.lists(st.integers(min_value=0), max_size=12),
)
def test_how_the_bytes_are_split_changes_nothing(
    run: Run, parts: list[bytes], places: list[int]
) -> None:
    data = b"".join(parts)

    async def feed(pieces: list[bytes]) -> Recorder:
        recorder = Recorder()
        for piece in pieces:
            recorder.data_received(piece)
        return recorder

    whole = run(feed(data.splitlines(keepends=True)))
    split = run(feed(cut(data, places)))

    assert split.events == whole.events
    assert split.failures == whole.failures

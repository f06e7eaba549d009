"""What went wrong once, at an awkward moment."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from ksi_client import AsyncClient, Denied, Failed, LocalTransport, Unavailable
from ksi_client.client import LAGGED, RECONNECTED
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import (
    Declaration,
    event_contributor,
    event_handler,
    event_interceptor,
)
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.host import relay_events
from ksi_daemon.listeners import Observer
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import EVERYTHING, Principal
from ksi_daemon.protocol import Context, Event
from ksi_daemon.protocol.events import Grants
from ksi_daemon.supervisor import Supervisor
from ksi_daemon.testing import Wire, module_plugin, read_log, running_daemon

MakeWire = Callable[[], Awaitable[Wire]]
MakeClient = Callable[..., Awaitable[AsyncClient]]
Proceed = Callable[[Event], Awaitable[Any]]

LONG_ANSWER = "x" * 20_000


class Half(msgspec.Struct):
    x: int = 1


class Careless(Failed):
    """An error whose author forgot what it inherits."""

    def __init__(self, x: int) -> None:
        self.x = x


class Unprintable(Exception):
    def __str__(self) -> str:
        return str(self.args[5])


class Stage:
    """Handlers that misbehave, and what the tests see of them."""

    def __init__(self) -> None:
        self.bus: Any = None
        self.plugin: Plugin | None = None
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.go = asyncio.Event()
        self.notes = 0

    @hookimpl
    async def ksi_lifespan(self, plugin: Plugin) -> AsyncIterator[None]:
        self.plugin, self.bus = plugin, plugin.bus
        yield

    @event_handler("odd:later")
    async def later(self) -> None:
        raise Failed(ValueError("no string"))  # type: ignore[arg-type]  # that is the point

    @event_handler("odd:at_once")
    def at_once(self) -> None:
        raise Failed(ValueError("no string"))  # type: ignore[arg-type]  # that is the point

    @event_handler("odd:careless")
    async def careless(self) -> None:
        raise Careless(1)

    @event_handler("odd:emits")
    def emits(self) -> None:
        self.bus.emit("odd:careless")

    @event_handler("odd:fine")
    async def fine(self) -> str:
        return "fine"

    @event_handler("odd:unset")
    async def unset(self) -> Half:
        half = Half()
        del half.x
        return half

    @event_handler("odd:late")
    async def late(self) -> None:
        await self.go.wait()
        raise Failed("too late")

    @event_handler("odd:waits")
    async def waits(self) -> str:
        self.started.set()
        await self.go.wait()
        return "done"

    @event_handler("odd:forever", timeout_s=0.1)
    async def forever(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @event_handler("odd:ticks")
    async def ticks(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            self.ended.set()

    @event_handler("odd:note")
    def note(self) -> str:
        self.notes += 1
        return LONG_ANSWER


HANDLERS = (
    *("ksi_lifespan", "later", "at_once", "careless", "emits", "fine", "unset", "late"),
    *("waits", "forever", "ticks", "note"),
)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def ksi_plugins(stage: Stage) -> list[EntryPoint]:
    return [module_plugin("odd", **{name: getattr(stage, name) for name in HANDLERS})]


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["daemon.reader_timeout_s=0.5", "daemon.request_timeout_s=0.3"]


async def until(happened: asyncio.Event) -> None:
    """Wait for an event, but not for ever."""
    async with asyncio.timeout(5):
        await happened.wait()


async def until_so(condition: Callable[[], bool]) -> None:
    """Wait until it is so, but not for ever."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0)


# -- errors that are none of the usual ------------------------------------------------------------


@pytest.mark.parametrize("event", ["odd:later", "odd:at_once"])
async def test_an_error_whose_message_is_no_string_is_sent_all_the_same(
    wire: MakeWire, event: str
) -> None:
    mine = await wire()

    async with asyncio.timeout(5):
        mine.send({"id": 1, "event": event}, {"id": 2, "event": "odd:fine"})
        frames = [await mine.receive(), await mine.receive()]
        after = await mine.ask("odd:fine")

    answers = {frame["id"]: frame for frame in frames}
    assert answers[1]["error"] == {"code": "failed", "message": "no string"}
    assert answers[2]["result"] == "fine"
    assert after["result"] == "fine"


@pytest.mark.parametrize(
    ("event", "members"), [("odd:emits", {}), ("odd:careless", {"idempotency_key": "k"})]
)
async def test_an_error_that_does_not_call_what_it_inherits_ends_no_daemon(
    wire: MakeWire, daemon: Daemon, event: str, members: dict[str, str]
) -> None:
    mine = await wire()

    async with asyncio.timeout(5):
        await mine.ask(event, **members)
        after = await mine.ask("odd:fine")

    assert after["result"] == "fine"
    assert daemon.state == "ready"


async def test_a_task_that_fails_with_an_unprintable_error_ends_no_daemon(
    daemon: Daemon, client: AsyncClient, stage: Stage
) -> None:
    failed = asyncio.Event()

    async def run() -> None:
        failed.set()
        raise Unprintable

    assert stage.plugin is not None
    stage.plugin.start_task("broken", run)
    await until(failed)

    assert await client.request("odd:fine", timeout_s=5) == "fine"
    assert daemon.state == "ready"
    assert "Unprintable" in str(daemon.supervisor.units["odd: broken"].last_error)


async def test_a_plugin_that_fails_with_an_unprintable_error_is_failed_and_the_rest_run(
    ksi_home: Path,
) -> None:
    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        raise Unprintable
        yield

    async with running_daemon(ksi_home, module_plugin("bad", ksi_lifespan=ksi_lifespan)) as daemon:
        bad = daemon.loader.plugins["bad"]

        assert daemon.state == "ready"
        assert bad.state == "failed"


async def test_a_keyed_answer_with_an_unset_field_fails_and_ends_no_daemon(
    wire: MakeWire, daemon: Daemon
) -> None:
    mine = await wire()

    async with asyncio.timeout(5):
        answer = await mine.ask("odd:unset", idempotency_key="k")
        after = await mine.ask("odd:fine")

    assert answer["error"]["code"] == "failed"
    assert after["result"] == "fine"
    assert daemon.state == "ready"


async def test_the_late_failure_of_an_emitted_event_names_it(wire: MakeWire, stage: Stage) -> None:
    mine = await wire()

    mine.send({"event": "odd:late"})
    await mine.ask("system:hello")
    stage.go.set()
    frame = await mine.receive()

    assert "id" not in frame
    assert frame["error"]["message"] == "too late"
    assert frame["error"]["details"] == {"event": "odd:late"}


# -- the end of the daemon ------------------------------------------------------------------------


async def test_a_gate_that_fails_before_drained_keeps_no_plugin_from_its_end(
    ksi_home: Path,
) -> None:
    ended: list[str] = []

    @event_interceptor("system:*")
    async def gate(event: Event, proceed: Proceed) -> Any:
        if event.name == "system:drained":
            raise Failed("the gate is broken")
        return await proceed(event)

    @event_contributor("system:drained")
    async def drained() -> None:
        return None

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            ended.append("cancelled")
            raise
        ended.append("cleanly")

    plugins = (
        module_plugin("gate", gate=gate),
        module_plugin("other", drained=drained, ksi_lifespan=ksi_lifespan),
    )
    async with asyncio.timeout(20), running_daemon(ksi_home, *plugins):
        pass

    assert ended == ["cleanly"]


async def test_what_a_host_is_answering_may_ask_during_the_grace(
    daemon: Daemon, client: AsyncClient, stage: Stage
) -> None:
    ours, theirs = socket.socketpair()
    await daemon.server.adopt(theirs, Principal("host:odd", EVERYTHING, plugin="odd"))
    host = Wire(*await asyncio.open_unix_connection(sock=ours))
    host.send({"id": "long", "event": "odd:waits"})
    await until(stage.started)

    await client.request("system:shutdown", {"grace_s": 10.0})
    answer = await host.ask("odd:fine")
    with pytest.raises(Unavailable):
        await client.request("odd:fine")
    stage.go.set()
    await host.until_closed()

    assert answer.get("result") == "fine"
    await host.close()


async def test_a_stopped_daemon_takes_nobody_on(ksi_home: Path) -> None:
    async with running_daemon(ksi_home) as daemon:
        pass

    with pytest.raises(Unavailable, match="stopped"):
        async with asyncio.timeout(5), AsyncClient(LocalTransport(daemon)):
            pass

    assert not daemon.server.connections


# -- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["agent-7", "owner", "plugin:odd"])
async def test_who_came_with_a_plugin_s_token_is_told_from_others_and_issues_none(
    daemon: Daemon, stage: Stage, connect: MakeClient, name: str
) -> None:
    assert stage.plugin is not None
    token = stage.plugin.issue_token(Principal(name, Grants(call=("*",))), ttl_s=60)
    bearer = await connect(token=token)

    greeting = await bearer.request("system:hello")
    with pytest.raises(Denied):
        await bearer.request("token:create", {"name": "more", "ttl_s": 60})

    assert greeting["principal"] == f"token:{name}"
    assert len(daemon.tokens.records()) == 1


async def test_a_log_line_bears_no_other_event_s_id(daemon: Daemon, wire: MakeWire) -> None:
    token = daemon.tokens.issue(Principal("token:t", Grants(call=("odd:*",))), ttl_s=60)
    mine = await wire()
    await mine.ask("router:authenticate", {"token": token})
    await mine.ask("odd:note")

    mine.send({"id": 11, "event": "odd:note"}, {"id": 12, "event": "token:list"})
    await mine.answer_to(12)

    denied = [each for each in read_log(daemon.home.root) if "denied" in each["message"]]
    assert len(denied) == 1
    assert "event_id" not in denied[0]


# -- peers that do not read -----------------------------------------------------------------------


def stop_reading(wire: Wire) -> None:
    cast("asyncio.Transport", wire.writer.transport).pause_reading()


async def test_what_came_before_a_revocation_is_not_done_after_it(
    daemon: Daemon, wire: MakeWire, stage: Stage
) -> None:
    token = daemon.tokens.issue(Principal("token:t", Grants(call=("odd:*",))), ttl_s=60)
    mine = await wire()
    await mine.ask("router:authenticate", {"token": token})
    (connection,) = daemon.server.connections
    stop_reading(mine)
    mine.send(*[{"id": number, "event": "odd:note"} for number in range(1000)])
    await until_so(lambda: connection.paused)

    before = stage.notes
    daemon.tokens.revoke(token.split("_")[1])
    cast("asyncio.Transport", mine.writer.transport).resume_reading()
    await mine.until_closed()

    assert 0 < before < 1000
    assert stage.notes == before


async def test_a_closing_connection_ends_though_its_reader_stops_halfway(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(daemon.home.socket))
        await loop.sock_sendall(sock, b'{"id":1,"event":"odd:note"}\n' * 250)
        await until_so(lambda: any(each.paused for each in daemon.server.connections))
        (connection,) = daemon.server.connections

        connection.close()
        while connection.paused:
            with contextlib.suppress(BlockingIOError):
                sock.recv(65536)
            await asyncio.sleep(0)

        await until_so(lambda: not daemon.server.connections)


async def test_a_peer_that_does_not_read_is_asked_no_more(ksi_home: Path) -> None:
    settings = ["daemon.max_buffer_bytes=65536"]
    async with asyncio.timeout(20), running_daemon(ksi_home, settings=settings) as daemon:
        tool, caller = [await Wire.connect(daemon.home.socket) for _ in range(2)]
        await tool.ask("router:serve", {"event": "my:sink"})
        stop_reading(tool)

        for number in range(20):
            request = f"r{number}"
            caller.send({"id": request, "event": "my:sink", "data": "x" * 500_000})
            await caller.ask("system:hello")
            caller.send({"id": request, "cancel": True})
            await caller.answer_to(request)
        waiting = [
            each.transport.get_write_buffer_size()
            for each in daemon.server.connections
            if each.transport is not None
        ]

        assert len(waiting) == 2
        assert max(waiting) < 2_000_000
        tool.writer.transport.abort()
        await caller.close()


async def test_chunks_without_content_count_where_a_pause_is_ignored(ksi_home: Path) -> None:
    settings = ["daemon.max_buffer_bytes=4096", "daemon.stream_window_chunks=8"]
    async with asyncio.timeout(20), running_daemon(ksi_home, settings=settings) as daemon:
        tool, caller = [await Wire.connect(daemon.home.socket) for _ in range(2)]
        await tool.ask("router:serve", {"event": "my:flood", "streams": True})
        caller.send({"id": 1, "event": "my:flood"}, {"id": 1, "pause": True})
        asked = await tool.receive()

        for _ in range(5000):
            tool.send({"id": asked["id"], "chunk": 1})
        async with asyncio.timeout(5):
            while not (frame := await tool.receive()).get("cancel"):
                pass

        assert frame["id"] == asked["id"]
        await tool.close()
        await caller.close()


# -- what nobody waits for ------------------------------------------------------------------------


async def test_keyed_work_ends_in_time_though_nobody_waits_for_it(
    daemon: Daemon, wire: MakeWire, stage: Stage
) -> None:
    mine = await wire()
    mine.send({"id": 1, "event": "odd:forever", "idempotency_key": "k"})
    await until(stage.started)

    await mine.close()
    await until(stage.ended)

    await until_so(lambda: not daemon.server.hub.ledger.running_tasks())


async def test_an_emitted_stream_ends_in_time(wire: MakeWire, stage: Stage) -> None:
    mine = await wire()

    mine.send({"event": "odd:ticks"})

    await until(stage.ended)


async def test_a_stopped_task_that_ends_late_leaves_its_successor_known() -> None:
    stopped, go = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
            await go.wait()

    async def second() -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks)
        old = supervisor.start("odd: task", first)
        await asyncio.sleep(0)
        supervisor.stop("odd: task")
        new = supervisor.start("odd: task", second)
        await stopped.wait()
        go.set()
        assert old.task is not None
        assert new.task is not None
        await asyncio.wait({old.task})
        known = dict(supervisor.units)
        new.task.cancel()

    assert known == {"odd: task": new}


# -- clients and hosts ----------------------------------------------------------------------------


async def test_a_subscription_closed_while_reconnecting_takes_no_other_along(
    ksi_home: Path,
) -> None:
    asked: list[list[str]] = []
    second, go, both = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        patterns: list[str] = []
        asked.append(patterns)
        on_second = len(asked) == 2
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                frame = json.loads(line)
                if "pattern" in frame.get("data", {}):
                    patterns.append(frame["data"]["pattern"])
                    if on_second and patterns == ["a:*"]:
                        second.set()
                        await go.wait()
                    elif on_second:
                        both.set()
                if "id" in frame:
                    answer = {"id": frame["id"], "result": {"subscription": f"s{len(patterns)}"}}
                    writer.write(json.dumps(answer).encode() + b"\n")
                if not on_second and patterns == ["a:*", "b:*"]:
                    await writer.drain()
                    break
        writer.close()

    path = ksi_home / "s"
    async with await asyncio.start_unix_server(serve, path), AsyncClient(path) as client:
        first = await client.subscribe("a:*")
        await client.subscribe("b:*")
        await until(second)

        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(first.close())
            await asyncio.sleep(0)
            go.set()
            await until(both)
            await closing

    assert asked[1] == ["a:*", "b:*"]


async def test_an_observer_in_a_host_sees_only_the_events_that_it_observes() -> None:
    seen = Observer("odd", Declaration(kind="observer", pattern="news:*"), print, 10)

    async def events() -> AsyncGenerator[Event]:
        yield Event(RECONNECTED, {}, Context("c"))
        yield Event(LAGGED, {"missed": 3}, Context("c"))
        yield Event("news:first", {}, Context("c"))

    await relay_events(events(), seen)()

    assert (seen.depth, seen.missed) == (1, 3)


async def break_the_daemon(home: Path) -> None:
    async def break_it() -> None:
        raise ZeroDivisionError("nobody caught this")

    async with running_daemon(home) as daemon:
        daemon.supervisor.tasks.create_task(break_it())
        await daemon.loader.plugins["system"].stopped.wait()


async def test_what_breaks_the_daemon_itself_is_in_its_log(ksi_home: Path) -> None:
    with pytest.raises(ExceptionGroup):
        await break_the_daemon(ksi_home)

    (line,) = [each for each in read_log(ksi_home) if each["level"] == "critical"]
    assert "nobody caught this" in line["traceback"]

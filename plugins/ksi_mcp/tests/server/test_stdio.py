"""Programs speak with KSI on standard input and output, and some start it so."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import mcp_types as types
import msgspec
import pytest
from mcp.client import ClientRequestContext
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from typer.testing import CliRunner

from ksi_cli import output
from ksi_cli.output import UsageError
from ksi_client import AsyncClient, Denied, InvalidData, KsiError, LocalTransport, Unavailable
from ksi_daemon.daemon import Daemon
from ksi_daemon.protocol import Failed
from ksi_daemon.protocol.peer import Peer
from ksi_mcp.commands import mcp, serve
from ksi_mcp.lines import TooLong
from ksi_mcp.server.pipes import MAX_LINE_BYTES, Pipes, id_of
from ksi_mcp.stdio import Wanted, serve_on
from ksi_mcp.tests.server.conftest import LEGACY, MODERN, text_of
from ksi_mcp.tests.server.tools import Toolbox
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

SETTINGS = (
    'daemon.plugins=["system","postgres","workflows","models","tools","mcp"]',
    "models.find_local=false",
    "models.keyring=false",
)


class Lost:
    """A way to a daemon that is there only once it was started.

    Attributes:
        is_there: Whether it is.
        starts: How often it was started.
    """

    reconnects = True

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._peers: list[Peer] = []
        self.is_there = True
        self.starts = 0

    async def connect(self, make_peer: Callable[[], Peer]) -> None:
        """Connect, if it is there."""
        if not self.is_there:
            raise Unavailable("no daemon listens")

        def made() -> Peer:
            self._peers.append(make_peer())
            return self._peers[-1]

        await LocalTransport(self._daemon).connect(made)

    def lose(self) -> None:
        """Have it die, as far as anybody here can see."""
        self.is_there = False
        for peer in self._peers:
            peer.close()

    def start(self) -> None:
        """Start it."""
        self.starts += 1
        self.is_there = True


class Started:
    """What serves a program, and the pipes between them.

    Attributes:
        near: The program's ends.
        far: Those of what serves it.
        is_over: Set when nobody serves any more.
        error: Why.
    """

    def __init__(self, way: Lost, wanted: Wanted) -> None:
        self._way = way
        self._wanted = wanted
        self._source, self._write = os.pipe()
        self._read, self._sink = os.pipe()
        self.near = Pipes(self._read, self._write)
        self.far = Pipes(self._source, self._sink)
        self.is_over = asyncio.Event()
        self.error: KsiError | None = None

    async def run(self) -> None:
        """Serve."""
        try:
            await serve_on(self.far, self._wanted, self._way.start, lambda: self._way)
        except KsiError as error:
            self.error = error
        finally:
            self.is_over.set()
            for each in (self._source, self._sink, self._read):
                os.close(each)

    def leave(self) -> None:
        """Say nothing more."""
        os.close(self._write)


Start = Callable[..., AbstractAsyncContextManager[tuple[Client, Started]]]


@pytest.fixture
def way(daemon: Daemon) -> Lost:
    """How the daemon is reached."""
    return Lost(daemon)


@pytest.fixture
def program(way: Lost) -> Start:
    """A function that connects a program: in which protocol, and what it may do."""

    @asynccontextmanager
    async def connected(
        mode: str = LEGACY, wanted: Wanted | None = None, **options: Any
    ) -> AsyncIterator[tuple[Client, Started]]:
        started = Started(way, wanted or Wanted())
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks:
            tasks.create_task(started.run())
            async with Client(started.near.open(), mode=mode, **options) as client:
                yield client, started
            started.leave()

    return connected


async def test_each_protocol_has_progress_cancelling_and_questions(
    program: Start, toolbox: Toolbox
) -> None:
    steps: list[Any] = []

    async def progress(
        progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        steps.append((progress, total, message))

    async def answer(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"answer": "blue"})

    for mode in (MODERN, LEGACY):
        async with program(mode, elicitation_callback=answer) as (client, _):
            there = await client.call_tool("steps", {}, progress_callback=progress)
            toolbox.begun.clear()
            toolbox.ended.clear()
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(client.call_tool("wait", {}))
                await toolbox.begun.wait()
                waiting.cancel()
            await toolbox.ended.wait()
            colour = await client.call_tool("ask_user", {"question": "Which colour?"})

        assert text_of(there) == "there"
        assert steps.pop(0) == (1, 3, "step 1")
        assert text_of(colour) == "blue"
        steps.clear()


async def test_a_daemon_that_has_gone_is_started_by_the_next_call(
    program: Start, way: Lost
) -> None:
    async with program() as (client, _):
        before = await client.call_tool("add", {"a": 1, "b": 2})
        way.lose()
        async with asyncio.TaskGroup() as tasks:
            after = [
                tasks.create_task(client.call_tool("add", {"a": 20, "b": each})) for each in (1, 2)
            ]

    assert before.structured_content == {"sum": 3}
    assert [each.result().structured_content for each in after] == [{"sum": 21}, {"sum": 22}]
    assert way.starts == 1


async def ignored(progress: float, total: float | None, message: str | None) -> None:
    """Take what a call says of its progress."""


async def test_a_call_whose_daemon_goes_away_is_in_doubt_and_made_once(
    program: Start, way: Lost, toolbox: Toolbox
) -> None:
    async with program() as (client, _):
        for progress in (None, ignored):
            toolbox.begun.clear()
            toolbox.calls.clear()
            async with asyncio.TaskGroup() as tasks:
                asked = client.call_tool("linger", {"text": "oh"}, progress_callback=progress)
                call = tasks.create_task(asked)
                await toolbox.begun.wait()
                way.lose()
            told = call.result()

            assert told.is_error
            assert told.meta is not None
            assert told.meta["ksi/status"] == "in_doubt"
            assert told.meta["ksi/call_id"]
            assert toolbox.calls == ["oh"]


async def test_a_call_whose_daemon_stays_away_tells_where_to_look(
    program: Start, way: Lost, toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        raise Failed("the disk is full")

    monkeypatch.setattr(way, "start", start)
    async with program() as (client, _):
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(client.call_tool("linger", {"text": "oh"}))
            await toolbox.begun.wait()
            way.lose()
        told = call.result()

    assert told.is_error
    assert text_of(told) == (
        "unavailable: the daemon has gone: the disk is full; "
        "whether it was called is in: ksi tool calls"
    )


async def test_who_may_do_less_is_told_of_news_and_ends_with_its_token(
    program: Start, way: Lost, client: AsyncClient
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def take(message: Any) -> None:
        if hasattr(message, "method"):
            told.put_nowait(message.method)

    async def tokens() -> list[str]:
        listed = (await client.request("token:list"))["tokens"]
        return [each["id"] for each in listed if each["name"].startswith("token:mcp-")]

    few = Wanted(scopes=("odd:read",), user="ann", tenant="default")
    async with program(wanted=few, message_handler=take) as (near, first):
        promised = near.server_capabilities.tools
        await client.publish("mcp:changed", {"kind": "tools"})
        method = await told.get()
        whose = await near.call_tool("odd_whose", {})
        (token,) = await tokens()
        await client.request("token:revoke", {"id": token})
        await first.is_over.wait()
    async with program(wanted=few) as (_, second):
        during = await tokens()
        second.far.end()  # as a signal has it
        await second.is_over.wait()
        after = await tokens()
    async with program(wanted=few):
        way.lose()  # nobody is there to end the token, and nobody waits for that

    assert promised is not None
    assert promised.list_changed
    assert whose.structured_content is not None
    assert whose.structured_content["user"] == "ann"
    assert method == "notifications/tools/list_changed"
    assert isinstance(first.error, Denied)
    assert "not valid any more" in first.error.message
    assert (len(during), len(after), way.starts) == (1, 0, 0)


async def test_one_tool_alone_can_be_let_through(program: Start, toolbox: Toolbox) -> None:
    few = Wanted(scopes=("tools:write", "tools:call:shout"))
    async with program(wanted=few) as (client, _):
        names = {each.name for each in (await client.list_tools()).tools}
        told = await client.call_tool("shout", {"text": "oh"})

    assert text_of(told) == "OH"
    assert toolbox.calls == ["oh"]
    assert "shout" in names
    assert not {"linger", "sure"} & names


async def test_a_scope_that_there_is_not_is_refused(way: Lost) -> None:
    for wrong in ("", "odd:raed"):
        started = Started(way, Wanted(scopes=(wrong,)))
        await started.run()
        started.leave()

        assert isinstance(started.error, InvalidData)
        assert f"no event has the scope {wrong!r}" in started.error.message


async def test_a_line_that_is_no_message_is_answered_and_the_next_one_is_heard() -> None:
    source, near = os.pipe()
    far, sink = os.pipe()
    long = b'{"method":"x","params":"' + b"x" * MAX_LINE_BYTES + b'","jsonrpc":"2.0","id":"a"}\n'
    bad = b'\xff\xfe garbage\n[]\n{}\n{"jsonrpc":"2.0","id":5,"method":3}\n{"id":6}\n\n'
    good = b'{"jsonrpc":"2.0","id":7,"method":"ping"}'

    def said() -> list[tuple[Any, int]]:
        with open(far, "rb") as answers:  # noqa: PTH123  a handle
            lines = [msgspec.json.decode(line) for line in answers]
        return [(each["id"], each["error"]["code"]) for each in lines]

    def say() -> None:
        with open(near, "wb") as program:  # noqa: PTH123  a handle
            program.write(bad + long + good)

    async with asyncio.TaskGroup() as tasks:
        told = tasks.create_task(asyncio.to_thread(said))
        tasks.create_task(asyncio.to_thread(say))
        async with Pipes(source, sink).open() as (incoming, outgoing), outgoing:
            heard = [each async for each in incoming]
        os.close(sink)
    os.close(source)

    assert told.result() == [
        (None, -32700),
        (None, -32600),
        (None, -32600),
        (5, -32600),
        (None, -32600),
        ("a", -32600),
    ]
    (message,) = heard
    assert isinstance(message, SessionMessage)
    assert isinstance(message.message, types.JSONRPCRequest)
    assert message.message.id == 7


@pytest.mark.parametrize(
    ("head", "tail", "known"),
    [
        (b'{"jsonrpc": "2.0", "id": 3, "method": "x", "params"', b"", 3),
        (b'{"method":"x","params":{"a":"', b'"},"jsonrpc":"2.0","id":"a b"}\r', "a b"),
        (b'{"method":"x","params":{"id":3,"a":"', b'"}}', None),
        (b'{"jsonrpc":"2.0","method":"x","params":{"a":"', b'","id":4}}', None),
        (b'{"jsonrpc":"2.0","id":3,"result":{"a":"', b'"}}', None),
    ],
)
def test_the_id_of_a_long_request_is_found_at_its_ends(
    head: bytes, tail: bytes, known: str | int | None
) -> None:
    assert id_of(TooLong(MAX_LINE_BYTES + 1, head, tail)) == known


async def test_who_does_not_read_any_more_is_served_no_more() -> None:
    source, near = os.pipe()
    far, sink = os.pipe()
    os.close(far)
    os.write(near, b"garbage\n" * 3)

    async with asyncio.timeout(10.0), Pipes(source, sink).open() as (incoming, outgoing), outgoing:
        heard = [each async for each in incoming]
    for each in (source, near, sink):
        os.close(each)

    assert heard == []


def test_what_is_said_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="are for what is served here alone"):
        CliRunner().invoke(mcp, ["--scope", "*", "list"], catch_exceptions=False)
    with pytest.raises(UsageError, match="say what may be done"):
        CliRunner().invoke(mcp, ["--user", "ann"], catch_exceptions=False)
    context: Any = SimpleNamespace(invoked_subcommand=None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UsageError, match="one of them is closed") as told:
        serve(context, scope=None, user=None, tenant="default")
    output.fail(told.value, as_json=False)  # where people see it, which is open


def told_by(environment: dict[str, str], *words: str) -> str:
    """Return what a command says."""
    command = [sys.executable, "-P", "-m", "ksi_cli", *words]
    given = {**os.environ, **environment}
    return subprocess.run(command, env=given, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def environment(
    _postgres_loop: _Loop, postgres_server: TestServer, engine_template: str
) -> Iterator[dict[str, str]]:
    """The environment of a home in which no daemon runs yet."""
    logins = _postgres_loop.run(fresh_database(postgres_server, engine_template))
    with tempfile.TemporaryDirectory(prefix="ksi-mcp-") as folder:
        given = {"KSI_HOME": folder, "PATH": os.environ["PATH"], "HOME": folder}
        for setting in (*settings_for(logins), *SETTINGS):
            name, _, value = setting.partition("=")
            given[f"KSI_{name.replace('.', '_').upper()}"] = value
        try:
            yield given
        finally:
            told_by(given, "stop")
    _postgres_loop.run(drop_database(postgres_server, logins))


async def test_a_program_starts_it_and_the_daemon_with_it_and_may_do_what_it_is_told(
    environment: dict[str, str],
) -> None:
    command = [sys.executable, "-P", "-m", "ksi_cli", "mcp"]
    server = StdioServerParameters(command=command[0], args=command[1:], env=environment)
    bounded = [*command, "--scope", "system:read", "--user", "ann"]

    async with Client(stdio_client(server), mode=MODERN) as client:
        names = {each.name for each in (await client.list_tools()).tools}
        now = await client.call_tool("current_time", {"timezone": "Europe/Oslo"})
    few = subprocess.Popen(  # noqa: ASYNC220  it returns at once
        bounded, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert few.stdin is not None
    assert few.stdout is not None
    async with Client(Pipes(few.stdout.fileno(), few.stdin.fileno()).open(), mode=LEGACY) as client:
        of_few = {each.name for each in (await client.list_tools()).tools}
        health = await client.call_tool("system_health", {})
        with pytest.raises(MCPError, match="no tool 'current_time'"):
            await client.call_tool("current_time", {})
        denied = await client.call_tool("look", {"event": "tool:calls"})
        few.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(few.wait, 20.0)
    with few.stdin, few.stdout:
        tokens = told_by(environment, "token", "list", "--json")

    assert {"current_time", "action", "system_health"} <= names
    assert "T" in text_of(now)
    assert of_few == {"look", "action", "system_describe", "system_discover", "system_health"}
    assert health.structured_content is not None
    assert health.structured_content["state"] == "ready"
    assert denied.is_error
    assert "tools:read" in text_of(denied)
    assert code == 0
    assert "mcp-" not in tokens  # it went with its program


def test_what_speaks_mcp_is_imported_when_somebody_does() -> None:
    early = "ksi_mcp.plugin, ksi_mcp.http, ksi_mcp.commands"
    words = f"import sys, {early}; print({{'mcp', 'mcp_types', 'pydantic'}} & sys.modules.keys())"
    command = [sys.executable, "-c", words]

    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert told == "set()\n"

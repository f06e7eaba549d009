"""What a server's process may do, and what becomes of it."""

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.client.asking.forms import Answers, Form
from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.client.wires.session import Session
from ksi_mcp.events import McpServer
from ksi_mcp.settings import McpSettings
from ksi_mcp.tests.client.conftest import Connected, calls, faulty, tools_of


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run on the loop that daemons run on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


async def test_a_tool_is_called_and_answers(connected: Connected, tmp_path: Path) -> None:
    async with connected() as (connection, told):
        result = await connection.call("echo", {"text": "Grüße"}, told.progressed)

    assert result["content"] == [{"type": "text", "text": "Grüße"}]
    assert "echo" in [each["name"] for each in told.lists[0]]
    assert calls(tmp_path / "faulty") == ["echo"]


async def test_a_server_gets_of_the_environment_what_is_named(
    connected: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSED_ON", "yes")
    monkeypatch.setenv("KEPT_BACK", "secret")
    monkeypatch.setenv("OF_THE_KEY", "sk-12")  # too short to be masked
    server = faulty(
        tmp_path / "faulty", environment=("PASSED_ON",), variables={"KEY": "${env:OF_THE_KEY}"}
    )
    async with connected(server) as (connection, told):
        result = await connection.call("environment", {}, told.progressed)
    environment = json.loads(result["content"][0]["text"])

    assert environment["PASSED_ON"] == "yes"
    assert environment["KEY"] == "sk-12"
    assert environment["HOME"] == str(tmp_path / "home")
    assert {"KEPT_BACK", "OF_THE_KEY", "KSI_HOME"}.isdisjoint(environment)


async def test_a_server_that_crashes_leaves_its_call_in_doubt(connected: Connected) -> None:
    async with connected() as (connection, told):
        with pytest.raises(LostError):
            await connection.call("crash", {}, told.progressed)
        with pytest.raises(NotSentError):
            await connection.call("echo", {}, told.progressed)
        assert connection.is_over


async def test_what_is_sent_to_a_server_that_has_just_left_is_in_no_doubt(
    connected: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call may have begun before its server's end is known, and be sent after it."""
    has_left = asyncio.Event()
    gone, call = Connection._gone, Session.call

    def left(connection: Connection, why: str) -> None:
        gone(connection, why)
        has_left.set()

    async def late(session: Session, name: str, *args: Any) -> dict[str, Any]:
        if name == "echo":
            await has_left.wait()
        return await call(session, name, *args)

    monkeypatch.setattr(Connection, "_gone", left)
    monkeypatch.setattr(Session, "call", late)
    async with connected() as (connection, told), asyncio.TaskGroup() as tasks:
        begun = asyncio.Event()

        async def send() -> None:
            begun.set()
            with pytest.raises(NotSentError, match="it ended"):
                await connection.call("echo", {}, told.progressed)

        tasks.create_task(send())
        await begun.wait()
        await connection.call("leave", {}, told.progressed)

    assert calls(tmp_path / "faulty") == ["leave"]


async def test_a_server_that_can_t_be_started_says_why(connected: Connected) -> None:
    async with connected(McpServer(command="no-such-command")) as (connection, _):
        assert connection.is_over
    assert str(connection.why).startswith("it ended (exit code 127)")
    assert "no-such-command can't be run" in str(connection.why)


async def test_a_server_that_closes_its_output_is_over_though_it_lives(
    connected: Connected,
) -> None:
    async with connected() as (connection, told):
        with pytest.raises(LostError, match="closed its output"):
            await connection.call("fall_silent", {}, told.progressed)
        assert connection.is_over


async def test_what_a_server_complains_of_is_told_without_the_secrets_that_it_got(
    connected: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_KEY", "sk-very-secret")
    server = faulty(tmp_path / "faulty", variables={"KEY": "${env:OF_THE_KEY}"})
    (tmp_path / "faulty" / "refuses").touch()
    async with connected(server) as (connection, _):
        pass

    assert "it said: the key ******** is wrong" in str(connection.why)


async def test_a_server_that_does_not_answer_is_given_up(
    connected: Connected, tmp_path: Path
) -> None:
    server = faulty(tmp_path / "faulty")
    (tmp_path / "faulty" / "sleeps").touch()
    async with connected(server, McpSettings(connect_timeout_s=0.3)) as (connection, _):
        assert connection.is_over
    assert "did not answer within 0.3 s" in str(connection.why)


async def test_a_call_that_hangs_may_be_cancelled_and_others_go_on(connected: Connected) -> None:
    async with connected() as (connection, told):
        async with asyncio.TaskGroup() as group:
            told.changed.clear()
            hanging = group.create_task(connection.call("hang", {}, told.progressed))
            await told.changed.wait()
            hanging.cancel()
        result = await connection.call("echo", {"text": "on"}, told.progressed)

    assert told.progress == ["hanging"]
    assert result["content"][0]["text"] == "on"


async def test_calls_that_are_given_up_end_no_calls_of_others(connected: Connected) -> None:
    async with connected() as (connection, told), asyncio.TaskGroup() as group:
        waiting = group.create_task(connection.call("hang", {}, told.progressed))
        for _ in range(5):
            told.changed.clear()
            given_up = group.create_task(connection.call("hang", {}, told.progressed))
            await told.changed.wait()
            given_up.cancel()
        await connection.call("echo", {}, told.progressed)
        is_waiting = not waiting.done()
        waiting.cancel()

    assert is_waiting


async def test_a_server_that_says_nothing_for_as_long_as_a_call_may_take_is_left(
    connected: Connected,
) -> None:
    async with connected(settings=McpSettings(call_timeout_s=0.3)) as (connection, told):
        for within_s in (0.2, 0.2):
            assert not connection.is_over
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(within_s):
                    await connection.call("stall", {}, told.progressed)
        assert connection.is_over

    assert "it said nothing for" in str(connection.why)


async def test_a_result_of_100_mb_is_thrown_away_and_no_more_than_it(connected: Connected) -> None:
    async with connected() as (connection, told):
        with pytest.raises(LostError, match=r"mcp\.max_result_bytes"):
            await connection.call("big", {}, told.progressed)
        result = await connection.call("echo", {"text": "on"}, told.progressed)

    assert result["content"][0]["text"] == "on"


@pytest.mark.parametrize("fault", ["noise", "nag", "stranger"])
async def test_what_nobody_asked_for_is_passed_over(connected: Connected, fault: str) -> None:
    settings = McpSettings(max_messages_per_s=100_000)
    async with connected(settings=settings) as (connection, told):
        result = await connection.call(fault, {"text": "on"}, told.progressed)

    assert result["content"][0]["text"] == "on"


async def test_bytes_that_are_no_utf_8_are_marked(connected: Connected) -> None:
    async with connected() as (connection, told):
        result = await connection.call("bytes", {}, told.progressed)

    assert result["content"][0]["text"] == "caf\ufffd"


async def test_json_of_depth_100_000_is_no_answer(connected: Connected) -> None:
    async with connected(settings=McpSettings(max_result_values=1_000_000)) as (connection, told):
        with pytest.raises(LostError, match="no JSON-RPC"):
            await connection.call("deep", {}, told.progressed)
        await connection.call("echo", {}, told.progressed)


async def test_an_error_of_the_server_s_is_told(connected: Connected) -> None:
    async with connected() as (connection, told):
        for code in ("-32602", "-32000", "-32700"):
            with pytest.raises(AnswerError, match="not so"):
                await connection.call("rpc_error", {"text": code}, told.progressed)


async def test_a_flood_is_read_no_faster_than_is_bearable(connected: Connected) -> None:
    settings = McpSettings(max_messages_per_s=50)
    async with connected(settings=settings) as (connection, told):
        started = asyncio.get_running_loop().time()
        await connection.call("flood", {"text": "150"}, told.progressed)

    # 100 pass at once, the others one by one.
    assert asyncio.get_running_loop().time() - started >= 0.9


async def test_answers_that_nobody_waits_for_pass_no_faster_than_other_things(
    connected: Connected,
) -> None:
    async with connected(settings=McpSettings(max_messages_per_s=50)) as (connection, told):
        started = asyncio.get_running_loop().time()
        await connection.call("stranger", {"times": 120}, told.progressed)

    assert asyncio.get_running_loop().time() - started >= 0.3


@pytest.mark.parametrize(
    ("fault", "why"),
    [("blocks", "1001 content, more than 1000"), ("values", r"100000 .*mcp\.max_result_values")],
)
async def test_a_result_that_takes_too_long_to_read_is_not_read(
    connected: Connected, fault: str, why: str
) -> None:
    async with connected() as (connection, told):
        with pytest.raises(LostError, match=why):
            await connection.call(fault, {}, told.progressed)
        result = await connection.call("echo", {"text": "on"}, told.progressed)

    assert result["content"][0]["text"] == "on"


async def test_a_list_without_end_is_cut(connected: Connected, tmp_path: Path) -> None:
    server = faulty(tmp_path / "faulty")
    (tmp_path / "faulty" / "endless").touch()
    async with connected(server, McpSettings(max_tools=25)) as (_, told):
        pass

    assert len(told.lists[0]) == 25
    assert not told.is_all


async def test_a_list_of_large_tools_is_cut_though_they_are_few(
    connected: Connected, tmp_path: Path
) -> None:
    server = faulty(tmp_path / "faulty")
    for name in ("endless", "long"):
        (tmp_path / "faulty" / name).touch()
    async with connected(server) as (_, told):
        pass

    assert len(told.lists[0]) == 1_048_576 // 50_100
    assert not told.is_all


async def test_tools_that_change_are_asked_for_again(connected: Connected) -> None:
    async with connected() as (connection, told):
        told.changed.clear()
        await connection.call("change", {"text": tools_of("other")}, told.progressed)
        await told.changed.wait()

    assert [each["name"] for each in told.lists[-1]] == ["other"]


async def test_tools_that_keep_changing_are_asked_for_ever_later(connected: Connected) -> None:
    async with connected() as (connection, told):
        connection._pause_s = 20.0  # as after some changes in a row
        await connection.call("change", {"text": tools_of("other")}, told.progressed)
        await connection.call("echo", {}, told.progressed)
        waits_s = connection._refresh_in_s()
        asked = len(told.lists)
        connection._asked_at -= waits_s  # as if the time had passed
        told.changed.clear()
        await connection.call("echo", {}, told.progressed)
        await told.changed.wait()
        pauses_s = connection._pause_s

    assert (asked, len(told.lists)) == (1, 2)
    assert 15 < waits_s <= 20
    assert pauses_s == 40


async def test_one_that_is_left_while_it_is_asked_for_its_tools_is_asked_no_longer(
    connected: Connected, tmp_path: Path
) -> None:
    async with connected() as (connection, told):
        (tmp_path / "faulty" / "stalls").touch()
        connection._asked_at = 0.0
        await connection.call("change", {"text": tools_of("other")}, told.progressed)
        connection.end()
        async with asyncio.timeout(10):  # and not for as long as it may take to answer
            await connection.until_left()

    assert len(told.lists) == 1


async def test_a_server_that_nobody_calls_is_ended(connected: Connected) -> None:
    async with connected(settings=McpSettings(idle_s=0.01)) as (connection, _):
        assert connection._task is not None
        await connection._task

    assert connection.why is None


async def test_a_server_s_process_is_gone_when_the_connection_is(connected: Connected) -> None:
    async with connected() as (connection, _):
        assert connection._process is not None
        pid = connection._process.pid

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_a_server_that_dies_has_not_got_what_it_left_unread(
    connected: Connected, tmp_path: Path, size: int
) -> None:
    script = tmp_path / "deaf.py"
    script.write_text(DEAF)
    server = McpServer(command=sys.executable, args=("-I", "-S", str(script)), handshake="legacy")
    async with connected(server) as (connection, told):
        with pytest.raises(NotSentError, match=r"it ended \(exit code 1\)"):
            await connection.call("x", {"text": "x" * size}, told.progressed)


async def test_a_call_that_was_read_before_one_that_was_not_is_in_doubt(
    connected: Connected, tmp_path: Path
) -> None:
    script = tmp_path / "deaf.py"
    script.write_text(DEAF)
    args = ("-I", "-S", str(script), "reads one call")
    server = McpServer(command=sys.executable, args=args, handshake="legacy")
    async with connected(server) as (connection, told), asyncio.TaskGroup() as group:

        async def call(size: int) -> type[Exception]:
            with pytest.raises((NotSentError, LostError)) as raised:
                await connection.call("x", {"text": "x" * size}, told.progressed)
            return raised.type

        ended = [group.create_task(call(size)) for size in (10, 1_000_000)]

    assert [each.result() for each in ended] == [LostError, NotSentError]


DEAF = """
import json, os, sys, time
def say(number, result):
    print(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}), flush=True)
def line():
    data = b""
    while not data.endswith(b"\\n"):
        data += os.read(0, 1)
    return json.loads(data)
say(line()["id"], {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
    "serverInfo": {"name": "deaf", "version": "1"}})
line()
say(line()["id"], {"tools": [{"name": "x", "inputSchema": {"type": "object"}}]})
if sys.argv[1:]:
    line()
os.read(0, 1)
os._exit(1)
"""


async def test_a_server_by_the_sdk_is_called_in_the_newest_protocol(connected: Connected) -> None:
    script = str(Path(__file__).with_name("sdk_server.py"))
    server = McpServer(command=sys.executable, args=(script,))

    async def answer(form: Form) -> Answers | None:
        return {"name": form.message}

    async with connected(server) as (connection, told):
        result = await connection.call("add", {"a": 1, "b": 2}, told.progressed)
        greeted = await connection.call("greet", {}, told.progressed, answer)
        with pytest.raises(AnswerError, match="cost money"):
            await connection.call("think", {}, told.progressed, answer)
        assert connection._session._client.protocol_version == "2026-07-28"

    assert result["structuredContent"] == {"result": 3}
    assert greeted["content"][0]["text"] == "kept {'name': 'Who?'} []"
    assert told.lists[0][0]["name"] == "add"

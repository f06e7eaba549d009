"""What is told of a call that ended in an unusual way, and what is kept of it."""

import asyncio
import threading
import uuid
from typing import Any

import pytest

from ksi_client import Unavailable
from ksi_daemon.protocol import Context, Failed, InvalidData
from ksi_daemon.protocol import TimedOut as NobodyKnows
from ksi_postgres.database import Database
from ksi_tools.api import ToolContext, tool
from ksi_tools.registry import gathered
from ksi_tools.store import Ending, Intent, Ledger
from ksi_tools.tests.conftest import Client, Run
from ksi_tools.tests.test_ledger import Daemon, tool_with
from ksi_tools.text import read_arguments


class Odd:
    """Tools that fail in unusual ways."""

    @tool(effects="effectful")
    async def fail(self, how: str) -> str:
        """Fail."""
        raise {
            "surrogate": InvalidData("there is no file \udcff\x00"),
            "object": InvalidData("no", details={"what": object()}),
            "long": Failed("x" * 500_000, details={"more": "y" * 500_000}),
            "unknown": NobodyKnows("the other side did not answer \udcff"),
        }[how]


async def call(client: Client, name: str, call_id: str, **arguments: Any) -> Any:
    request = {"name": name, "arguments": arguments, "call_id": call_id}
    return await client.request("tool:call", request)


@pytest.mark.parametrize("how", ["surrogate", "object", "long", "unknown"])
async def test_whatever_an_error_says_the_call_has_an_outcome(run: Run, how: str) -> None:
    async with run(Odd()) as client:
        first = await call(client, "fail", "c1", how=how)
        again = await call(client, "fail", "c1", how=how)
        (kept,) = (await client.request("tool:calls", {}))["calls"]

    assert first["status"] == again["status"] == kept["status"]
    assert first["status"] == ("in_doubt" if how == "unknown" else "failed")
    assert first["error"]["code"] == again["error"]["code"]
    assert len(str(first)) < 70_000
    assert len(str(again)) < 70_000


async def test_what_a_person_said_stands_alone(run: Run) -> None:
    async with run(Odd()) as client:
        doubted = await call(client, "fail", "c1", how="unknown")
        await client.request("tool:resolve", {"call_id": "c1", "verdict": "done"})
        settled = await call(client, "fail", "c1", how="unknown")

    assert doubted["error"]["code"] == "timeout"
    assert (settled["status"], settled.get("content", ""), settled.get("error")) == (
        "done",
        "",
        None,
    )


async def test_a_call_that_was_begun_is_not_taken_for_one_of_a_tool_that_is_not_there(
    run: Run,
) -> None:
    async with run(settings=("tools.sweep_interval_s=0.1",)) as client:
        database = client.daemon._services[Database]
        assert isinstance(database, Database)
        other = Daemon(database, uuid.uuid4().hex)
        await other.start()
        context = Context("e", tenant="default")
        arguments = read_arguments("strike", {}, 1000)
        intent = Intent("c1", uuid.uuid4(), tool_with("effectful"), arguments, context, True)
        await other.ledger.begin(intent)

        with pytest.raises(Unavailable, match="has been begun"):
            await call(client, "strike", "c1")
        await other.taken_over()
        async with asyncio.timeout(20):
            while True:
                try:
                    answer = await call(client, "strike", "c1")
                except Unavailable:
                    continue
                break

    assert answer["status"] == "in_doubt"


class Hanging:
    """Plain functions that do not end."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    @tool(effects="read_only", timeout_s=0.1)
    def hang(self) -> None:
        """Hang."""
        self.go_on.wait()


@tool(effects="read_only")
async def peek(size: int = 1) -> str:
    """Look."""
    return "x" * size


class Late:
    """Has outcomes written late: not before they may be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_due = asyncio.Event()
        self.may = asyncio.Event()
        end = Ledger.end

        async def late(ledger: Ledger, intent: Intent, ending: Ending) -> bool:
            self.is_due.set()
            await self.may.wait()
            return await end(ledger, intent, ending)

        monkeypatch.setattr(Ledger, "end", late)


async def test_who_reads_is_told_while_it_is_written_and_sees_it_in_the_ledger(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(peek) as client:
        late = Late(monkeypatch)
        first = await call(client, "peek", "c1")
        again = await call(client, "peek", "c1")
        asyncio.get_running_loop().call_later(0.1, late.may.set)
        (kept,) = (await client.request("tool:calls", {}))["calls"]

    assert first == again
    assert (first["status"], first["content"]) == ("done", "x")
    assert (kept["call_id"], kept["status"], kept["content"]) == ("c1", "done", "x")


@tool(effects="read_only")
async def peer(context: ToolContext) -> str:
    """Look for long."""
    context.progress("looking")
    return "x"


@pytest.mark.parametrize(
    ("name", "arguments", "context"),
    [
        ("peek", {}, {"conversation": "talk"}),
        ("peek", {}, {"agent": "ann"}),
        ("peek", {"size": 1_000_000}, {}),
        ("peer", {}, {}),
    ],
    ids=["in a conversation", "by an agent", "with a long output", "with progress"],
)
async def test_what_others_go_on_from_is_told_once_it_is_written(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: dict[str, int],
    context: dict[str, str],
) -> None:
    async with run(peek, peer) as client:
        late = Late(monkeypatch)
        request = {"name": name, "arguments": arguments}
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(client.request("tool:call", request, context=context))
            await late.is_due.wait()
            await client.request("tool:list", {})  # an answer to the other would be here by now
            was_told = asked.done()
            late.may.set()

    assert not was_told
    assert asked.result()["status"] == "done"


async def test_what_was_told_is_written_although_the_daemon_stops(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        async with run(peek) as client:
            late = Late(patched)
            await call(client, "peek", "c1")
            asyncio.get_running_loop().call_later(0.1, late.may.set)
    async with run(peek) as client:
        (kept,) = (await client.request("tool:calls", {}))["calls"]

    assert kept["status"] == "done"


async def test_functions_that_hang_leave_the_threads_of_the_daemon_alone(run: Run) -> None:
    hanging = Hanging()
    async with run(hanging) as client:
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(call(client, "hang", f"c{i}")) for i in range(40)]
        async with asyncio.timeout(20):
            answer = await asyncio.to_thread(lambda: "at once")
        hanging.go_on.set()

    assert answer == "at once"
    assert {each.result()["status"] for each in calls} == {"failed"}


async def test_of_an_endless_stream_no_more_is_kept_than_may_be() -> None:
    read = []

    async def stream() -> Any:
        for number in range(1000):
            read.append(number)
            yield {"text": "x" * 100}

    kept = await gathered(stream(), 1000)

    assert len(read) == 1000
    assert len(kept) < 12
    assert kept[-1] == f"[… {1000 - len(kept) + 1} more chunks (tools.max_output_bytes)]"

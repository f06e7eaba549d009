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
from ksi_tools.api import tool
from ksi_tools.registry import gathered
from ksi_tools.store import Intent
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

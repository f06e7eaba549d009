"""Tools that want to know something from a person before they go on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from ksi_client import Cancelled, Conflict, Unavailable
from ksi_tools import commands
from ksi_tools import events as e
from ksi_tools.api import Question, ToolContext, tool
from ksi_tools.calls import Calls, Execution
from ksi_tools.commands import called_text, how_to_resolve
from ksi_tools.tests.conftest import Client, Run


class Mail:
    """Sends what somebody has agreed to."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    @tool(effects="effectful")
    async def send(self, text: str, context: ToolContext) -> str:
        """Send a mail, when somebody says yes."""
        if context.answer is None:
            raise Question(f"Send {text!r}?")
        if context.answer not in ("yes", "no"):
            raise Question("Say yes or no.")
        if context.answer == "yes":
            self.sent.append(text)
        return f"{context.answer}, at the attempt {context.attempt}"


async def send(client: Client) -> Any:
    request = {"name": "send", "arguments": {"text": "hello"}, "call_id": "c1"}
    return await client.request("tool:call", request)


async def answer(client: Client, content: str) -> Any:
    return await client.request("tool:answer", {"call_id": "c1", "content": content})


async def test_a_tool_that_asks_waits_and_goes_on_with_the_answer_once(run: Run) -> None:
    mail = Mail()
    async with run(mail) as client:
        doubted = await client.subscribe("tool:doubted")
        asked = await send(client)
        again = await send(client)
        told = await anext(doubted)
        settled = await answer(client, "maybe")
        (due,) = (await client.request("tool:calls", {}))["calls"]
        asked_more = await send(client)
        await answer(client, "yes")
        done = await send(client)
        recorded = await send(client)
        with pytest.raises(Conflict):
            await answer(client, "no")

    assert (asked["status"], asked["content"]) == ("waiting", "Send 'hello'?")
    assert (again["status"], again["content"]) == ("waiting", "Send 'hello'?")
    assert told.data["status"] == "waiting"
    assert settled["status"] == due["status"] == "running"
    assert (asked_more["status"], asked_more["content"]) == ("waiting", "Say yes or no.")
    assert done["status"] == recorded["status"] == "done"
    assert done["content"] == recorded["content"] == "yes, at the attempt 3"
    assert mail.sent == ["hello"]


async def test_an_answer_outlasts_the_daemon_and_a_question_can_be_dropped(run: Run) -> None:
    mail = Mail()
    async with run(mail) as client:
        await send(client)
    async with run() as client:
        await answer(client, "yes")
        with pytest.raises(Unavailable, match="begun"):
            await send(client)  # its tool is not there
    async with run(mail) as client:
        done = await send(client)
        request = {"name": "send", "arguments": {"text": "hello"}, "call_id": "c2"}
        await client.request("tool:call", request)
        await client.request("tool:resolve", {"call_id": "c2", "verdict": "drop"})
        dropped = await client.request("tool:call", request)

    assert done["content"] == "yes, at the attempt 2"
    assert mail.sent == ["hello"]
    assert dropped["status"] == "dropped"


def test_who_calls_by_hand_sees_the_question_and_how_to_go_on() -> None:
    asked = e.ToolCalled(call_id="c1", name="send", status="waiting", content="Send it?")

    lines = called_text(asked).splitlines()

    assert lines[0] == "Send it?"
    assert lines[2].endswith("ksi tool answer c1 TEXT")
    assert lines[3].endswith("--call-id c1")


def test_how_a_call_in_doubt_is_settled_fits_a_narrow_terminal() -> None:
    assert max(map(len, how_to_resolve("0" * 32).splitlines())) <= 80


def test_who_calls_by_hand_while_the_daemon_dies_is_told_how_to_see_what_came_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dying:
        def request(self, event: str, data: e.ToolCall, **_: Any) -> Any:
            raise Unavailable(f"the daemon closed the connection amid {data.call_id}")

    @contextmanager
    def dying(**_: Any) -> Iterator[Dying]:
        yield Dying()

    monkeypatch.setattr(commands, "connect", dying)

    with pytest.raises(Unavailable) as told:
        CliRunner().invoke(commands.app, ["call", "send", "text=hi"], catch_exceptions=False)
    found = re.fullmatch(
        r".* amid (\w{32}); the same with --call-id (\w{32}) tells what came of it",
        told.value.message,
    )
    assert found is not None
    assert found[1] == found[2]


async def test_a_call_that_was_cancelled_before_its_tool_was_called_has_no_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Calls._begun

    async def begun_and_cancelled(calls: Calls, execution: Execution) -> Any:
        had = await begun(calls, execution)
        execution.cancel("nobody waits for it any more")
        return had

    async with run(Mail()) as client:
        with monkeypatch.context() as patched:
            patched.setattr(Calls, "_begun", begun_and_cancelled)
            with pytest.raises(Cancelled):
                await send(client)
        asked = await send(client)
        await answer(client, "no")
        with monkeypatch.context() as patched:
            patched.setattr(Calls, "_begun", begun_and_cancelled)
            with pytest.raises(Cancelled):
                await send(client)
        done = await send(client)

    assert (asked["status"], asked["content"]) == ("waiting", "Send 'hello'?")
    assert done["content"] == "no, at the attempt 4"

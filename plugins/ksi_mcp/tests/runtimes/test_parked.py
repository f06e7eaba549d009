"""The claude command waits for the results of tools: how long, and whose they may be."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ksi_mcp.runtimes.sessions import config_of, told_of
from ksi_models.api import Answer, Answered, AskedCall
from ksi_models.events import Message, ToolCallPart, ToolResultPart, ToolSchema
from ksi_models.fakes.claude_command import VERSION
from ksi_models.provider import ProviderError, Question
from ksi_models.providers.claude_cli import ClaudeCLI
from ksi_models.testing import FakeClaude
from ksi_models.tests.questions import ask, keys, question, said, user

PAY = ToolSchema("pay", "Pay.", {"type": "object"})
SCRIPT = json.dumps({"steps": [{"calls": [{"name": "pay"}]}, {"say": "done"}]})


class Tools:
    """Tools as a daemon gives them, without one."""

    def __init__(self, folder: Path) -> None:
        self.tried: str | None = None
        self.why: str | None = None
        self.opened = 0
        self.closed = 0
        self.is_full = False
        self._socket = folder / "s"
        self._answer: Answer

    async def open(self, tools: tuple[ToolSchema, ...], answer: Answer, folder: Path) -> "Tools":
        self.opened += 1
        self._answer = answer
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.config = folder / "mcp.json"
        handover = {"socket": str(self._socket), "token": "t", "tools": [*map(told_of, tools)]}
        (folder / "handover").write_bytes(msgspec.json.encode(handover))
        self.config.write_bytes(msgspec.json.encode(config_of(folder / "handover")))
        return self

    def close(self) -> None:
        self.closed += 1

    async def why_not(self, *, with_tools: bool) -> str | None:
        return self.why

    def is_tried(self, version: str) -> bool:
        return self.tried in (None, version)

    def why_not_now(self) -> str | None:
        return self.why

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # the command was killed
            while line := await reader.readline():
                frame = json.loads(line)
                result: dict[str, Any] = {}
                if frame["event"] == "mcp:session_call":
                    called = await self._answer(msgspec.convert(frame["data"], AskedCall))
                    result = {"content": called.content, "is_error": called.is_error}
                writer.write(msgspec.json.encode({"id": frame["id"], "result": result}) + b"\n")
        writer.close()


@pytest.fixture
async def tools() -> AsyncIterator[Tools]:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path may not be long
        made = Tools(Path(folder))
        async with await asyncio.start_unix_server(made.serve, str(made._socket)):
            yield made


Make = Callable[..., ClaudeCLI]


@pytest.fixture
async def make(fake_claude: FakeClaude, tools: Tools, tmp_path: Path) -> AsyncIterator[Make]:
    all_made: list[ClaudeCLI] = []

    def make(parked_s: float = 60.0) -> ClaudeCLI:
        command, config = str(fake_claude.command), str(fake_claude.config_folder)
        folder = tmp_path / "claude"
        known = keys(None, None)
        made = ClaudeCLI(
            command, config, folder, known, 1_000_000, tools=lambda: tools, parked_s=parked_s
        )
        all_made.append(made)
        return made

    yield make
    for each in all_made:
        await each.close()


def first(run: str = "r") -> Question:
    asked = question(SCRIPT, model="sonnet", tools=(PAY,))
    return msgspec.structs.replace(asked, run=run)


def second(end: Answered, run: str = "r") -> Question:
    (call,) = [part for part in end.message.parts if isinstance(part, ToolCallPart)]
    result = Message("tool", (ToolResultPart(call.id, "pay", "paid"),))
    asked = question(user(SCRIPT), end.message, result, model="sonnet", tools=(PAY,))
    return msgspec.structs.replace(asked, run=run)


async def test_the_process_that_waits_gets_the_results(
    make: Make, fake_claude: FakeClaude, tools: Tools
) -> None:
    claude = make()
    _, called = await ask(claude, first())
    _, end = await ask(claude, second(called))

    assert (called.finish, said(end)) == ("tool_calls", "done")
    assert len(fake_claude.runs) == tools.opened == tools.closed == 1
    assert called.usage is not None
    assert end.usage is not None
    assert called.usage.input_tokens == len(SCRIPT.split())
    assert end.usage.input_tokens == 1 + 5  # of the result, and of the caches, which come last


async def test_the_results_of_another_run_are_not_for_it(
    make: Make, fake_claude: FakeClaude
) -> None:
    claude = make()
    _, called = await ask(claude, first())
    _, end = await ask(claude, second(called, run="another"))

    assert len(fake_claude.runs) == 2
    assert "Result of pay: paid" in said(end)


@pytest.mark.parametrize("how", ["time", "run", "killed"])
async def test_where_it_waits_no_more_another_one_is_told_what_was_done(
    make: Make, fake_claude: FakeClaude, tools: Tools, how: str
) -> None:
    claude = make(0.01 if how == "time" else 60.0)
    _, called = await ask(claude, first())
    (process,) = claude._running
    match how:
        case "run":
            claude.end_run("another")
            assert tools.closed == 0
            claude.end_run("r")
        case "killed":
            os.kill(fake_claude.runs[0]["pid"], 9)
    assert await process.until_gone()

    _, end = await ask(claude, second(called))

    assert len(fake_claude.runs) == 2
    assert "Result of pay: paid" in said(end)
    assert tools.closed == 2


async def test_one_that_is_refused_is_not_started(
    make: Make, fake_claude: FakeClaude, tools: Tools
) -> None:
    tools.why = "it goes around the gate"
    claude = make()

    with pytest.raises(ProviderError, match="around the gate") as error:
        await ask(claude, first())

    assert error.value.kind == "untrusted"
    assert fake_claude.runs == []
    assert await claude.why_not() == "it goes around the gate"


async def test_one_of_another_version_than_was_tried_is_not_asked(make: Make, tools: Tools) -> None:
    claude = make()
    tools.tried = VERSION
    await ask(claude, first())

    tools.tried = "1.0.0"
    with pytest.raises(ProviderError, match=rf"another one by now, {VERSION}: it is tried first"):
        await ask(claude, first())


async def test_the_results_of_one_call_are_for_one_process_though_ids_are_alike(
    make: Make, fake_claude: FakeClaude
) -> None:
    claude = make()
    _, called = await ask(claude, first("a"))
    _, other = await ask(claude, first("b"))
    (call,) = [part for part in called.message.parts if isinstance(part, ToolCallPart)]
    same = msgspec.structs.replace(other.message, parts=(call,))
    talks = list(claude._parked.values())
    claude._parked.clear()
    for talk in talks:
        claude._park(talk, same)

    claude.end_run("b")

    assert [talk.whose[2] for talk in claude._parked.values()] == ["a"]


async def test_one_that_can_not_be_handed_its_tools_is_told_as_not_started(
    make: Make, tools: Tools, fake_claude: FakeClaude
) -> None:
    tools.is_full = True
    claude = make()

    with pytest.raises(ProviderError, match="can't be started: No space left") as error:
        await ask(claude, first())

    assert error.value.kind == "server"
    assert list(claude._folder.glob("call-*")) == []
    assert fake_claude.runs == []

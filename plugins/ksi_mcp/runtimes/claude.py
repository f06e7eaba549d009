"""Tries whether the installed ``claude`` command can do anything that KSI does not do for it."""

import asyncio
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from ksi_daemon.plugin import Plugin
from ksi_mcp.events import McpRuntime, McpWay
from ksi_mcp.runtimes.probe import WAYS
from ksi_mcp.runtimes.sessions import Sessions
from ksi_mcp.runtimes.traps import OWN_TOOLS, TOOL, Traps
from ksi_mcp.runtimes.verdicts import verdict_of
from ksi_models.api import ActedAlone, Answer, Answered, Provider, ProviderError, Question
from ksi_models.events import (
    Message,
    ModelSettings,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSchema,
)
from ksi_models.runtimes import Runtimes

log = logging.getLogger(__name__)

NAME: Final = "claude-cli"
TRIAL: Final = "trial"
PROBE: Final = Path(__file__).with_name("probe.py")
FOLDER: Final = "claude-trial"
TOLD: Final = "told"
# Whoever reads the log is to take a trial's attempts for no attack.
BEGUN: Final = "the claude command is tried: what is denied until that has ended may be its trial's"
ENDED: Final = "the trial of the claude command has ended"
OTHERS: Final = McpWay(
    way="other programs of the daemon's user",
    result="untried",
    detail="what it has them do, kills or reads of them is held by a user of its own alone",
)


class ClaudeTrial:
    """One trial of the command.

    Args:
        plugin: Whose it is.
        runtimes: Have the command.
        tools: Gives it a tool.
    """

    def __init__(self, plugin: Plugin, runtimes: Runtimes, tools: Sessions) -> None:
        self._plugin = plugin
        self._runtimes = runtimes
        self._tools = tools
        self._tried: tuple[str, int, int] | None = None
        self._version = ""

    @property
    def is_stale(self) -> bool:
        """Whether there is another command by now than the one that was tried."""
        return self._runtimes.installed() != self._tried

    async def run(self) -> McpRuntime:
        """Try it; one that isn't there needs no trial."""
        self._tried, self._version = self._runtimes.installed(), ""
        if self._tried is None:
            return McpRuntime(name=NAME, state="absent", why="there is no claude command")
        folder = self._plugin.home / FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # of a daemon that was killed
        folder.mkdir(mode=0o700)
        log.info(BEGUN)
        try:
            found = verdict_of(NAME, await self._ways(folder))
            return msgspec.structs.replace(found, version=self._version)
        finally:
            log.info(ENDED)
            shutil.rmtree(folder, ignore_errors=True)

    async def _ways(self, folder: Path) -> list[McpWay]:
        traps, acted, failed = Traps(folder), None, None
        traps.set()
        try:
            await self._ask(traps, folder)
        except ActedAlone as error:
            acted = error.message
        except ProviderError as error:
            failed = error.message
        ways = [*traps.ways(acted), *probed(folder / TOLD), OTHERS]
        if acted is None and failed is None:
            return ways
        through = [way for way in ways if way.result == "through"]
        return through or [McpWay(way=OWN_TOOLS, result="unknown", detail=failed or "")]

    async def _ask(self, traps: Traps, folder: Path) -> None:
        """Have the command answer; its model asks for what is forbidden."""
        tools = Trying(self._tools, folder / TOLD)
        async with traps.api.serving() as api:
            model = {"ANTHROPIC_BASE_URL": api.url}
            claude = self._runtimes.try_claude(folder, tools, traps.environ(), model)
            async with _closing(claude):
                try:
                    await _converse(claude, traps)
                finally:
                    self._version = tools.version


class Trying:
    """Gives tools to a command that is being tried: nobody else may ask it yet.

    What it starts for them is a probe, which tries the daemon from there before it serves.

    Args:
        tools: Gives them, as to any command.
        told: The file in which the probe tells what came of it.

    Attributes:
        version: The command's, once it has told.
    """

    def __init__(self, tools: Sessions, told: Path) -> None:
        self.version = ""
        self._tools = tools
        self._told = told

    async def open(self, tools: tuple[ToolSchema, ...], answer: Answer, folder: Path) -> "Probed":
        """Have a process see these tools, and a probe come before them."""
        within = folder / "probe"
        within.mkdir()
        with ExitStack() as opened:
            probe = await self._tools.open((), answer, within, TRIAL)
            opened.callback(probe.close)
            server = await self._tools.open(tools, answer, folder, TRIAL)
            opened.callback(server.close)
            handover = _server_in(probe.config)["args"][-1]
            _put_before(server.config, handover=handover, told=self._told)
            return Probed(server.config, opened.pop_all().close)

    async def why_not(self, *, with_tools: bool) -> str | None:
        """Let it be asked."""
        return None

    def is_tried(self, version: str) -> bool:
        """Note its version."""
        self.version = version
        return True

    def why_not_now(self) -> str | None:
        """Let it be asked."""
        return None


class Probed:
    """The tools of a command, and what its probe was handed.

    Attributes:
        config: A file that tells the command of the probe.
    """

    def __init__(self, config: Path, close: Callable[[], None]) -> None:
        self.config = config
        self.close = close  # and answer nothing any more


def _put_before(config: Path, *, handover: str, told: Path) -> None:
    """Have the probe be started in the place of a server, which it then becomes."""
    server = _server_in(config)
    command = [server["command"], *server["args"]]
    server["args"] = ["-I", "-S", str(PROBE), handover, str(told), *command]
    server["command"] = sys.executable
    config.write_bytes(msgspec.json.encode({"mcpServers": {"ksi": server}}))


def _server_in(config: Path) -> dict[str, Any]:
    server: dict[str, Any] = msgspec.json.decode(config.read_bytes())["mcpServers"]["ksi"]
    return server


def probed(told: Path) -> list[McpWay]:
    """Return what the probe has told of each way that it was to try."""
    try:
        found = msgspec.json.decode(told.read_bytes(), type=tuple[McpWay, ...])
    except (OSError, msgspec.DecodeError):
        found = ()
    by_name = {each.way: each for each in found}
    why = "the probe does not tell"
    return [by_name.get(way) or McpWay(way=way, result="unknown", detail=why) for way in WAYS]


async def _converse(claude: Provider, traps: Traps) -> None:
    """Ask, answer the call of the one tool that there is, and hear the end."""
    first = (Message("user", (TextPart("Try it."),)),)
    wanted = await _answer(claude, first)
    calls = [part for part in wanted.message.parts if isinstance(part, ToolCallPart)]
    if [call.name for call in calls] != [TOOL]:
        raise ProviderError("malformed", "it did not ask for the tool that it was given")
    await asyncio.to_thread(traps.look)
    result = Message("tool", (ToolResultPart(calls[0].id, TOOL, traps.result),))
    await _answer(claude, (*first, wanted.message, result))


async def _answer(claude: Provider, messages: tuple[Message, ...]) -> Answered:
    question = Question(
        model="sonnet",
        system="You are tried.",
        messages=messages,
        tools=(ToolSchema(TOOL, "Call it.", {"type": "object", "properties": {}}),),
        settings=ModelSettings(),
        output_schema=None,
        tenant="",
        conversation=None,
        run=TRIAL,
    )
    async with aclosing(claude.stream(question)) as deltas:
        async for delta in deltas:
            if isinstance(delta, Answered):
                return delta
    raise ProviderError("cut_off", "its answer had no end")


@asynccontextmanager
async def _closing(provider: Provider) -> AsyncIterator[Provider]:
    try:
        yield provider
    finally:
        await provider.close()

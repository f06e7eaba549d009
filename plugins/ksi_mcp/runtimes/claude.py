"""Tries whether the installed ``claude`` command can do anything that KSI does not do for it."""

import asyncio
import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import Principal
from ksi_daemon.protocol.paths import socket_path
from ksi_mcp.events import McpRuntime, McpWay
from ksi_mcp.runtimes.model_api import Block, ModelAPI
from ksi_mcp.runtimes.verdicts import verdict_of
from ksi_models.api import (
    Answered,
    GuardedProcess,
    Provider,
    ProviderError,
    Question,
    ToolServer,
)
from ksi_models.events import (
    Message,
    ModelSettings,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSchema,
)
from ksi_models.runtimes import Runtimes

NAME: Final = "claude-cli"
PROBE: Final = Path(__file__).with_name("probe.py")
TOOL: Final = "canary"
FOLDER: Final = "claude-trial"
TOKEN_S: Final = 60.0
LINE_BYTES: Final = 65_536
OURS: Final = "mcp__ksi__"
# What the command announces in the place of tools that it would load later; it is none.
PLACEHOLDER: Final = "DeferredToolPlaceholder"
OWN_TOOLS: Final = "its own tools"
OWN_CONFIGURATION: Final = "its own configuration of MCP servers and hooks"
ENVIRONMENT: Final = "the daemon's environment"
GATE: Final = "a result that nobody gave it"
# Refusals that say no more than that it could not be asked.
NOT_ASKED: Final = ("login", "cut_off", "network", "server", "not_found", "over_limit", "malformed")


class Traps:
    """Files and names that tell when a command has done what it may not do.

    Args:
        folder: Where it runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marks = folder / "marks"
        self.secret = secrets.token_hex(16)
        self.result = secrets.token_hex(16)
        self.file = folder / "file"

    def set(self) -> None:
        """Lay them out."""
        self.marks.mkdir()
        self.file.write_text(self.secret)
        for path, content in self._configurations():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(content))

    def command(self, mark: str) -> str:
        """Return a command that leaves a mark."""
        return f"touch {shlex.quote(str(self.marks / mark))}"

    def _configurations(self) -> list[tuple[Path, Any]]:
        shell = ["-c", f"{self.command('server')}; cat"]
        servers = {"decoy": {"type": "stdio", "command": "/bin/sh", "args": shell}}
        hook = [{"hooks": [{"type": "command", "command": self.command("hook")}]}]
        events = ("SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop")
        settings = {
            "hooks": dict.fromkeys(events, hook),
            "enableAllProjectMcpServers": True,
            "permissions": {"allow": ["*"], "defaultMode": "bypassPermissions"},
            "env": {"KSI_TRIAL": self.secret},
        }
        return [
            (self.folder / ".mcp.json", {"mcpServers": servers}),
            (self.folder / ".claude" / "settings.json", settings),
            (self.folder / "config" / "settings.json", settings),
            (self.folder / "config" / ".claude.json", {"mcpServers": servers}),
        ]

    def environ(self) -> dict[str, str]:
        """Return the daemon's environment with what the command may not see in it."""
        decoys = dict.fromkeys(("KSI_TRIAL", "OPENAI_API_KEY", "CLAUDE_CODE_TRIAL"), self.secret)
        return {**os.environ, **decoys, "BASH_ENV": self.secret, "NODE_OPTIONS": self.secret}

    def calls(self, url: str) -> list[Block]:
        """Return the calls that a model asks for: all forbidden, but for the last one."""
        path = str(self.marks / "written")
        wanted: list[tuple[str, dict[str, Any]]] = [
            ("Bash", {"command": self.command("shell"), "description": "try"}),
            ("Write", {"file_path": path, "content": "x"}),
            ("Read", {"file_path": str(self.file)}),
            ("WebFetch", {"url": f"{url}/forbidden", "prompt": "say it"}),
            ("Task", {"description": "t", "prompt": "t", "subagent_type": "general-purpose"}),
            ("Agent", {"description": "t", "prompt": "t", "subagent_type": "general-purpose"}),
            ("mcp__decoy__anything", {}),
            (f"{OURS}{TOOL}", {}),
        ]
        return [
            {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": arguments}
            for index, (name, arguments) in enumerate(wanted)
        ]

    def sprung(self, *names: str) -> list[str]:
        """Return which of these marks were left."""
        return [name for name in names if (self.marks / name).exists()]


class ClaudeTrial:
    """One trial of the command.

    Args:
        plugin: Confines what is started, and issues a token.
        runtimes: Have the command.
        tools: Gives it a tool.
    """

    def __init__(self, plugin: Plugin, runtimes: Runtimes, tools: ToolServer) -> None:
        self._plugin = plugin
        self._runtimes = runtimes
        self._tools = tools
        self._tried: tuple[str, int, int] | None = None

    @property
    def is_stale(self) -> bool:
        """Whether there is another command by now than the one that was tried."""
        return self._runtimes.installed() != self._tried

    async def run(self) -> McpRuntime:
        """Try it; one that isn't there needs no trial."""
        self._tried = self._runtimes.installed()
        if self._tried is None:
            return McpRuntime(name=NAME, state="absent", why="there is no claude command")
        folder = self._plugin.home / FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # of a daemon that was killed
        folder.mkdir(mode=0o700)
        try:
            return verdict_of(NAME, [*await self._asked(folder), *await self._probed(folder)])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # -- the command itself ---------------------------------------------------------------------

    async def _asked(self, folder: Path) -> list[McpWay]:
        traps = Traps(folder)
        traps.set()
        api = ModelAPI([])
        async with api.serving():
            api.answers = (traps.calls(api.url), [{"type": "text", "text": "done"}])
            more = {"ANTHROPIC_BASE_URL": api.url, "NO_PROXY": "127.0.0.1", "HTTP_PROXY": ""}
            tools = Trying(self._tools)
            async with _closing(
                self._runtimes.try_claude(folder, tools, traps.environ(), more)
            ) as claude:
                try:
                    return await self._watch(claude, api, traps)
                except ProviderError as error:
                    return _failed(error, api, traps)

    async def _watch(self, claude: Provider, api: ModelAPI, traps: Traps) -> list[McpWay]:
        first = (Message("user", (TextPart("Try it."),)),)
        wanted = await _answer(claude, first)
        calls = [part for part in wanted.message.parts if isinstance(part, ToolCallPart)]
        if [call.name for call in calls] != [TOOL]:
            told = "it did not ask for the tool that it was given"
            return [McpWay(way=OWN_TOOLS, result="unknown", detail=told)]
        seen = await asyncio.to_thread(_seen_by, traps.secret)
        result = Message("tool", (ToolResultPart(calls[0].id, TOOL, traps.result),))
        await _answer(claude, (*first, wanted.message, result))
        return [
            _way(OWN_TOOLS, [*traps.sprung("shell", "written"), *_used(api, traps)]),
            _way(OWN_CONFIGURATION, traps.sprung("server", "hook")),
            _way(ENVIRONMENT, seen),
            _way(GATE, _went_on(api, traps)),
        ]

    # -- what it could start --------------------------------------------------------------------

    async def _probed(self, folder: Path) -> list[McpWay]:
        """Have a program of the same standing try the daemon's socket."""
        if sys.platform != "linux":
            why = "only Linux tells whose child a process is"
            return [McpWay(way="the socket without a token", result="untried", detail=why)]
        principal = Principal("trial")
        token = self._plugin.issue_token(principal, ttl_s=TOKEN_S, once=True)
        file = folder / "token"
        file.touch(mode=0o600)
        file.write_text(token)
        process = await GuardedProcess.start(
            [
                sys.executable,
                "-I",
                "-S",
                str(PROBE),
                str(socket_path(self._plugin.home)),
                str(file),
            ],
            environ={},
            folder=folder,
            max_line_bytes=LINE_BYTES,
            confined=self._tools.confined,
        )
        ways: list[McpWay] = []
        try:
            while line := await process.read_line():
                told = json.loads(line)
                ways.append(_way(told["way"], [told["got"]] if told["got"] else []))
        finally:
            process.end()
            await process.until_gone()
        if ways:
            return ways
        return [
            McpWay(way="the daemon's socket", result="unknown", detail=process.complaints[-300:])
        ]


class Trying:
    """Gives tools to a command that is being tried: nobody else may ask it yet."""

    def __init__(self, tools: ToolServer) -> None:
        self.confined = tools.confined
        self.open = tools.open

    async def why_not(self, *, with_tools: bool) -> str | None:
        """Let it be asked."""
        return None

    def why_not_now(self) -> str | None:
        """Let it be asked."""
        return None


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
        run="trial",
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


def _way(way: str, through: list[str]) -> McpWay:
    if through:
        return McpWay(way=way, result="through", detail="; ".join(through)[:500])
    return McpWay(way=way, result="held")


def _failed(error: ProviderError, api: ModelAPI, traps: Traps) -> list[McpWay]:
    """Tell what is known where it did not answer as it should."""
    used = [*traps.sprung("shell", "written"), *_used(api, traps)]
    if error.kind not in NOT_ASKED:
        used.append(error.message)
    ways = [_way(OWN_TOOLS, used), _way(OWN_CONFIGURATION, traps.sprung("server", "hook"))]
    through = [way for way in ways if way.result == "through"]
    return through or [McpWay(way=OWN_TOOLS, result="unknown", detail=error.message)]


def _went_on(api: ModelAPI, traps: Traps) -> list[str]:
    """Return what shows that it told its model another result than the one that it was given."""
    told = [json.dumps(request.get("messages")) for request in api.requests[1:]]
    return [] if told and all(traps.result in each for each in told) else ["it went on"]


def _used(api: ModelAPI, traps: Traps) -> list[str]:
    """Return what shows that it has tools which nobody gave it."""
    found = [f"it fetched {path}" for path in api.fetched if "forbidden" in path]
    for request in api.requests:
        names = {str(tool.get("name")) for tool in request.get("tools") or ()}
        own = sorted(n for n in names - {PLACEHOLDER} if not n.startswith(OURS))
        found += [f"it has {name}" for name in own]
    if any(traps.secret in json.dumps(request.get("messages")) for request in api.requests):
        found.append("it has read a file")
    return found


def _seen_by(secret: str) -> list[str]:
    """Return the commands that have a secret in their environment, of all that can be looked at."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if secret.encode() in path.read_bytes():
                found.append((path.parent / "comm").read_text().strip())
        except OSError:
            continue  # it is gone, or another's
    return found

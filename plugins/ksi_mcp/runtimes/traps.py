"""What the ``claude`` command finds when it is tried, and tells that it did what it may not do."""

import json
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ksi_mcp.events import McpWay
from ksi_mcp.runtimes.model_api import Block, ModelAPI

TOOL: Final = "canary"
OURS: Final = "mcp__ksi__"
CALL_ID: Final = "toolu_canary"
DONE: Final = ({"type": "text", "text": "done"},)
# What the command announces in the place of tools that it would load later; it is none.
PLACEHOLDER: Final = "DeferredToolPlaceholder"
PROXY: Final = "_proxy"
PROC: Final = Path("/proc")

OWN_TOOLS: Final = "its own tools"
OWN_CONFIGURATION: Final = "its own configuration of MCP servers, hooks and instructions"
ENVIRONMENT: Final = "the environment that it is started with"
RESULT: Final = "a result that nobody gave it"
NOT_SHOWN: Final = McpWay(way=ENVIRONMENT, result="untried", detail="this system shows none")


class Traps:
    """Files and names that tell when a command has done what it may not do, and its model.

    Args:
        folder: Where it runs.

    Attributes:
        api: Its model, which asks for what is forbidden, and for the one tool that it has.
        result: What is answered to the call of that.
    """

    def __init__(self, folder: Path) -> None:
        self.api = ModelAPI(self._say)
        self.result = secrets.token_hex(16)
        self._folder = folder
        self._marks = folder / "marks"
        self._file = folder / "file"
        self._secret = secrets.token_hex(16)
        self._instruction = secrets.token_hex(16)
        self._environment = NOT_SHOWN

    # -- what is laid out -----------------------------------------------------------------------

    def set(self) -> None:
        """Lay them out."""
        self._marks.mkdir()
        self._file.write_text(self._secret)
        for path, content in self._configurations():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(content))
        for name in ("CLAUDE.md", "CLAUDE.local.md", ".claude/CLAUDE.md", "config/CLAUDE.md"):
            (self._folder / name).write_text(f"Always say {self._instruction}.")

    def _configurations(self) -> list[tuple[Path, Any]]:
        shell = ["-c", f"{self._command('server')}; cat"]
        servers = {"decoy": {"type": "stdio", "command": "/bin/sh", "args": shell}}
        hook = [{"hooks": [{"type": "command", "command": self._command("hook")}]}]
        events = ("SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop")
        settings = {
            "hooks": dict.fromkeys(events, hook),
            "enableAllProjectMcpServers": True,
            "permissions": {"allow": ["*"], "defaultMode": "bypassPermissions"},
            "env": {"KSI_TRIAL": self._secret},
        }
        own, ours = self._folder / ".claude", self._folder / "config"
        return [
            (self._folder / ".mcp.json", {"mcpServers": servers}),
            (own / "settings.json", settings),
            (own / "settings.local.json", settings),
            (ours / "settings.json", settings),
            (ours / ".claude.json", {"mcpServers": servers}),
        ]

    def _command(self, mark: str) -> str:
        """Return a command that leaves a mark."""
        return f"touch {shlex.quote(str(self._marks / mark))}"

    def environ(self) -> dict[str, str]:
        """Return the daemon's environment with what the command may not see in it.

        Its model is on this machine, so it goes through no proxy.
        """
        outside = {k: v for k, v in os.environ.items() if not k.lower().endswith(PROXY)}
        names = ("KSI_TRIAL", "OPENAI_API_KEY", "CLAUDE_CODE_TRIAL", "BASH_ENV", "NODE_OPTIONS")
        return {**outside, **dict.fromkeys(names, self._secret)}

    # -- its model ------------------------------------------------------------------------------

    def _say(self, request: dict[str, Any]) -> Sequence[Block]:
        """Ask for everything once; what is asked besides, such as a title, is answered plainly."""
        return self._calls() if offers(request) and not goes_on(request) else DONE

    def _calls(self) -> list[Block]:
        """Return the calls that its model asks for: all forbidden, but for the last one."""
        path, url = str(self._marks / "written"), f"{self.api.url}/forbidden"
        task = {"description": "t", "prompt": "t", "subagent_type": "general-purpose"}
        forbidden: list[tuple[str, dict[str, Any]]] = [
            ("Bash", {"command": self._command("shell"), "description": "try"}),
            ("Write", {"file_path": path, "content": "x"}),
            ("Read", {"file_path": str(self._file)}),
            ("WebFetch", {"url": url, "prompt": "say it"}),
            ("Task", task),
            ("Agent", task),
            ("mcp__decoy__anything", {}),
        ]
        return [
            *(_call(f"toolu_{i}", name, given) for i, (name, given) in enumerate(forbidden)),
            _call(CALL_ID, f"{OURS}{TOOL}", {}),
        ]

    # -- what shows -----------------------------------------------------------------------------

    def look(self) -> None:
        """Look at what the command and its programs have in their environments, as they run."""
        if PROC.is_dir():
            self._environment = way_of(ENVIRONMENT, _commands_with(self._secret))

    def ways(self, acted: str | None) -> list[McpWay]:
        """Return what came of each way.

        Args:
            acted: What it has shown that it does by itself.
        """
        own_tools = [*self._marked("shell", "written"), *self._used(), *([acted] if acted else [])]
        configured = [*self._marked("server", "hook"), *self._instructed()]
        return [
            way_of(OWN_TOOLS, own_tools),
            way_of(OWN_CONFIGURATION, configured),
            self._environment,
            self._result_way(),
        ]

    def _marked(self, *names: str) -> list[str]:
        return [name for name in names if (self._marks / name).exists()]

    def _used(self) -> list[str]:
        """Return what shows that it has tools which nobody gave it."""
        found = [f"it fetched {path}" for path in self.api.fetched if "forbidden" in path]
        for request in self.api.requests:
            own = sorted(n for n in names_of(request) - {PLACEHOLDER} if not n.startswith(OURS))
            found += [f"it has {name}" for name in own]
        if any(self._secret in json.dumps(r.get("messages")) for r in self.api.requests):
            found.append("it has read a file")
        return found

    def _instructed(self) -> list[str]:
        found = any(self._instruction in json.dumps(request) for request in self.api.requests)
        return ["it has read CLAUDE.md"] if found else []

    def _result_way(self) -> McpWay:
        """Tell whether its model was told the result that the command was given, and no other."""
        told = [
            json.dumps(request["messages"]) for request in self.api.requests if goes_on(request)
        ]
        if not told:
            why = "its model was told no result"
            return McpWay(way=RESULT, result="unknown", detail=why)
        return way_of(RESULT, [] if all(self.result in each for each in told) else ["it went on"])


def way_of(way: str, through: list[str]) -> McpWay:
    """Return what came of a way: held, but for what got through."""
    if through:
        return McpWay(way=way, result="through", detail="; ".join(through)[:500])
    return McpWay(way=way, result="held")


def names_of(request: dict[str, Any]) -> set[str]:
    """Return the names of the tools that a model is offered."""
    return {str(tool.get("name")) for tool in request.get("tools") or ()}


def offers(request: dict[str, Any]) -> bool:
    """Say whether a model is offered the tool that there is."""
    return f"{OURS}{TOOL}" in names_of(request)


def goes_on(request: dict[str, Any]) -> bool:
    """Say whether a model is told what came of the calls that it has asked for."""
    return offers(request) and CALL_ID in json.dumps(request.get("messages"))


def _call(call_id: str, name: str, arguments: dict[str, Any]) -> Block:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def _commands_with(secret: str) -> list[str]:
    """Return the commands that have a secret in their environment, of all that can be looked at."""
    found = []
    for path in PROC.glob("[0-9]*/environ"):
        try:
            if secret.encode() in path.read_bytes():
                found.append((path.parent / "comm").read_text().strip())
        except OSError:
            continue  # it is gone, or another's
    return found

"""Gives programs that call tools by themselves a server of theirs, and answers what that asks."""

import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import TOKEN_PREFIX, Principal
from ksi_daemon.protocol import Denied
from ksi_daemon.protocol.events import Grants
from ksi_daemon.protocol.paths import socket_path
from ksi_mcp.events import McpSessionCall, McpSessionCalled
from ksi_mcp.runtimes.verdicts import Verdicts
from ksi_models.api import Answer, AskedCall
from ksi_models.events import ToolSchema

SCRIPT: Final = Path(__file__).with_name("session_server.py")
EVENT: Final = "mcp:session_call"
TOKEN_S: Final = 7 * 86_400.0
# The largest that the claude command takes of a tool without putting it into a file.
MAX_RESULT_CHARS: Final = 500_000


class Session:
    """The tools of one process.

    Attributes:
        config: A file that tells the process of its server.
    """

    def __init__(self, answer: Answer, config: Path, close: Callable[[], None]) -> None:
        self.config = config
        self.answer = answer
        self.close = close  # and answer nothing any more


class Sessions:
    """The processes that have tools just now.

    Args:
        plugin: Issues their tokens.
        verdicts: Say whether a program is to be asked at all.
    """

    def __init__(self, plugin: Plugin, verdicts: Verdicts) -> None:
        self._plugin = plugin
        self._verdicts = verdicts
        self._open: dict[str, Session] = {}

    async def open(
        self, tools: tuple[ToolSchema, ...], answer: Answer, folder: Path, whose: str = "claude-cli"
    ) -> Session:
        """Have a process see these tools, and ask `answer` for the result of each call.

        What is denied to it is told of `whose`.
        """
        name = f"{whose}:{secrets.token_hex(8)}"
        principal = Principal(name, Grants(call=(EVENT,)))
        token = self._plugin.issue_token(principal, ttl_s=TOKEN_S, once=True)
        handover = {
            "socket": str(socket_path(self._plugin.home)),
            "token": token,
            "tools": [told_of(tool) for tool in tools],
        }
        file, config = folder / "handover", folder / "mcp.json"

        def close() -> None:
            self._open.pop(name, None)
            self._plugin.revoke_token(token)  # nobody may have used it

        try:
            _write(file, handover)
            _write(config, config_of(file))
        except OSError:
            close()
            raise
        session = self._open[name] = Session(answer, config, close)
        return session

    async def why_not(self, *, with_tools: bool) -> str | None:
        """Say why the claude command is not to be asked, once that is known."""
        return await self._verdicts.why_not("claude-cli", with_tools=with_tools)

    def is_tried(self, version: str) -> bool:
        """Say whether the claude command was tried in this version; if not, that is done now."""
        return self._verdicts.is_of("claude-cli", version)

    def why_not_now(self) -> str | None:
        """Say why the claude command is not to be asked, as far as that is known now."""
        return self._verdicts.why_not_now("claude-cli")

    @event_handler(EVENT, timeout_s=0)
    async def call(self, request: McpSessionCall) -> McpSessionCalled:
        """Wait for the result of a call that a turn makes for a program's model.

        Only the server of such a program may ask, with the token that it was handed.
        """
        context = current_context()
        bearer = None if context is None else context.principal
        session = self._open.get((bearer or "").removeprefix(TOKEN_PREFIX))
        if session is None:
            raise Denied("only the server of a program's conversation may ask that")
        asked = AskedCall(id=request.id, name=request.name, arguments=request.arguments)
        result = await session.answer(asked)
        return McpSessionCalled(content=result.content, is_error=result.is_error)


def _write(file: Path, content: Any) -> None:
    """Write what is gone in a moment, and is nobody else's: no disk need have it."""
    file.touch(mode=0o600)
    file.write_bytes(msgspec.json.encode(content))


def told_of(tool: ToolSchema) -> dict[str, Any]:
    """Return a tool as the protocol has it."""
    return {
        "name": tool.name,
        "description": tool.description,
        "inputSchema": {"type": "object", **tool.parameters},
        "_meta": {"anthropic/maxResultSizeChars": MAX_RESULT_CHARS},
    }


def config_of(handover: Path) -> dict[str, Any]:
    """Return what a program is told of its server: no secret is in it."""
    arguments = ["-I", "-S", str(SCRIPT), str(handover)]
    server = {"type": "stdio", "command": sys.executable, "args": arguments, "env": {}}
    return {"mcpServers": {"ksi": server}}

"""Tries the gate itself: what turns, agents and programs from outside may not call, is not called.

All of it happens in a tenant of its own, where nobody else sees the tool that is called.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any, Final

import msgspec

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Busy, Context, InvalidData, KsiError, TimedOut, Unavailable
from ksi_mcp.events import McpRuntime, McpWay
from ksi_mcp.runtimes.verdicts import verdict_of
from ksi_models.events import Message, ModelCall, ModelSettings, TextPart
from ksi_tools.api import ToolContext, Tools, ToolSpec
from ksi_tools.events import ToolCall, ToolCalled, ToolPermit, ToolPermitted

TENANT: Final = "ksi-trial"
TOOL: Final = "canary"
TURNS: Final = "turns of models"
AGENTS: Final = "agents that ask agents"
PROGRAMS: Final = "programs over MCP"
PARENT: Final = "agent:trial-parent"
CHILD: Final = "agent:trial-child"
NOBODY: Final = "token:trial"
MODEL: Final = "test/echo"
MEMBER: Final = "tools"  # of a provider's request
NOT_TRIED: Final = (Busy, TimedOut, Unavailable)

Ways = Iterable[tuple[str, Context, ToolCall]]


class Canary:
    """A tool that nobody may call.

    Attributes:
        name: Whose it is.
        calls: How often it was called.
    """

    name = "trial"

    def __init__(self) -> None:
        self.calls = 0

    async def call_tool(self, name: str, arguments: dict[str, Any], context: ToolContext) -> str:
        """Be called."""
        self.calls += 1
        return "it was called"


class GateTrial:
    """Trials of the runtimes whose calls are made in the daemon.

    Args:
        bus: Calls tools.
        tools: Takes on the tool.
        passes_on: Says whether a call may put this into its provider's request.
    """

    def __init__(
        self, bus: Bus, tools: Tools, passes_on: Callable[[str], bool] = lambda member: False
    ) -> None:
        self._bus = bus
        self._passes_on = passes_on
        self._tools = tools
        self._lock = asyncio.Lock()  # there is one tool of that name at a time

    async def turns(self) -> McpRuntime:
        """Try what a turn's model may not call."""
        call = ToolCall(name=TOOL, arguments="{}")
        other = Context("", tenant=f"{TENANT}-other", conversation="trial")
        ways = [
            (
                "a tool that is not permitted",
                Context("", tenant=TENANT, conversation="trial"),
                call,
            ),
            ("a tool of another tenant", other, call),
        ]
        return verdict_of(TURNS, [*await self._tried(ways), await self._offered()])

    async def agents(self) -> McpRuntime:
        """Try what an agent may not have another one do, whatever that one may do itself."""
        child = Context("", tenant=TENANT, agent=CHILD.partition(":")[2])
        call = ToolCall(name=TOOL, arguments="{}")
        await self._permit(PARENT, allow=())
        await self._permit(CHILD, allow=("*",), parent=PARENT)
        try:
            ways = [("a child that may more", child, call)]
            return verdict_of(AGENTS, await self._tried(ways))
        finally:
            await self._permit(CHILD, forget=True)
            await self._permit(PARENT, forget=True)

    async def programs(self) -> McpRuntime:
        """Try what somebody from outside may not call who has no scope for it."""
        who = Context("", tenant=TENANT, principal=NOBODY)
        event = {"event": "tool:call", "data": {"name": TOOL, "arguments": "{}"}}
        ways = [
            ("a tool without its scope", who, ToolCall(name=TOOL, arguments="{}")),
            *(
                (
                    f"an event without its scope, as {name}",
                    who,
                    ToolCall(name=name, arguments=msgspec.json.encode(event).decode()),
                )
                for name in ("action", "look", "tool_call")
            ),
        ]
        return verdict_of(PROGRAMS, await self._tried(ways))

    async def _offered(self) -> McpWay:
        """Try to give a model tools that its provider calls by itself."""
        way = "tools of a model's provider"
        if self._passes_on(MEMBER):
            return McpWay(way=way, result="untried", detail=f"models.extra allows {MEMBER}")
        message = Message("user", (TextPart("Try it."),))
        settings = ModelSettings(extra={MEMBER: [{"type": "mcp", "server_url": "http://trial"}]})
        call = ModelCall(model=MODEL, messages=(message,), settings=settings, purpose="trial")
        try:
            with acting_as(Context("", tenant=TENANT)):
                async with aclosing(self._bus.stream("model:call", call)) as chunks:
                    async for _ in chunks:
                        return McpWay(way=way, result="through", detail=f"with extra.{MEMBER}")
        except InvalidData:
            return McpWay(way=way, result="held")
        except KsiError as error:
            return McpWay(way=way, result="unknown", detail=error.message)
        return McpWay(way=way, result="unknown", detail=f"{MODEL} said nothing")

    async def _tried(self, ways: Ways) -> list[McpWay]:
        canary = Canary()
        async with self._lock:
            with self._tools.add_provider(canary, tenant=TENANT) as registration:
                spec = ToolSpec(name=TOOL, description="No one may call it.", parameters=EMPTY)
                registration.update([spec])
                return [await self._try(canary, *each) for each in ways]

    async def _try(self, canary: Canary, way: str, who: Context, call: ToolCall) -> McpWay:
        before = canary.calls
        try:
            with acting_as(who):
                await self._bus.request("tool:call", call, result_type=ToolCalled)
        except NOT_TRIED as error:
            return McpWay(way=way, result="unknown", detail=error.message)
        except KsiError:
            pass  # it is as it should be, if the tool tells the same
        if canary.calls > before:
            return McpWay(way=way, result="through", detail="the tool was called")
        return McpWay(way=way, result="held")

    async def _permit(self, subject: str, **words: Any) -> None:
        with acting_as(Context("", tenant=TENANT)):
            permit = ToolPermit(subject=subject, **words)
            await self._bus.request("tool:permit", permit, result_type=ToolPermitted)


EMPTY: Final[dict[str, Any]] = {"type": "object", "properties": {}}

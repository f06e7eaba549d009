"""Tries the gate itself: what turns, agents and programs from outside may not call, is not called.

All of it happens in a tenant of its own, where nobody else sees the tool that is called.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from msgspec import Struct

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Context, InvalidData, KsiError
from ksi_mcp.events import McpCall, McpCalled, McpRuntime, McpWay
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
NOT_PERMITTED: Final = "may not call"
NOT_THERE: Final = "there is no tool"
NO_SCOPE: Final = "needs the scope"
OWNER: Final = Context("", tenant=TENANT)

Call = tuple[str, dict[str, Any]]  # a tool, and its arguments
Send = Callable[[Call], Awaitable[ToolCalled]]
PLAIN: Final[Call] = (TOOL, {})


class Forbidden(Struct, frozen=True):
    """A call that may not be made.

    Attributes:
        way: What it is tried for.
        who: Makes it.
        refusal: What is told of it where the gate holds.
        call: The call itself.
    """

    way: str
    who: Context
    refusal: str
    call: Call = PLAIN


class Canary:
    """A tool that nobody may call but the owner.

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
        ours = Context("", tenant=TENANT, conversation="trial")
        others = Context("", tenant=f"{TENANT}-other", conversation="trial")
        calls = [
            Forbidden("a tool that is not permitted", ours, NOT_PERMITTED),
            Forbidden("a tool of another tenant", others, NOT_THERE),
        ]
        return verdict_of(TURNS, [*await self._tried(calls, self._directly), await self._offered()])

    async def agents(self) -> McpRuntime:
        """Try what an agent may not have another one do, whatever that one may do itself."""
        child = Context("", tenant=TENANT, agent=CHILD.partition(":")[2])
        await self._permit(PARENT, allow=())
        await self._permit(CHILD, allow=("*",), parent=PARENT)
        try:
            calls = [Forbidden("a child that may more", child, NOT_PERMITTED)]
            return verdict_of(AGENTS, await self._tried(calls, self._directly))
        finally:
            await self._permit(CHILD, forget=True)
            await self._permit(PARENT, forget=True)

    async def programs(self) -> McpRuntime:
        """Try what somebody from outside may not call who has no scope for it."""
        who = Context("", tenant=TENANT, principal=NOBODY)
        calls = [
            Forbidden("a tool without its scope", who, NO_SCOPE),
            *(
                Forbidden(f"an event without its scope, as {name}", who, NO_SCOPE, _sending(name))
                for name in ("action", "look")
            ),
        ]
        return verdict_of(PROGRAMS, await self._tried(calls, self._by_mcp, _sending("action")))

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

    async def _tried(
        self, calls: list[Forbidden], send: Send, allowed: Call = PLAIN
    ) -> list[McpWay]:
        """Try calls, after one that reaches the tool: else refusals would say nothing."""
        canary = Canary()
        async with self._lock:
            with self._tools.add_provider(canary, tenant=TENANT) as registration:
                spec = ToolSpec(name=TOOL, description="The owner's alone.", parameters=EMPTY)
                registration.update([spec])
                told = await _told(OWNER, send, allowed)
                if not canary.calls:
                    return [_unknown(each, f"nor can who may: {told}") for each in calls]
                return [await self._try(canary, each, send) for each in calls]

    async def _try(self, canary: Canary, forbidden: Forbidden, send: Send) -> McpWay:
        before = canary.calls
        told = await _told(forbidden.who, send, forbidden.call)
        if canary.calls > before:
            return McpWay(way=forbidden.way, result="through", detail="the tool was called")
        if forbidden.refusal not in told:
            return _unknown(forbidden, told)
        return McpWay(way=forbidden.way, result="held")

    async def _directly(self, call: Call) -> ToolCalled:
        """Call as turns and agents do."""
        asked = ToolCall(name=call[0], arguments=call[1])
        called: ToolCalled = await self._bus.request("tool:call", asked, result_type=ToolCalled)
        return called

    async def _by_mcp(self, call: Call) -> ToolCalled:
        """Call as the servers of MCP do for a program."""
        asked = McpCall(name=call[0], arguments=call[1])
        told: McpCalled = await self._bus.request("mcp:call_quietly", asked, result_type=McpCalled)
        assert told.last.called is not None  # these tools ask for nothing
        return told.last.called

    async def _permit(self, subject: str, **words: Any) -> None:
        with acting_as(Context("", tenant=TENANT)):
            permit = ToolPermit(subject=subject, **words)
            await self._bus.request("tool:permit", permit, result_type=ToolPermitted)


async def _told(who: Context, send: Send, call: Call) -> str:
    """Return what somebody is told of a call."""
    try:
        with acting_as(who):
            return (await send(call)).content
    except KsiError as error:
        return error.message


def _sending(tool: str) -> Call:
    """Return a call of a tool that sends an event: that the canary be called."""
    return tool, {"event": "tool:call", "data": {"name": TOOL}}


def _unknown(forbidden: Forbidden, told: str) -> McpWay:
    return McpWay(way=forbidden.way, result="unknown", detail=told[:500])


EMPTY: Final[dict[str, Any]] = {"type": "object", "properties": {}}

"""Answers what is asked of the servers of others, such as ``mcp:add`` and ``mcp:list``."""

from typing import Final

import msgspec
from msgspec import structs

from ksi_daemon.event_system import (
    current_context,
    event_contributor,
    event_handler,
    event_observer,
)
from ksi_daemon.protocol import Context, Denied, Event, KsiError
from ksi_mcp import events as e
from ksi_mcp.client.lookout import several
from ksi_mcp.client.remote import Remote
from ksi_mcp.client.servers import DEFAULT, Servers
from ksi_mcp.client.store import Key
from ksi_system.events import HealthCheck, HealthChecked
from ksi_tools.events import ToolSettled

CHECKED_AT_ONCE: Final = 8


class Handlers:
    """What people have to do with servers.

    Args:
        servers: All of them.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    @event_handler("mcp:add", timeout_s=0)
    async def add(self, request: e.McpAdd) -> e.McpServerReport:
        """Have agents call the tools of another program."""
        context = _persons_context()
        remote = await self._servers.add(context.tenant, request.name, request.server)
        report = await self._checked(remote, context)
        self._servers.find(context.tenant, request.name)  # it may have been removed meanwhile
        return report

    @event_handler("mcp:remove")
    async def remove(self, request: e.McpRemove) -> e.McpServers:
        """Take back a server that was added; the answer has those that are left."""
        context = _persons_context()
        await self._servers.remove(context.tenant, request.name)
        return self._all(context, with_tools=False)

    @event_handler("mcp:list")
    def list_servers(self, request: e.McpList) -> e.McpServers:
        """List the servers whose tools agents can call."""
        context = _context()
        if request.name is None:
            return self._all(context, with_tools=request.tools)
        found = self._servers.find(context.tenant, request.name)
        return e.McpServers(servers=(found.report(with_tools=request.tools),))

    @event_handler("mcp:check", timeout_s=0)
    async def check(self, request: e.McpCheck) -> e.McpServers:
        """Ask servers for their tools now."""
        context = _persons_context()
        if request.name is not None:
            chosen = [self._servers.find(context.tenant, request.name)]
        else:
            chosen = list(self._servers.of(context.tenant))
        reports: dict[Key, e.McpServerReport] = {}

        async def check(remote: Remote) -> None:
            reports[remote.key] = await self._checked(remote, context)

        await several(chosen, check, CHECKED_AT_ONCE)
        return e.McpServers(servers=tuple(reports[each.key] for each in chosen))

    async def _checked(self, remote: Remote, context: Context) -> e.McpServerReport:
        """Ask a server for its tools; what goes wrong is in the report."""
        why = None
        if remote.server.is_on:
            try:
                if _decides_on(remote, context):
                    await remote.reach.check()
                else:
                    await remote.reach.connected()  # where it fails, that doesn't hurry it
            except KsiError as error:
                why = error.message
        report = remote.report(with_tools=True)
        return structs.replace(report, why=report.why or why)

    @event_handler("mcp:accept")
    async def accept(self, request: e.McpAccept) -> e.McpServerReport:
        """Accept what a server says now of tools that are held back."""
        context = _persons_context()
        remote = self._servers.find(context.tenant, request.name)
        if not _decides_on(remote, context):
            raise Denied(f"{request.name} is everybody's: its owner accepts what it says")
        await remote.offer.accept(request.tools, request.digest)
        return remote.report(with_tools=True)

    def _all(self, context: Context, *, with_tools: bool) -> e.McpServers:
        found = self._servers.of(context.tenant)
        return e.McpServers(servers=tuple(each.report(with_tools=with_tools) for each in found))

    @event_observer("tool:settled")
    def settled(self, event: Event) -> None:
        """Tell a server that a person would not answer what it asks."""
        told = msgspec.convert(event.data, ToolSettled, from_attributes=True)
        if told.status == "dropped":
            self._servers.drop(event.context.tenant, told.call_id)

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether a server fails, or somebody is to look at one."""
        reports = self._all(_context(), with_tools=False).servers
        if failed := [each.name for each in reports if each.state == "failed"]:
            why = f"can't be connected: {', '.join(failed)}; see mcp:list (ksi mcp list)"
            return HealthChecked(health="degraded", why=why)
        if held := [each.name for each in reports if each.held_back]:
            why = (
                f"tools of {', '.join(held)} have changed and are held back until they are "
                "accepted: see mcp:check (ksi mcp check)"
            )
            return HealthChecked(health="degraded", why=why)
        return HealthChecked(health="ok")


def _decides_on(remote: Remote, context: Context) -> bool:
    """Say whether a server is a tenant's, or everybody's and thus the owner's."""
    return not remote.is_everybodys or context.tenant == DEFAULT


def _context() -> Context:
    context = current_context()
    assert context is not None  # an event is being handled
    return context


def _persons_context() -> Context:
    """Return the context of somebody who decides what agents may have.

    Raises:
        Denied: An agent asks.
    """
    context = _context()
    if context.agent is not None or context.run is not None or context.conversation is not None:
        raise Denied("a person says which servers there are, and no agent")
    return context

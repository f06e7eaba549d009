"""Tells those who want to know that there are other tools, prompts or resources than before."""

import logging
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary

import anyio
import mcp_types as types
import msgspec
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError

from ksi_client.client import RECONNECTED
from ksi_daemon.protocol import Event
from ksi_mcp.events import Kind, McpChanged, McpUpdated

log = logging.getLogger(__name__)

Ctx = ServerRequestContext[Any, Any]

CHANGED, UPDATED = "mcp:changed", "mcp:updated"
MAX_LISTENING: Final = 1000
MAX_BUFFERED: Final = 100
MAX_WATCHED: Final = 1000  # resources of one session
TELL_S: Final = 2.0
LISTS: Final[dict[Kind, ServerEvent]] = {
    "tools": ToolsListChanged(),
    "prompts": PromptsListChanged(),
    "resources": ResourcesListChanged(),
}


class Listeners:
    """The programs of one tenant that know no sessions, and listen."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self.handler = ListenHandler(
            self.bus, max_subscriptions=MAX_LISTENING, max_buffered_events=MAX_BUFFERED
        )


class Session:
    """A session of the older protocol: whose it is, and which resources it watches."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.watched: set[str] = set()


class News:
    """Knows who wants to be told, in both protocols."""

    def __init__(self) -> None:
        self._listeners: dict[str, Listeners] = {}
        self._sessions: WeakKeyDictionary[Connection, Session] = WeakKeyDictionary()

    def meet(self, ctx: Ctx, tenant: str) -> Session:
        """Note a session: it is told of changes from now on."""
        return self._sessions.setdefault(connection_of(ctx), Session(tenant))

    def subscribe(self, ctx: Ctx, tenant: str, uri: str) -> types.EmptyResult:
        """Tell a session when a resource has changed.

        Raises:
            MCPError: It watches too many.
        """
        watched = self.meet(ctx, tenant).watched
        if len(watched) >= MAX_WATCHED and uri not in watched:
            message = f"a session watches {MAX_WATCHED} resources at most: unsubscribe from some"
            raise MCPError(types.INVALID_REQUEST, message)
        watched.add(uri)
        return types.EmptyResult()

    async def unsubscribe(
        self, ctx: Ctx, params: types.UnsubscribeRequestParams
    ) -> types.EmptyResult:
        """Tell a session of a resource no more."""
        session = self._sessions.get(connection_of(ctx))
        if session is not None:
            session.watched.discard(str(params.uri))
        return types.EmptyResult()

    async def listen(
        self, tenant: str, ctx: Ctx, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Tell a program that knows no sessions, until it is gone."""
        return await self._listeners.setdefault(tenant, Listeners()).handler(ctx, params)

    async def take(self, event: Event, pattern: str) -> None:
        """Hand on what the daemon says to have changed.

        Args:
            event: What it says.
            pattern: That of the subscription by which it came.
        """
        try:
            if event.name == CHANGED:
                changed = msgspec.convert(event.data, McpChanged)
                await self.changed(changed.kind, changed.tenant)
            elif event.name == UPDATED:
                updated = msgspec.convert(event.data, McpUpdated)
                await self.updated(updated.uri, updated.tenant)
            elif event.name == RECONNECTED and pattern == CHANGED:  # each one is told of it
                await self.all_changed()
        except msgspec.ValidationError as error:
            log.warning("news could not be taken", extra={"why": str(error)})

    async def changed(self, kind: Kind, tenant: str | None = None) -> None:
        """Tell that a list is another now: everybody, or those of a tenant."""
        await self._publish(LISTS[kind], tenant)
        told = [at for at, each in self._sessions.items() if tenant in (None, each.tenant)]
        await _tell(told, f"notifications/{kind}/list_changed")

    async def updated(self, uri: str, tenant: str | None = None) -> None:
        """Tell those who watch a resource that it is another now."""
        await self._publish(ResourceUpdated(uri=uri), tenant)
        told = [
            at
            for at, each in self._sessions.items()
            if uri in each.watched and tenant in (None, each.tenant)
        ]
        await _tell(told, "notifications/resources/updated", {"uri": uri})

    async def all_changed(self) -> None:
        """Tell that all may be another now: the daemon was away."""
        for kind in LISTS:
            await self.changed(kind)

    async def _publish(self, event: ServerEvent, tenant: str | None) -> None:
        for name, listeners in list(self._listeners.items()):
            if tenant in (None, name):
                await listeners.bus.publish(event)


async def _tell(
    told: Iterable[Connection], method: str, params: dict[str, Any] | None = None
) -> None:
    """Tell sessions, all at once; those that do not read hold up nobody for long."""
    with anyio.move_on_after(TELL_S):
        async with anyio.create_task_group() as tasks:
            for connection in told:
                tasks.start_soon(connection.outbound.notify, method, params)


def connection_of(ctx: Ctx) -> Connection:
    """Return what a session is to the SDK, which shows it nowhere else."""
    return ctx.session._connection

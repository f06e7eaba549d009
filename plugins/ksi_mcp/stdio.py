"""KSI as an MCP server on standard input and output, for programs that start it themselves."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, BinaryIO, Final
from uuid import uuid4

import anyio.to_thread
import msgspec
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server

from ksi_client import AsyncClient
from ksi_client.client import RECONNECTED
from ksi_daemon.protocol import Denied, KsiError
from ksi_daemon.protocol.events import Grants
from ksi_daemon.protocol.names import matches_any
from ksi_mcp.events import McpChanged, McpUpdated, McpYou
from ksi_mcp.server.news import News
from ksi_mcp.server.serving import Serving
from ksi_system.events import (
    EventDescription,
    SystemDescribe,
    SystemDescribed,
    TokenCreate,
    TokenCreated,
    TokenRevoke,
)

MAX_LINE_BYTES: Final = 4_000_000
TOO_LONG: Final = b"{too long\n"  # which is told to be no JSON
KNOWN_S: Final = 60.0
TOKEN_S: Final = 7 * 86_400.0
# What every call here passes; which of it is let through is looked at before.
NEEDED: Final = (
    "mcp:call",
    "mcp:call_quietly",
    "mcp:whoami",
    "system:describe",
    "tool:call",
    "tool:list",
)
CHANGED, UPDATED = "mcp:changed", "mcp:updated"


class StdioReach:
    """The daemon in the name of whoever started the program, or of a token.

    Args:
        client: A connection.
        you: Who that is.
    """

    def __init__(self, client: AsyncClient, you: McpYou) -> None:
        self._client = client
        self._you = you
        self._events: dict[str, EventDescription] = {}
        self._looked_at = -KNOWN_S
        self.name = you.principal
        self.tenant = you.tenant

    def may(self, scope: str) -> bool:
        """Say whether the principal has a scope."""
        return matches_any(scope, self._you.scopes)

    async def events(self) -> Mapping[str, EventDescription]:
        """Return the events that may be reached from outside."""
        if time.monotonic() - self._looked_at > KNOWN_S:
            with contextlib.suppress(Denied):  # then the tools alone are there
                found = await self.ask(
                    "system:describe", SystemDescribe(), result_type=SystemDescribed
                )
                self._events = {e.event: e for e in found.events if e.scope is not None}
            self._looked_at = time.monotonic()
        return self._events

    def forget(self) -> None:
        """Look anew at what there is."""
        self._looked_at = -KNOWN_S

    async def ask(self, event: str, data: Any = None, *, result_type: Any = None) -> Any:
        """Send an event, for as long as it takes."""
        return await self._client.request(event, data, result_type=result_type, timeout_s=None)

    async def follow(self, event: str, data: Any, *, result_type: Any) -> AsyncGenerator[Any]:
        """Send an event, and yield the chunks of its answer."""
        chunks = self._client.stream(event, data, result_type=result_type)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    def shown(self, error: KsiError) -> str:
        """Return an error's message: nobody else is at the other end."""
        return error.message


class Lines:
    """The lines of standard input, each bounded; one that is too long is told to be none.

    Args:
        source: Where they come from.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        line = await anyio.to_thread.run_sync(self._line, abandon_on_cancel=True)
        if not line:
            raise StopAsyncIteration
        return line.decode("utf-8", "replace")

    def _line(self) -> bytes:
        line = self._source.readline(MAX_LINE_BYTES)
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            return line
        while rest := self._source.readline(MAX_LINE_BYTES):
            if rest.endswith(b"\n"):
                return TOO_LONG
        return b""


async def serve(token: str, scopes: tuple[str, ...], user: str | None, tenant: str) -> None:
    """Serve until standard input ends.

    Args:
        token: Whom to act as; empty is whoever started this.
        scopes: What may be done; everything that the other may, unless given.
        user: For which user, where scopes are given.
        tenant: For which tenant, where scopes are given.

    Raises:
        Unavailable: No daemon listens.
        Denied: The token is not valid, or grants nothing to hand on.
    """
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(token))
        if scopes:
            bounded = await stack.enter_async_context(_bounded(client, scopes, user, tenant))
            client = await stack.enter_async_context(_client(bounded))
        await _serve(client)


def _client(token: str) -> AsyncClient:
    return AsyncClient(token=token, on_error=lambda _: None)


@contextlib.asynccontextmanager
async def _bounded(
    client: AsyncClient, scopes: tuple[str, ...], user: str | None, tenant: str
) -> AsyncIterator[str]:
    """Make a token that may do no more than what is said, and end it at the end."""
    ask = TokenCreate(
        name=f"mcp-{uuid4().hex[:8]}",  # one of its own: what two of one name may is what both may
        ttl_s=TOKEN_S,
        grants=Grants(call=NEEDED, scopes=scopes),
        tenant=tenant,
        user=user,
    )
    made = await client.request("token:create", ask, result_type=TokenCreated)
    try:
        yield made.token
    finally:
        with contextlib.suppress(KsiError):
            await client.request("token:revoke", TokenRevoke(id=made.token.split("_")[1]))


async def _serve(client: AsyncClient) -> None:
    you = await client.request("mcp:whoami", result_type=McpYou)
    reach = StdioReach(client, you)

    def reach_of(_: ServerRequestContext[Any, Any]) -> StdioReach:
        return reach

    serving = Serving(you.serving, reach_of)
    server = serving.server()
    lines: Any = Lines(sys.stdin.buffer)  # as much of a file as is used
    async with asyncio.TaskGroup() as tasks, stdio_server(stdin=lines) as (incoming, outgoing):
        following = tasks.create_task(_follow(client, reach, serving.news), name="news")
        await server.run(incoming, outgoing, server.create_initialization_options())
        following.cancel()


async def _follow(client: AsyncClient, reach: StdioReach, news: News) -> None:
    """Hand on what the daemon says to have changed, where the principal may see that."""
    try:
        changed, updated = await client.subscribe(CHANGED), await client.subscribe(UPDATED)
    except Denied:
        return
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_take_changed(changed, reach, news), name="changed")
        tasks.create_task(_take_updated(updated, reach, news), name="updated")


async def _take_changed(subscription: Any, reach: StdioReach, news: News) -> None:
    async for event in subscription:
        reach.forget()
        if event.name == RECONNECTED:
            await news.all_changed()
        elif event.name == CHANGED:
            told = msgspec.convert(event.data, McpChanged)
            await news.changed(told.kind, told.tenant)


async def _take_updated(subscription: Any, reach: StdioReach, news: News) -> None:
    async for event in subscription:
        if event.name == UPDATED:
            told = msgspec.convert(event.data, McpUpdated)
            await news.updated(told.uri, told.tenant)

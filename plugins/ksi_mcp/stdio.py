"""KSI as an MCP server on standard input and output, for programs that start it themselves."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Final
from uuid import uuid4

from mcp.server.lowlevel.server import NotificationOptions
from msgspec import Struct

from ksi_client import AsyncClient, Subscription, Transport
from ksi_daemon.protocol import Denied, InvalidData, KsiError
from ksi_daemon.protocol.events import Grants
from ksi_daemon.protocol.names import did_you_mean, matches_any
from ksi_mcp.events import McpYou
from ksi_mcp.server.news import CHANGED, UPDATED, News
from ksi_mcp.server.pipes import Pipes
from ksi_mcp.server.serving import Serving
from ksi_mcp.server.socket_reach import SocketReach
from ksi_system.events import (
    SystemDescribe,
    SystemDescribed,
    TokenCreate,
    TokenCreated,
    TokenRevoke,
)

ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REVOKE_S: Final = 2.0
TOKEN_S: Final = 30 * 86_400.0
TOOLS: Final = "tools:call:"  # and a tool's name: what is not read-only may be called
# What every call here passes; which of it is let through is looked at before.
NEEDED: Final = (
    "mcp:call",
    "mcp:call_quietly",
    "mcp:whoami",
    "system:describe",
    "tool:call",
    "tool:list",
)


class Wanted(Struct, frozen=True, kw_only=True):
    """In whose name the program calls, and what of that it may do.

    Attributes:
        token: Whom to act as; empty is whoever started this.
        scopes: What may be done; everything that the other may, unless given.
        user: For which user, where scopes are given.
        tenant: For which tenant, where scopes are given.
    """

    token: str = ""
    scopes: tuple[str, ...] = ()
    user: str | None = None
    tenant: str = "default"


async def serve(wanted: Wanted, start: Callable[[], object]) -> None:
    """Serve on this process's own standard input and output, until a signal comes, too.

    Args:
        wanted: In whose name.
        start: Starts the daemon if it isn't running; called in a thread.

    Raises:
        KsiError: As `serve_on` has it.
        asyncio.CancelledError: A signal has come before anybody was served.
    """
    this, pipes = asyncio.current_task(), Pipes.of_process()
    assert this is not None  # a coroutine runs

    def end() -> None:
        if pipes.is_open:
            pipes.end()
        else:
            this.cancel()

    for number in ENDS:
        asyncio.get_running_loop().add_signal_handler(number, end)
    await serve_on(pipes, wanted, start)


async def serve_on(
    pipes: Pipes,
    wanted: Wanted,
    start: Callable[[], object],
    transport: Callable[[], Transport | None] = lambda: None,
) -> None:
    """Serve until what comes has ended, or nobody reads the answers.

    Args:
        pipes: What comes and goes.
        wanted: In whose name.
        start: Starts the daemon if it isn't running; called in a thread.
        transport: How the daemon is reached, once for each connection.

    Raises:
        Unavailable: No daemon listens.
        InvalidData: A scope is none.
        Denied: The token is not valid, not valid any more, or grants nothing to hand on.
    """
    async with contextlib.AsyncExitStack() as stack:
        own = await stack.enter_async_context(_client(transport(), wanted.token))
        client = own
        if wanted.scopes:
            await _check(own, wanted.scopes)
            token = await stack.enter_async_context(_bounded(own, wanted))
            client = await stack.enter_async_context(_client(transport(), token))
        await _serve(pipes, client, own, start)
        if client.closed.is_set():
            raise Denied("the token that this came with is not valid any more: start it anew")


def _client(transport: Transport | None, token: str) -> AsyncClient:
    return AsyncClient(transport, token=token, on_error=lambda _: None)


async def _check(client: AsyncClient, scopes: tuple[str, ...]) -> None:
    """Go on only if each glob is of scopes that there are: a wrong one would let nothing through.

    Raises:
        InvalidData: One is not.
    """
    told = await client.request("system:describe", SystemDescribe(), result_type=SystemDescribed)
    known = sorted({each.scope for each in told.events if each.scope is not None})
    for scope in scopes:
        is_of_tools = scope.startswith(TOOLS)  # those of a server that is not known yet are in none
        if not is_of_tools and not any(matches_any(each, (scope,)) for each in known):
            raise InvalidData(f"no event has the scope {scope!r}{did_you_mean(scope, known)}")


@contextlib.asynccontextmanager
async def _bounded(client: AsyncClient, wanted: Wanted) -> AsyncIterator[str]:
    """Make a token that may do no more than what is said, and end it at the end."""
    ask = TokenCreate(
        name=f"mcp-{uuid4().hex[:8]}",  # one of its own: what two of one name may is what both may
        ttl_s=TOKEN_S,
        grants=Grants(call=NEEDED, scopes=wanted.scopes),
        tenant=wanted.tenant,
        user=wanted.user,
    )
    made = await client.request("token:create", ask, result_type=TokenCreated)
    try:
        yield made.token
    finally:
        if client.is_connected:  # else nobody is there to end it, and whoever started this waits
            with contextlib.suppress(KsiError):
                revoke = TokenRevoke(id=made.token.split("_")[1])
                await client.request("token:revoke", revoke, timeout_s=REVOKE_S)


async def _serve(
    pipes: Pipes, client: AsyncClient, own: AsyncClient, start: Callable[[], object]
) -> None:
    you = await client.request("mcp:whoami", result_type=McpYou)
    reach = SocketReach(client, you, start)
    serving = Serving(you.serving, lambda _: reach)
    server = serving.server()
    subscriptions = await _subscribed(own)
    promised = None if subscriptions else NotificationOptions()
    options = server.create_initialization_options(promised)
    async with pipes.open() as (incoming, outgoing), asyncio.TaskGroup() as tasks:
        beside = [
            tasks.create_task(_watch(client, pipes), name="token"),
            *(tasks.create_task(_take(each, reach, serving.news)) for each in subscriptions),
        ]
        await server.run(incoming, outgoing, options)
        for task in beside:
            task.cancel()


async def _watch(client: AsyncClient, pipes: Pipes) -> None:
    """End when a token does: whoever started this sees that, and can start it anew."""
    await client.closed.wait()
    pipes.end()


async def _subscribed(client: AsyncClient) -> list[Subscription]:
    """Return what tells of changes; nothing where a token has no grant for that.

    With scopes it is still whoever started this that hears of them: programs are told of those of
    their own tenant alone.
    """
    try:
        return [await client.subscribe(pattern) for pattern in (CHANGED, UPDATED)]
    except Denied:
        return []


async def _take(subscription: Subscription, reach: SocketReach, news: News) -> None:
    async for event in subscription:
        if event.name != UPDATED:
            reach.forget()
        await news.take(event, subscription.pattern)

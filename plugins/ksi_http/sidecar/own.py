"""Connections to the daemon that are a caller's own: they may do what his key may, and no more."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from ksi_client import AsyncClient
from ksi_client.transports import Transport
from ksi_daemon.protocol import Denied
from ksi_http.events import HttpConnect, HttpConnected
from ksi_http.sidecar.callers import Caller

MAX_KEPT: Final = 1000
LEFT_S: Final = 3600.0  # how much longer a token must be valid to be used for one more connection

Ask = Callable[[HttpConnect], Awaitable[HttpConnected]]


class OwnConnections:
    """Connects in callers' own right; those of one caller share a token.

    Args:
        ask: Asks the daemon for a token.
        transport: Makes a transport for each connection.
    """

    def __init__(self, ask: Ask, transport: Callable[[], Transport | None]) -> None:
        self._ask = ask
        self._transport = transport
        self._tokens: OrderedDict[tuple[str, str | None], tuple[float, str]] = OrderedDict()

    @asynccontextmanager
    async def connected(self, caller: Caller) -> AsyncIterator[AsyncClient]:
        """Yield a client that the daemon lets do what the caller's key may.

        It reconnects, as any does; where its token is not valid any more it is ``closed``.

        Raises:
            Denied: The key is not valid any more.
            Unavailable: The daemon is away.
        """
        async with AsyncExitStack() as stack:
            token = await self.token(caller)
            try:
                client = await stack.enter_async_context(self._client(token))
            except Denied:
                token = await self.token(caller, but=token)
                client = await stack.enter_async_context(self._client(token))
            yield client

    def _client(self, token: str) -> AsyncClient:
        return AsyncClient(self._transport(), token=token, on_error=lambda _: None)

    async def token(self, caller: Caller, *, but: str = "") -> str:
        """Return a token for a connection of a caller's own.

        Args:
            caller: Whose it is.
            but: One that is not valid: a daemon that was started anew knows none of before.

        Raises:
            Denied: The key is not valid any more.
            Unavailable: The daemon is away.
        """
        who = (caller.presented.digest, caller.user)
        until, token = self._tokens.get(who, (0.0, ""))
        if until < time.time() + LEFT_S or token == but:
            presented = caller.presented
            ask = HttpConnect(id=presented.id, digest=presented.digest, user=caller.user)
            made = await self._ask(ask)
            until, token = made.expires_at.timestamp(), made.token
        self._tokens[who] = (until, token)
        self._tokens.move_to_end(who)
        if len(self._tokens) > MAX_KEPT:
            self._tokens.popitem(last=False)
        return token

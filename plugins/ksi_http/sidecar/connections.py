"""The connections to the daemon: a few, made when they are needed, each with room for many."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Final, Self

from ksi_client import AsyncClient
from ksi_client.sync import inherited_token
from ksi_client.transports import Transport
from ksi_daemon.protocol import Busy, InvalidData, KsiError, Unavailable

log = logging.getLogger(__name__)

FULL: Final = 256  # of the 512 that the daemon allows on one connection
MAX_CONNECTIONS: Final = 16
AWAY_S: Final = 1.0


def own_token() -> str:
    """Return the token in the file that ``KSI_TOKEN_FILE`` names; empty where it names none.

    It is read once for all connections: from a pipe it can't be read again, and who connects with
    none is the owner.

    Raises:
        InvalidData: The file can't be read, or is empty.
    """
    try:
        token = inherited_token()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"the token's file, KSI_TOKEN_FILE, can't be read: {error}") from error
    if token == "":
        raise InvalidData("the token's file, KSI_TOKEN_FILE, is empty")
    return token or ""


class Connections:
    """Connections that share out what is asked of the daemon.

    Attributes:
        transport: Makes a transport for each connection.

    Args:
        transport: The same; one that returns ``None`` leads to the daemon of ``KSI_HOME``.
        token: Whom to act as; the inherited one, or this user, unless given.

    Raises:
        InvalidData: The file with the token can't be read, or is empty.
    """

    def __init__(self, transport: Callable[[], Transport | None], token: str | None = None) -> None:
        self.transport = transport
        self._token = own_token() if token is None else token
        self._stack = AsyncExitStack()
        self._clients: list[AsyncClient] = []
        self._load: list[int] = []
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            Unavailable: No daemon listens.
            Denied: The token is not valid.
        """
        await self._stack.__aenter__()
        try:
            await self._open()
        except BaseException:
            await self._stack.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def close(self) -> None:
        """Close them: what is under way ends as unavailable."""
        await self._stack.aclose()

    @property
    def first(self) -> AsyncClient:
        """The connection that is always there: for subscriptions."""
        return self._clients[0]

    @property
    def is_connected(self) -> bool:
        """Whether the daemon is there, as far as is known."""
        return self.first.is_connected

    @property
    def in_flight(self) -> int:
        """How many requests and streams are under way."""
        return sum(self._load)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[AsyncClient]:
        """Yield a connection that has room, for one request or stream.

        Raises:
            Unavailable: The daemon is away.
            Busy: There is no room.
        """
        if not self.is_connected:
            raise Unavailable("the daemon is away", retry_after_s=AWAY_S)
        at = await self._with_room()
        self._load[at] += 1
        try:
            yield self._clients[at]
        finally:
            self._load[at] -= 1

    async def _with_room(self) -> int:
        at = self._least_loaded()
        if self._load[at] < FULL:
            return at
        async with self._opening:
            at = self._least_loaded()
            if self._load[at] >= FULL:
                if len(self._clients) >= MAX_CONNECTIONS:
                    raise Busy(f"{self.in_flight} requests are under way", retry_after_s=AWAY_S)
                await self._open()
                at = len(self._clients) - 1
        return at

    def _least_loaded(self) -> int:
        load = self._load
        return min(range(len(load)), key=load.__getitem__) if load[0] >= FULL else 0

    async def _open(self) -> None:
        client = AsyncClient(self.transport(), token=self._token, on_error=_log)
        self._clients.append(await self._stack.enter_async_context(client))
        self._load.append(0)


def _log(error: KsiError) -> None:
    log.warning("the daemon told of an error", extra={"why": error.message})

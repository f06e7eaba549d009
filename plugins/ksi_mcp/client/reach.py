"""How a server is reached: connected when that is wanted, and ever later where it fails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from ksi_daemon.protocol import Unavailable
from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.settings import McpSettings

log = logging.getLogger(__name__)

MAX_DOUBLINGS: Final = 20
State = Literal["connecting", "connected", "failed", "idle"]


class Reach:
    """The way to a server.

    Args:
        name: The server's.
        settings: The bounds.
        connect: Makes a connection, and has `ended` told of its end.

    Attributes:
        connection: The last one.
        why: What was wrong with the last one that ended by itself, until one has done well.
        was_reached: Whether it has ever told its tools, if it has any.
    """

    def __init__(
        self, name: str, settings: McpSettings, connect: Callable[[], Awaitable[Connection]]
    ) -> None:
        self.connection: Connection | None = None
        self.why: str | None = None
        self.was_reached = False
        self._name = name
        self._settings = settings
        self._connect = connect
        self._connecting = asyncio.Lock()
        self._failures = 0
        self._retry_at = 0.0
        self._has_ended = False

    # -- connecting -----------------------------------------------------------------------------

    async def connected(self) -> Connection:
        """Return a connection, which is made where there is none.

        Raises:
            Unavailable: It can't be made, or could not be made a moment ago; or never will be.
        """
        async with self._connecting:
            if self._has_ended:
                raise self._unavailable("it was removed, or the daemon stops")
            connection = self.connection
            if connection is None or connection.is_over:
                connection = await self._begun()
            await connection.is_ready.wait()
            self.was_reached = self.was_reached or connection.was_ready
            if connection.is_over and (connection.why or not connection.was_ready):
                raise self._unavailable(connection.why or "it was ended")
            return connection

    async def _begun(self) -> Connection:
        if self.retry_in_s > 0:
            raise self._unavailable(self.why or "it fails")
        self.connection = await self._connect()
        return self.connection

    async def check(self) -> None:
        """Ask the server for its tools now, also where it is left alone because it failed.

        Raises:
            Unavailable: It can't be reached.
        """
        self._retry_at = 0.0
        was = self.connection if self.state == "connected" else None
        connection = await self.connected()
        if connection is not was:
            return  # it has just been asked
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await connection.refresh()
        except (NotSentError, LostError, AnswerError, TimeoutError) as error:
            connection.give_up(str(error) or "it does not answer")
            raise self._unavailable(connection.why or "it was ended") from error

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"{self._name}: {why}", retry_after_s=round(self.retry_in_s, 1))

    # -- its end --------------------------------------------------------------------------------

    def ended(self, connection: Connection) -> None:
        """See how a connection has done, and when there may be another."""
        self.why = connection.why
        if connection.why is None or connection.did_well:
            self._failures = 0
            return
        self._failures += 1
        # One that was there and broke may have had bad luck: it may be tried again at once, once.
        if self._failures > 1 or not connection.was_ready:
            delay_s = self._settings.retry_s * 2.0 ** min(self._failures - 1, MAX_DOUBLINGS)
            self._retry_at = time.monotonic() + min(delay_s, self._settings.max_retry_s)
        log.warning("a server fails", extra={"server": self._name, "why": connection.why})

    @property
    def retry_in_s(self) -> float:
        """How long it is left alone still."""
        return max(0.0, self._retry_at - time.monotonic())

    def end(self) -> None:
        """End the connection, and make no other; does not wait for that."""
        self._has_ended = True
        if self.connection is not None:
            self.connection.end()

    # -- how it is ------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Whether it is connected, and if not, whether that is since it fails."""
        if self.connection is not None and not self.connection.is_over:
            return "connected" if self.connection.is_ready.is_set() else "connecting"
        return "failed" if self._failures else "idle"

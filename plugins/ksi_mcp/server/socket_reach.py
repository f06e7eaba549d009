"""The daemon as the program reaches it that was started on this machine: by its socket."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

import anyio.to_thread

from ksi_client import AsyncClient
from ksi_daemon.protocol import Denied, Failed, KsiError, TimedOut, Unavailable
from ksi_daemon.protocol.names import matches_any
from ksi_mcp.events import McpYou
from ksi_system.events import EventDescription, SystemDescribe, SystemDescribed

KNOWN_S: Final = 60.0
CONNECT_S: Final = 10.0


class SocketReach:
    """The daemon in the name of whoever started the program, or of a token.

    Args:
        client: A connection.
        you: Who that is.
        start: Starts the daemon if it isn't running; called in a thread.
    """

    def __init__(self, client: AsyncClient, you: McpYou, start: Callable[[], object]) -> None:
        self._client = client
        self._you = you
        self._start = start
        self._starting = asyncio.Lock()
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
            with contextlib.suppress(Unavailable):  # what is known does, too
                self._events = await self._described()
                self._looked_at = time.monotonic()
        return self._events

    async def _described(self) -> dict[str, EventDescription]:
        try:
            found = await self.ask("system:describe", SystemDescribe(), result_type=SystemDescribed)
        except Denied:
            return {}  # the tools alone are there then
        return {each.event: each for each in found.events if each.scope is not None}

    def forget(self) -> None:
        """Look anew at what there is."""
        self._looked_at = -KNOWN_S

    async def ask(self, event: str, data: Any = None, *, result_type: Any = None) -> Any:
        """Send an event, for as long as it takes."""
        await self._connected()
        return await self._client.request(event, data, result_type=result_type, timeout_s=None)

    async def follow(self, event: str, data: Any, *, result_type: Any) -> AsyncGenerator[Any]:
        """Send an event, and yield the chunks of its answer."""
        await self._connected()
        chunks = self._client.stream(event, data, result_type=result_type)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _connected(self) -> None:
        """Have the daemon be there: it is started again where it has gone.

        Raises:
            Unavailable: It can't be.
        """
        if self._client.is_connected:
            return
        async with self._starting:
            if self._client.is_connected:
                return
            try:
                await anyio.to_thread.run_sync(self._start, abandon_on_cancel=True)
                await self._client.request("mcp:whoami", timeout_s=CONNECT_S)
            except (Failed, TimedOut) as error:
                raise Unavailable(f"the daemon has gone: {error.message}") from error

    def shown(self, error: KsiError) -> str:
        """Return an error's message: nobody else is at the other end."""
        return error.message

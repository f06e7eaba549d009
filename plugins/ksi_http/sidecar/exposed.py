"""Which events may be reached from outside, and with which scope."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ksi_daemon.protocol import Denied, NotFound
from ksi_daemon.protocol.names import did_you_mean
from ksi_http.sidecar.callers import Caller
from ksi_system.events import EventDescription

AGAIN_S: Final = 2.0  # how often is looked for an event that is not known

Describe = Callable[[], Awaitable[Mapping[str, EventDescription]]]


class Exposed:
    """The events that have a scope; what has none is not reachable, whatever a key may do.

    Args:
        describe: Asks the daemon for the descriptions of all events.
    """

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self._looking = asyncio.Lock()
        self._looked_at = 0.0
        self.events: Mapping[str, EventDescription] = {}
        self.changes = 0

    async def refresh(self) -> None:
        """Ask the daemon anew."""
        found = await self._describe()
        self.events = {name: each for name, each in found.items() if each.scope is not None}
        self._looked_at = time.monotonic()
        self.changes += 1

    async def are_new(self, max_age_s: float) -> None:
        """Ask the daemon anew, unless it was asked lately."""
        async with self._looking:
            if time.monotonic() - self._looked_at > max_age_s:
                await self.refresh()

    async def find(self, name: str) -> EventDescription:
        """Return an event.

        Raises:
            NotFound: There is none that may be reached from outside.
        """
        known = self.events.get(name)
        if known is None:
            known = await self._look_again(name)
        return known

    async def _look_again(self, name: str) -> EventDescription:
        async with self._looking:
            if name not in self.events and time.monotonic() - self._looked_at > AGAIN_S:
                await self.refresh()
        known = self.events.get(name)
        if known is None:
            hint = did_you_mean(name, self.events)
            raise NotFound(f"no event {name!r} can be reached here{hint}")
        return known

    async def check(self, caller: Caller, name: str) -> EventDescription:
        """Return an event that a caller may send.

        Raises:
            NotFound: There is none that may be reached from outside.
            Denied: The caller's key has not its scope.
        """
        known = await self.find(name)
        assert known.scope is not None
        if not caller.may(known.scope):
            raise Denied(f"{name} needs the scope {known.scope}, which this key has not")
        return known

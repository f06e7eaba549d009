"""Who sees events without answering them."""

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol

from ksi_daemon.event_system import CURRENT, Declaration
from ksi_daemon.protocol import Event
from ksi_daemon.protocol.names import matches
from ksi_daemon.supervisor import is_cancelled

log = logging.getLogger(__name__)


class Listener(Protocol):
    """An observer or a subscription: is shown events, and never holds up who sent them."""

    outcomes: bool

    def wants(self, name: str) -> bool:
        """Say whether events of this name are to be delivered."""

    def deliver(self, event: Event) -> None:
        """Take an event, at once and without failing."""


class Observer:
    """A plugin's observer: a bounded queue and the task that empties it."""

    def __init__(
        self, plugin: str, declaration: Declaration, function: Callable[[Event], Any], size: int
    ) -> None:
        self.plugin = plugin
        self.pattern = declaration.pattern
        self.outcomes = declaration.outcomes
        self.missed = 0
        self._function = function
        self._queue: asyncio.Queue[Event] = asyncio.Queue(size)

    @property
    def depth(self) -> int:
        """How many events wait."""
        return self._queue.qsize()

    def wants(self, name: str) -> bool:
        """Say whether the event is one of those it observes."""
        return matches(name, self.pattern)

    def deliver(self, event: Event) -> None:
        """Queue an event; one too many is dropped and counted."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.missed += 1
            log.warning("an observer is too slow and misses events", extra={"plugin": self.plugin})

    async def run(self) -> None:
        """Hand the events to the function, one after the other."""
        while True:
            event = await self._queue.get()
            CURRENT.set(event.context)
            try:
                seen = self._function(event)
                if inspect.isawaitable(seen):
                    await seen
            except BaseException as error:
                if is_cancelled(error):
                    raise
                log.exception("an observer failed", extra={"plugin": self.plugin})

"""Events that are pushed to a connection."""

from typing import Protocol

from ksi_daemon.hub import Hub
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Context, Event
from ksi_daemon.protocol.events import RouterLagged, RouterSubscribe
from ksi_daemon.protocol.names import matches, matches_any
from ksi_daemon.protocol.wire import Push, encode


class Reader(Protocol):
    """The connection that events are pushed to."""

    @property
    def principal(self) -> Principal:
        """Whose it is."""

    @property
    def hub(self) -> Hub:
        """What it shares with the others."""

    def push(self, head: bytes, tail: bytes) -> bool:
        """Queue a pushed event, or say that the reader is too slow."""


class Subscription:
    """A connection's interest in the events whose names match a pattern."""

    __slots__ = ("_connection", "_pattern", "_tail", "id", "missed", "outcomes")

    def __init__(self, connection: Reader, number: int, request: RouterSubscribe) -> None:
        self.id = f"s{number}"
        self.outcomes = request.outcomes
        self.missed = 0
        self._connection = connection
        self._pattern = request.pattern
        self._tail = b',"subscription":"%b"}\n' % self.id.encode()

    def wants(self, name: str) -> bool:
        """Say whether an event's name matches, and the principal's grants reach it."""
        grants = self._connection.principal.grants
        return matches(name, self._pattern) and matches_any(name, grants.subscribe)

    def deliver(self, event: Event) -> None:
        """Queue the event; where the reader is too slow, count it instead."""
        connection = self._connection
        if connection.principal.may_see(event.context):
            pushed = connection.hub.encoded(event)
            if pushed and not connection.push(pushed, self._tail):
                self.missed += 1

    def tell_missed(self) -> None:
        """Say once how many events the reader missed."""
        data = RouterLagged(missed=self.missed)
        context = Context(self._connection.hub.router.new_id(), None, "router")
        self.missed = 0
        self._connection.push(encode(Push("router:lagged", data, context))[:-1], self._tail)

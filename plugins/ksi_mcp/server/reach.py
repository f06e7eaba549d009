"""How the daemon is reached in a caller's name; each transport has a way of its own."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from ksi_daemon.protocol import KsiError
from ksi_system.events import EventDescription


class Reach(Protocol):
    """The daemon, as one caller reaches it.

    Attributes:
        name: Tells this caller from others.
        tenant: Whose data the caller sees.
    """

    name: str
    tenant: str

    def may(self, scope: str) -> bool:
        """Say whether the caller has a scope."""

    async def events(self) -> Mapping[str, EventDescription]:
        """Return the events that may be reached from outside, whoever may send them."""

    async def ask(self, event: str, data: Any = None, *, result_type: Any = None) -> Any:
        """Send an event in the caller's name, for as long as it takes.

        The daemon holds a key to its scopes only where the event does it itself: ask for what the
        caller may.

        Raises:
            KsiError: What the daemon answered.
        """

    def follow(self, event: str, data: Any, *, result_type: Any) -> AsyncGenerator[Any]:
        """Send an event in the caller's name, and yield the chunks of its answer."""

    def shown(self, error: KsiError) -> str:
        """Return what the caller may see of an error."""

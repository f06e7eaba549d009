"""Whose memory is asked, or told something."""

from msgspec import Struct

from ksi_daemon.event_system import current_context
from ksi_daemon.protocol import Context


class Whose(Struct, frozen=True):
    """In whose name it is: a tenant's, and within it a user's.

    Without a ``user`` it is the daemon's owner, or an agent without one: all that belongs to the
    tenant is seen. A user sees what is theirs and what belongs to everybody.
    """

    tenant: str
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    origin: str = ""


def whose_of(context: Context) -> Whose:
    """Return in whose name an event is."""
    return Whose(
        context.tenant,
        context.user,
        context.agent,
        context.conversation,
        context.run,
        context.origin,
    )


def current_whose() -> Whose:
    """Return in whose name the event is that is being handled."""
    context = current_context()
    assert context is not None  # it is an event that is being handled
    return whose_of(context)

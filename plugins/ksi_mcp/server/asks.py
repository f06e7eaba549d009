"""Asks the daemon for what a caller may know, and leaves out what is not there."""

from typing import Any

from ksi_daemon.protocol import Denied, NotFound, Unavailable
from ksi_mcp.server.reach import Reach


async def ask(reach: Reach, event: str, data: Any = None, *, result_type: Any = None) -> Any:
    """Send an event that is exposed, if the caller has its scope.

    Raises:
        NotFound: Nobody answers it here.
        Denied: The caller has not the scope.
    """
    known = (await reach.events()).get(event)
    if known is None or known.scope is None:
        raise NotFound(f"nobody answers {event} here")
    if not reach.may(known.scope):
        raise Denied(f"{event} needs the scope {known.scope}")
    return await reach.ask(event, data, result_type=result_type)


async def asked(reach: Reach, event: str, data: Any = None, *, result_type: Any) -> Any:
    """Return the same; ``None`` where the caller may not, or nobody answers."""
    try:
        return await ask(reach, event, data, result_type=result_type)
    except (NotFound, Denied, Unavailable):
        return None

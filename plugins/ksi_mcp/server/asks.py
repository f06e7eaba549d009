"""Asks the daemon for what a caller may know, and leaves out what is not there."""

from collections.abc import AsyncIterator
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ksi_daemon.protocol import Denied, NotFound, Unavailable
from ksi_mcp.server.reach import Reach

MANY: Final = 200  # of a page
MAX_PAGES: Final = 20


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


async def pages(reach: Reach, event: str, first: Struct, *, result_type: Any) -> AsyncIterator[Any]:
    """Yield the pages of a list, up to a bound; none where the caller may not have them."""
    request = first
    for _ in range(MAX_PAGES):
        page = await asked(reach, event, request, result_type=result_type)
        if page is None:
            return
        yield page
        cursor = page.next if hasattr(page, "next") else page.cursor
        if cursor is None:
            return
        request = replace(first, cursor=cursor)

"""Errors of ours as MCP has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import mcp_types as types
from mcp.shared.exceptions import MCPError

from ksi_daemon.protocol import KsiError
from ksi_mcp.server import catalogue
from ksi_mcp.server.reach import Reach

OURS: Final = ("invalid_data", "not_found")  # what is wrong with the request itself


@contextmanager
def told(reach: Reach) -> Iterator[Reach]:
    """Have what the daemon says to be wrong told as MCP tells it."""
    try:
        yield reach
    except KsiError as error:
        code = types.INVALID_PARAMS if error.code in OURS else types.INTERNAL_ERROR
        data = {"code": error.code}
        raise MCPError(code, reach.shown(error), data) from error


def page(
    names: list[str], params: types.PaginatedRequestParams | None, size: int
) -> tuple[list[str], str | None]:
    """Return a page of names, and the cursor of the next.

    Raises:
        MCPError: The cursor is none of ours.
    """
    try:
        return catalogue.page(names, params.cursor if params else None, size)
    except ValueError as error:
        raise MCPError(types.INVALID_PARAMS, "that is no cursor of this list") from error

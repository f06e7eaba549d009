"""Which lines of the log a caller wants to be told of."""

import warnings
from typing import Any, Final, get_args
from weakref import WeakKeyDictionary

import mcp_types as types
from mcp.server.connection import allowed_log_levels
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

Ctx = ServerRequestContext[Any, Any]

LEVELS: Final[tuple[types.LoggingLevel, ...]] = get_args(types.LoggingLevel)
FIRST: Final[types.LoggingLevel] = "info"
LOGGER: Final = "ksi"


class Levels:
    """What sessions have said with ``logging/setLevel``, and what requests say of themselves."""

    def __init__(self) -> None:
        self._least: WeakKeyDictionary[object, types.LoggingLevel] = WeakKeyDictionary()

    async def set(self, ctx: Ctx, params: types.SetLevelRequestParams) -> types.EmptyResult:
        """Tell a session from now on of lines that are at least so severe."""
        self._least[_connection(ctx)] = params.level
        return types.EmptyResult()

    def wants_any(self, ctx: Ctx) -> bool:
        """Say whether a caller wants to be told of anything."""
        return self._wants(ctx, "emergency")

    def are_set(self, ctx: Ctx) -> bool:
        """Say whether a caller has said what it wants to be told of."""
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return self.wants_any(ctx)
        return _connection(ctx) in self._least

    def _wants(self, ctx: Ctx, level: types.LoggingLevel) -> bool:
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return level in allowed_log_levels(ctx.protocol_version, ctx.meta)
        least = self._least.get(_connection(ctx), FIRST)
        return LEVELS.index(level) >= LEVELS.index(least)

    async def tell(self, ctx: Ctx, level: types.LoggingLevel, data: Any) -> None:
        """Tell a caller of a line, if it wants that."""
        if not self._wants(ctx, level):
            return
        with warnings.catch_warnings():  # it is of the older protocol, and spoken with those alone
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            await ctx.session.send_log_message(
                level, data, logger=LOGGER, related_request_id=ctx.request_id
            )


def _connection(ctx: Ctx) -> object:
    return ctx.session._connection

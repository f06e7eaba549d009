"""The MCP server itself: each method, in the name of whoever calls it."""

import warnings
from collections.abc import Callable
from typing import Any, Final

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from ksi_daemon import __version__
from ksi_mcp.events import McpServing
from ksi_mcp.server import errors
from ksi_mcp.server.calling import Answer, Calling
from ksi_mcp.server.catalogue import Catalogues
from ksi_mcp.server.levels import Levels
from ksi_mcp.server.reach import Reach

Ctx = ServerRequestContext[Any, Any]
ReachOf = Callable[[Ctx], Reach]

INSTRUCTIONS: Final = (
    "KSI runs AI agents on this machine and remembers for them. `search` looks something up in its "
    "memory, `remember` keeps something, `ask_agent` has an agent do something. Each event of the "
    "daemon that may be reached is a tool of its own; `look` and `action` send any of them by name."
)


class Serving:
    """Answers every method of MCP.

    Args:
        settings: How KSI is offered.
        reach_of: Says how the daemon is reached in the name of whoever makes a request.
    """

    def __init__(self, settings: McpServing, reach_of: ReachOf) -> None:
        self._settings = settings
        self._reach_of = reach_of
        self.catalogues = Catalogues(lists_events=settings.lists_events)
        self._levels = Levels()

    async def list_tools(
        self, ctx: Ctx, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        """List the tools that the caller may call."""
        with errors.told(self._reach_of(ctx)) as reach:
            known = await self.catalogues.fresh(reach)
        names, cursor = errors.page(list(known.by_name), params, self._settings.page_size)
        return types.ListToolsResult(
            tools=[known.by_name[name].told for name in names], next_cursor=cursor
        )

    async def call_tool(self, ctx: Ctx, params: types.CallToolRequestParams) -> Answer:
        """Call a tool: each call is ``tool:call`` in the caller's name."""
        with errors.told(self._reach_of(ctx)) as reach:
            found = await self.catalogues.find(reach, params.name)
        if found is None:
            message = f"there is no tool {params.name[:200]!r} here, or it may not be called"
            raise MCPError(types.INVALID_PARAMS, message)
        calling = Calling(ctx, reach, self._levels, self._settings.ask_timeout_s)
        return await calling.make(found, params)

    def server(self, schema_of: Callable[[str], dict[str, Any] | None] | None = None) -> Server:
        """Return what the SDK runs.

        Args:
            schema_of: Knows the schema of a tool of whoever makes the request that is being
                served, for what its headers say of the arguments.
        """
        with warnings.catch_warnings():  # both protocols are spoken, the older one's log, too
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            server: Server[Any] = Server(
                "ksi",
                version=__version__,
                title="KSI",
                instructions=INSTRUCTIONS,
                get_tool_input_schema=schema_of,
                on_list_tools=self.list_tools,
                on_call_tool=self.call_tool,
                on_set_logging_level=self._levels.set,
            )
        security = RequestStateSecurity.ephemeral()
        server.middleware.append(RequestStateBoundary(security, default_audience="ksi"))
        return server

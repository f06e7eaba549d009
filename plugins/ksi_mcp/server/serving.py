"""The MCP server itself: each method, in the name of whoever calls it."""

import warnings
from collections.abc import Callable
from typing import Any, Final, get_args

import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types.methods import CacheableMethod

from ksi_daemon import __version__
from ksi_daemon.protocol import Conflict
from ksi_mcp.events import McpServing
from ksi_mcp.server import completing, errors, prompts, resources
from ksi_mcp.server.calling import Answer, Calling
from ksi_mcp.server.catalogue import Catalogues
from ksi_mcp.server.levels import Levels
from ksi_mcp.server.news import News
from ksi_mcp.server.reach import Reach
from ksi_mcp.server.under_way import UnderWay

Ctx = ServerRequestContext[Any, Any]
ReachOf = Callable[[Ctx], Reach]

NAME: Final = "ksi"
FRESH_MS: Final = 1000
CACHED: Final[tuple[CacheableMethod, ...]] = get_args(CacheableMethod)
INSTRUCTIONS: Final = (
    "KSI runs AI agents on this machine and remembers for them. If they are listed, `search` "
    "looks something up in its memory, `remember` keeps something, `ask_agent` has an agent do "
    "something. Each event of the daemon that may be reached is a tool of its own; `look` and "
    "`action` send any of them by name."
)


class OfKsi(Server[Any]):
    """The SDK's server, which says in sessions, too, that it tells what has changed."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Return what a session is told when it begins."""
        everything = NotificationOptions(
            prompts_changed=True, resources_changed=True, tools_changed=True
        )
        return super().create_initialization_options(
            notification_options or everything, experimental_capabilities, extensions
        )


class Serving:
    """Answers every method of MCP.

    Attributes:
        catalogues: What each caller sees.
        news: Who wants to be told of changes.

    Args:
        settings: How KSI is offered.
        reach_of: Says how the daemon is reached in the name of whoever makes a request.
    """

    def __init__(self, settings: McpServing, reach_of: ReachOf) -> None:
        self._settings = settings
        self._reach_of = reach_of
        self.catalogues = Catalogues(lists_events=settings.lists_events)
        self.news = News()
        self._levels = Levels()
        self._under_way = UnderWay()

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

    async def list_resources(
        self, ctx: Ctx, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """List what the caller can read."""
        with errors.told(self._reach_of(ctx)) as reach:
            known = await resources.listed(reach)
        uris, cursor = errors.page(sorted(known), params, self._settings.page_size)
        return types.ListResourcesResult(resources=[known[uri] for uri in uris], next_cursor=cursor)

    async def list_templates(
        self, ctx: Ctx, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """List what the caller can read by a name."""
        with errors.told(self._reach_of(ctx)) as reach:
            known = await resources.templates(reach)
        uris, cursor = errors.page(sorted(known), params, self._settings.page_size)
        return types.ListResourceTemplatesResult(
            resource_templates=[known[uri] for uri in uris], next_cursor=cursor
        )

    async def read_resource(
        self, ctx: Ctx, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        """Return what a resource holds."""
        with errors.told(self._reach_of(ctx)) as reach:
            return await resources.read(reach, str(params.uri))

    async def subscribe(self, ctx: Ctx, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """Tell a session when a resource has changed."""
        reach = self._reach_of(ctx)
        await resources.check(reach, str(params.uri))
        return self.news.subscribe(ctx, reach.tenant, str(params.uri))

    async def listen(
        self, ctx: Ctx, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Tell a program that knows no sessions what has changed, for as long as it listens."""
        reach = self._reach_of(ctx)
        for uri in params.notifications.resource_subscriptions or ():
            await resources.check(reach, str(uri))
        return await self.news.listen(reach.tenant, ctx, params)

    async def _meet(self, ctx: Ctx, call_next: CallNext) -> HandlerResult:
        """Note a session that has begun: it is told of changes from now on."""
        if ctx.method == "notifications/initialized":
            self.news.meet(ctx, self._reach_of(ctx).tenant)
        return await call_next(ctx)

    async def _once(self, ctx: Ctx, call_next: CallNext) -> HandlerResult:
        """Refuse a second request of one id where all come one way; HTTP looks to that itself."""
        if ctx.request is not None or ctx.request_id is None:
            return await call_next(ctx)
        try:
            call = self._under_way.begin(ctx.request_id)
        except Conflict as error:
            raise MCPError(types.INVALID_REQUEST, error.message) from error
        try:
            return await call_next(ctx)
        finally:
            call.end()

    async def list_prompts(
        self, ctx: Ctx, params: types.PaginatedRequestParams | None
    ) -> types.ListPromptsResult:
        """List the prompts."""
        with errors.told(self._reach_of(ctx)) as reach:
            known = await prompts.listed(reach)
        names, cursor = errors.page(sorted(known), params, self._settings.page_size)
        return types.ListPromptsResult(prompts=[known[name] for name in names], next_cursor=cursor)

    async def get_prompt(self, ctx: Ctx, params: types.GetPromptRequestParams) -> prompts.Got:
        """Return a prompt."""
        with errors.told(self._reach_of(ctx)) as reach:
            return await prompts.get(ctx, reach, params, self._settings.ask_timeout_s)

    async def complete(self, ctx: Ctx, params: types.CompleteRequestParams) -> types.CompleteResult:
        """Return what an argument may be."""
        with errors.told(self._reach_of(ctx)) as reach:
            return await completing.complete(reach, params)

    def server(
        self, schema_of: Callable[[str], dict[str, Any] | None] | None = None
    ) -> Server[Any]:
        """Return what the SDK runs.

        Args:
            schema_of: Knows the schema of a tool of whoever makes the request that is being
                served, for what its headers say of the arguments.
        """
        with warnings.catch_warnings():  # both protocols are spoken, the older one's log, too
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            server = OfKsi(
                NAME,
                version=__version__,
                title="KSI",
                instructions=INSTRUCTIONS,
                cache_hints=dict.fromkeys(CACHED, CacheHint(ttl_ms=FRESH_MS)),
                get_tool_input_schema=schema_of,
                on_list_tools=self.list_tools,
                on_call_tool=self.call_tool,
                on_list_resources=self.list_resources,
                on_list_resource_templates=self.list_templates,
                on_read_resource=self.read_resource,
                on_subscribe_resource=self.subscribe,
                on_unsubscribe_resource=self.news.unsubscribe,
                on_subscriptions_listen=self.listen,
                on_list_prompts=self.list_prompts,
                on_get_prompt=self.get_prompt,
                on_completion=self.complete,
                on_set_logging_level=self._levels.set,
            )
        security = RequestStateSecurity.ephemeral(ttl=self._settings.ask_timeout_s)
        boundary = RequestStateBoundary(security, default_audience=NAME)
        # And no traces: nobody here collects them.
        server.middleware[:] = [self._once, boundary, self._meet]
        return server

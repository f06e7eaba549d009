"""A server as the registry of tools sees it: its tools, whether it is connected or not."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ksi_mcp.client.asking.calls import Calls, MayAsk
from ksi_mcp.client.keys.suspects import target_of
from ksi_mcp.client.reach import Reach
from ksi_mcp.client.store import Key, Store
from ksi_mcp.client.tools.definitions import prefix_of
from ksi_mcp.client.tools.offer import Offer, Rival
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.events import McpServer, McpServerReport
from ksi_mcp.settings import McpSettings
from ksi_tools.api import ToolContext, Tools

Connect = Callable[["Remote"], Awaitable[Connection]]


class Remote:
    """A server.

    Args:
        key: Whose it is, and its name.
        server: What it is.
        was_added: Whether it was added, and doesn't stand in the settings.
        settings: The bounds.
        tools: The registry.
        store: Keeps what is known of its tools.
        connect: Makes a connection.
        rivals: Tells of servers whose tools' names go before its own.
        held_back: Told which tools are newly held back.
        may_ask: Says whether whoever calls may ask a person.

    Attributes:
        reach: The way to it.
        offer: Its tools.
        calls: Makes them.
        prefix: What their names begin with.
    """

    name = "mcp"

    def __init__(
        self,
        key: Key,
        server: McpServer,
        *,
        was_added: bool,
        settings: McpSettings,
        tools: Tools,
        store: Store,
        connect: Connect,
        rivals: Callable[["Remote"], Iterable[Rival]],
        held_back: Callable[["Remote", tuple[str, ...]], None],
        may_ask: MayAsk,
    ) -> None:
        self.key = key
        self.server = server
        self.was_added = was_added
        self.prefix = prefix_of(key[1], server)
        self.reach = Reach(key[1], settings, lambda: connect(self))
        self.offer = Offer(
            key,
            server,
            was_added=was_added,
            settings=settings,
            registration=tools.add_provider(self, tenant=None if self.is_everybodys else key[0]),
            store=store,
            rivals=lambda: rivals(self),
            held_back=lambda held: held_back(self, held),
        )
        self.calls = Calls(key[1], settings, self.reach, self.offer, may_ask)

    @property
    def server_name(self) -> str:
        """Its name."""
        return self.key[1]

    @property
    def is_everybodys(self) -> bool:
        """Whether all tenants have it."""
        return not self.was_added and not self.server.tenant

    def goes_before(self, other: "Remote") -> bool:
        """Say whether names that begin as its tools' do are not another server's, where both are.

        So a name tells whose the tool is, whichever server comes first, or has it just now.
        """
        if other is self or not (self.is_everybodys or self.key[0] == other.key[0]):
            return False
        if self.is_everybodys != other.is_everybodys:
            return self.is_everybodys and bool(self.prefix)
        return self.prefix.startswith(other.prefix) and self._rank > other._rank

    @property
    def _rank(self) -> tuple[int, bool, str]:
        """The longest prefix goes first; of one that two have, that of the settings does."""
        return len(self.prefix), not self.was_added, self.server_name

    # -- calls ----------------------------------------------------------------------------------

    async def call_tool(self, name: str, arguments: dict[str, Any], context: ToolContext) -> Any:
        """Call a tool of the server's, which is started or connected where it isn't yet."""
        return await self.calls.call(name, arguments, context)

    # -- its end -----------------------------------------------------------------------------------

    def end(self) -> None:
        """Take its tools back, and end its connection."""
        self.offer.end()
        self.reach.end()

    async def until_left(self) -> None:
        """Wait until its connection has ended, after `end`."""
        if self.reach.connection is not None:
            await self.reach.connection.until_left()

    # -- what is told of it ---------------------------------------------------------------------

    def report(self, *, with_tools: bool) -> McpServerReport:
        """Tell of it."""
        shown = self.offer.changes() if with_tools else {}
        return McpServerReport(
            name=self.server_name,
            source="added" if self.was_added else "settings",
            tenant=self.key[0] if not self.is_everybodys else None,
            target=target_of(self.server),
            state=self.reach.state if self.server.is_on else "off",
            why=None if self.reach.state == "connected" else self.reach.why,
            offered=len(self.offer.offered()),
            held_back=len(self.offer.held()),
            refused=self.offer.refused(),
            digest=self.offer.digest(shown),
            tools=self.offer.reports(shown) if with_tools else (),
            oauth=self.server.oauth,
        )

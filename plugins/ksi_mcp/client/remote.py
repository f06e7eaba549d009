"""A server as the registry of tools sees it: its tools, whether it is connected or not."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ksi_daemon.protocol import Failed, TimedOut, Unavailable
from ksi_mcp.client import results
from ksi_mcp.client.connection import Connection
from ksi_mcp.client.definitions import Definition, prefix_of
from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.client.offer import Offer, Rival
from ksi_mcp.client.reach import Reach
from ksi_mcp.client.store import Key, Store
from ksi_mcp.client.suspects import target_of
from ksi_mcp.client.text import fenced
from ksi_mcp.events import McpServer, McpServerReport
from ksi_mcp.exchange import Content
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

    Attributes:
        reach: The way to it.
        offer: Its tools.
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
    ) -> None:
        self.key = key
        self.server = server
        self.was_added = was_added
        self.prefix = prefix_of(key[1], server)
        self.reach = Reach(key[1], settings, lambda: connect(self))
        self._settings = settings
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
        tool = self.offer.tool(name)
        for attempt in (1, 2):
            connection = await self._connected_for_a_call()
            if self.offer.tool(name) != tool:  # it has just said something else of it
                raise self.offer.denied(name)
            try:
                result = await connection.call(tool.name, arguments, context.progress)
            except NotSentError as error:
                connection.end()
                if attempt == 2:
                    raise Unavailable(
                        self._fenced(str(error)), retry_after_s=self._settings.retry_s
                    ) from error
            except LostError as error:
                raise TimedOut(self._fenced(str(error))) from error
            except AnswerError as error:
                raise Failed(self._fenced(str(error))) from error
            else:
                return await asyncio.to_thread(self._told, tool, result)
        raise AssertionError

    async def _connected_for_a_call(self) -> Connection:
        """Connect; when the call is ended meanwhile, that is no doubt: nobody was asked anything.

        Raises:
            Unavailable: There is no connection.
        """
        try:
            return await self.reach.connected()
        except Unavailable as error:  # it may tell what the server has said as it failed
            fenced_why = self._fenced(error.message)
            raise Unavailable(fenced_why, retry_after_s=error.retry_after_s) from error
        except asyncio.CancelledError as error:
            raise Unavailable(f"{self.server_name} was not connected in time") from error

    def _told(self, tool: Definition, result: dict[str, Any]) -> str | Content:
        told = results.returned_of(result, tool.output, self._fenced)
        if result.get("isError"):
            raise Failed(told if isinstance(told, str) else told.shown())
        return told

    def _fenced(self, text: str) -> str:
        return fenced(text, self.server_name, f"-----{secrets.token_hex(6)}-----")

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

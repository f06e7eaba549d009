"""A server as the registry of tools sees it: its tools, whether it is connected or not."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from ksi_daemon.protocol import (
    Denied,
    Failed,
    InvalidData,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_mcp.client import definitions, results
from ksi_mcp.client.connection import Connection
from ksi_mcp.client.definitions import Definition, KnownTool
from ksi_mcp.client.errors import AnswerError, LostError, NotSentError
from ksi_mcp.client.store import Key, Known, Store
from ksi_mcp.client.suspects import target_of
from ksi_mcp.client.text import fenced
from ksi_mcp.events import McpServer, McpServerReport, McpToolReport
from ksi_mcp.exchange import Content
from ksi_mcp.settings import McpSettings
from ksi_tools.api import ToolContext, Tools, ToolSpec

log = logging.getLogger(__name__)

MAX_REFUSED: Final = 20
HELD_BACK: Final = (
    "{tool} of {server} is not what it was, and is held back until somebody has looked at it "
    "(ksi mcp check {server}, ksi mcp accept {server})"
)
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
        held_back: Told which tools are newly held back.
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
        held_back: Callable[["Remote", tuple[str, ...]], None],
    ) -> None:
        self.key = key
        self.server = server
        self.was_added = was_added
        self.known: Known = {}
        self.connection: Connection | None = None
        self.why: str | None = None
        self._settings = settings
        self._store = store
        self._connect = connect
        self._held_back = held_back
        self._connecting = asyncio.Lock()
        self._keeping = asyncio.Lock()
        self._has_ended = False
        self._failures = 0
        self._retry_at = 0.0
        self._refused: tuple[str, ...] = ()
        self._own_names: dict[str, str] = {}
        tenant = key[0] if was_added else server.tenant or None
        self._registration = tools.add_provider(self, tenant=tenant)

    @property
    def server_name(self) -> str:
        """Its name."""
        return self.key[1]

    @property
    def is_everybodys(self) -> bool:
        """Whether all tenants have it."""
        return not self.was_added and not self.server.tenant

    # -- its tools ------------------------------------------------------------------------------

    def take(self, known: Known) -> None:
        """Offer the tools that are known and may be used."""
        if self._has_ended:
            return
        self.known = known
        specs = []
        self._own_names = {}
        for each in self._usable():
            spec = definitions.spec_of(self.server_name, self.server, each)
            specs.append(self._timed(spec))
            self._own_names[spec.name] = each.name
        self._registration.update(specs if self.server.is_on else (), are_sound=True)

    def _usable(self) -> list[Definition]:
        found = (each.usable for each in self.known.values())
        return [
            each
            for each in found
            if each is not None and definitions.is_allowed(self.server, each.name)
        ]

    def _timed(self, spec: ToolSpec) -> ToolSpec:
        timeout_s = self.server.timeout_s or self._settings.call_timeout_s
        return msgspec.structs.replace(spec, timeout_s=timeout_s)

    async def listed(self, found: list[dict[str, Any]], is_all: bool) -> None:
        """Hold what the server says of its tools to what is known, and keep that."""
        made: dict[str, Definition] = {}
        refused = [] if is_all else [f"more than {self._settings.max_tools} (mcp.max_tools)"]
        for each in found:
            try:
                definition = definitions.definition_of(each, self._settings)
                self._check(definition)
                made[definition.name] = definition
            except InvalidData as error:
                refused.append(error.message)
        self._refused = tuple(refused[:MAX_REFUSED])
        accept_new = self.server.accept_new
        before = self.known
        now = definitions.compared(
            before,
            made.values(),
            accept_new=self._settings.accept_new if accept_new is None else accept_new,
            max_tools=self._settings.max_tools,
        )
        if now != before:
            await self.keep(now)

    def _check(self, definition: Definition) -> None:
        """Refuse a tool whose schema is none.

        Raises:
            InvalidData: It is not sound.
        """
        Tools.check_schema(definition.name, definition.parameters)

    async def reload(self) -> None:
        """Offer what is kept: another daemon may have seen or accepted something else."""
        async with self._keeping:
            known = await self._store.known_of(self.key)
            if known != self.known:
                self.take(known)

    async def keep(self, now: Known) -> None:
        """Offer what is known now, and keep it."""
        async with self._keeping:
            await self._keep(now)

    async def _keep(self, now: Known) -> None:
        before = self.known
        self.take(now)
        held = tuple(
            name
            for name, each in now.items()
            if each.pending and (name not in before or before[name].pending != each.pending)
        )
        if held:
            self._held_back(self, held)
        await self._store.keep(self.key, now.values(), was_added=self.was_added)

    # -- calls ----------------------------------------------------------------------------------

    async def call_tool(self, name: str, arguments: dict[str, Any], context: ToolContext) -> Any:
        """Call a tool of the server's, which is started or connected where it isn't yet."""
        tool = self._tool(name)
        for attempt in (1, 2):
            connection = await self._connected_for_a_call()
            if self._tool(name) != tool:  # it has just said something else of it
                raise Denied(HELD_BACK.format(tool=tool.name, server=self.server_name))
            try:
                result = await connection.call(tool.name, arguments, context.progress)
            except NotSentError as error:
                connection.end()
                if attempt == 2:
                    raise Unavailable(
                        f"{self.server_name}: {error}", retry_after_s=self._settings.retry_s
                    ) from error
            except LostError as error:
                raise TimedOut(f"{self.server_name}: {error}") from error
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
            return await self.connected()
        except asyncio.CancelledError as error:
            raise Unavailable(f"{self.server_name} was not connected in time") from error

    def _tool(self, name: str) -> Definition:
        own = self._own_names.get(name, "")
        known = self.known.get(own)
        if known is None or known.usable is None:
            raise Denied(HELD_BACK.format(tool=own or name, server=self.server_name))
        return known.usable

    def _told(self, tool: Definition, result: dict[str, Any]) -> str | Content:
        told = results.returned_of(result, tool.output, self._fenced)
        if result.get("isError"):
            raise Failed(told if isinstance(told, str) else told.shown())
        return told

    def _fenced(self, text: str) -> str:
        return fenced(text, self.server_name, f"-----{secrets.token_hex(6)}-----")

    # -- its connection -------------------------------------------------------------------------

    async def connected(self) -> Connection:
        """Return a connection, which is made where there is none.

        Raises:
            Unavailable: It can't be made, or could not be made a moment ago.
        """
        async with self._connecting:
            if self.connection is not None and not self.connection.is_over:
                return self.connection
            left_s = self._retry_at - time.monotonic()
            if left_s > 0:
                raise Unavailable(f"{self.server_name}: {self.why}", retry_after_s=round(left_s, 1))
            connection = await self._connect(self)
            self.connection = connection
            await connection.is_ready.wait()
            if connection.is_over and connection.why is not None:
                self._fail(connection.why)
            self._failures, self.why = 0, None
            return connection

    def _fail(self, why: str) -> None:
        delay_s = self._settings.retry_s * 2.0 ** min(self._failures, 20)
        self._failures += 1
        self.why = why
        self._retry_at = time.monotonic() + min(delay_s, self._settings.max_retry_s)
        log.warning("a server can't be connected", extra={"server": self.server_name, "why": why})
        raise Unavailable(f"{self.server_name}: {why}", retry_after_s=delay_s)

    async def check(self) -> None:
        """Ask the server for its tools now.

        Raises:
            Unavailable: It can't be reached.
        """
        self._retry_at = 0.0
        was = self.connection
        connection = await self.connected()
        if connection is not was:
            return  # it has just been asked
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await connection.refresh()
        except (NotSentError, LostError, AnswerError, TimeoutError) as error:
            connection.end()
            raise Unavailable(f"{self.server_name}: {error or 'it does not answer'}") from error

    def is_idle(self) -> bool:
        """Say whether it is connected, and nobody calls it."""
        connection = self.connection
        if connection is None or connection.is_over or not connection.is_ready.is_set():
            return False
        return not connection.calls

    def end(self) -> None:
        """Take its tools back, and end its connection."""
        self._has_ended = True
        self._registration.remove()
        self._own_names = {}
        if self.connection is not None:
            self.connection.end()

    async def until_left(self) -> None:
        """Wait until its connection has ended, after `end`."""
        if self.connection is not None:
            await self.connection.until_left()

    # -- what is told of it ---------------------------------------------------------------------

    async def accept(self, names: tuple[str, ...], digest: str | None) -> None:
        """Believe what it says now of tools that are held back.

        Raises:
            NotFound: None of that name is held back.
            Denied: It says something else by now than what was looked at.
        """
        held = {name: each for name, each in self.known.items() if each.pending}
        if missing := [each for each in names if each not in held]:
            raise NotFound(f"{self.server_name} has no tool {missing[0]!r} that is held back")
        if digest is not None and digest != definitions.digest_of(held.values()):
            raise Denied(f"{self.server_name} says something else by now: look at it again")
        chosen = names or tuple(held)
        now = {
            name: definitions.accepted(each) if name in chosen else each
            for name, each in self.known.items()
        }
        await self.keep(now)

    def report(self, *, with_tools: bool) -> McpServerReport:
        """Tell of it."""
        held = [each for each in self.known.values() if each.pending and each.is_there]
        return McpServerReport(
            name=self.server_name,
            source="added" if self.was_added else "settings",
            tenant=self.key[0] if not self.is_everybodys else None,
            target=target_of(self.server),
            state=self._state(),
            why=self.why,
            offered=len(self._own_names) if self.server.is_on else 0,
            held_back=len(held),
            refused=self._refused,
            digest=definitions.digest_of(each for each in self.known.values() if each.pending),
            tools=tuple(map(self._tool_report, self.known.values())) if with_tools else (),
            oauth=self.server.oauth,
        )

    def _state(self) -> Any:
        if not self.server.is_on:
            return "off"
        if self._connecting.locked():
            return "connecting"
        if self.connection is not None and not self.connection.is_over:
            return "connected"
        return "failed" if self.why is not None else "idle"

    def _tool_report(self, tool: KnownTool) -> McpToolReport:
        told = tool.pending or tool.accepted
        assert told is not None  # one of them is there
        offered = {own: name for name, own in self._own_names.items()}
        names = self._registration.names()
        offered_as = names.get(offered.get(tool.name, ""))
        status = "offered" if offered_as else "gone"
        if tool.is_there and not definitions.is_allowed(self.server, tool.name):
            status = "not_allowed"
        elif tool.is_there and tool.pending:
            status = "held_back"
        elif tool.is_there and not offered_as:
            status = "not_allowed"
        return McpToolReport(
            name=tool.name,
            status=status,  # type: ignore[arg-type]  # one of them
            offered_as=offered_as,
            effects=told.effects(is_trusted=self.server.trust_annotations),
            description=told.description,
            diff=definitions.diff_of(tool),
        )

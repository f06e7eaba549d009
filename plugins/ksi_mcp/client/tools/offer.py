"""What is offered of a server's tools: what it says of them, held to what is known, and kept."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ksi_daemon.protocol import Denied, InvalidData, NotFound
from ksi_mcp.client.store import Key, Known, Store
from ksi_mcp.client.tools import definitions
from ksi_mcp.client.tools.definitions import Definition, KnownTool
from ksi_mcp.events import McpServer, McpToolReport
from ksi_mcp.settings import McpSettings
from ksi_tools.api import ProviderRegistration, Tools

MAX_REFUSED: Final = 20
HELD_BACK: Final = (
    "{tool} is not what it was, and is held back until somebody has looked at it "
    "(ksi mcp check {server}, ksi mcp accept {server})"
)
Status = Literal["offered", "held_back", "not_allowed", "gone"]


class Rival(NamedTuple):
    """Another server, and what the names of its tools begin with: no name of ours may."""

    prefix: str
    name: str


class Offer:
    """The tools of a server.

    Args:
        key: Whose it is, and its name.
        server: What it is.
        was_added: Whether it was added, and doesn't stand in the settings.
        settings: The bounds.
        registration: Its place in the registry.
        store: Keeps what is known of its tools.
        rivals: Tells of servers whose names go before its own.
        held_back: Told which tools are newly held back.

    Attributes:
        known: All tools that it has or had.
    """

    def __init__(
        self,
        key: Key,
        server: McpServer,
        *,
        was_added: bool,
        settings: McpSettings,
        registration: ProviderRegistration,
        store: Store,
        rivals: Callable[[], Iterable[Rival]],
        held_back: Callable[[tuple[str, ...]], None],
    ) -> None:
        self.known: Known = {}
        self._key = key
        self._server = server
        self._was_added = was_added
        self._settings = settings
        self._registration = registration
        self._store = store
        self._rivals = rivals
        self._held_back = held_back
        self._keeping = asyncio.Lock()
        self._is_loaded = False
        self._is_kept = True
        self._has_ended = False
        self._own_names: dict[str, str] = {}  # by the names that are the tools' here
        self._refused: tuple[str, ...] = ()
        self._unnamed: tuple[str, ...] = ()

    # -- what is known --------------------------------------------------------------------------

    def load(self, known: Known) -> None:
        """Offer what was kept, unless it was looked at before."""
        if not self._is_loaded:
            self._take(known)

    def _take(self, known: Known) -> None:
        self._is_loaded = True
        self.known = known
        self.renew()

    def renew(self) -> None:
        """Offer the tools that may be used: after something has changed, of them or of rivals."""
        if self._has_ended:
            return
        allowed = [each for each in self.known.values() if self._is_allowed(each)]
        names = {each.name: self._name(each) for each in allowed}
        how_often = Counter(names.values())
        rivals = tuple(self._rivals()) if allowed else ()
        self._own_names, unnamed, specs = {}, [], []
        for each in allowed:
            name = names[each.name]
            if how_often[name] > 1:
                unnamed.append(f"{each.name}: it has another tool whose name would be {name} here")
            elif rival := next((r.name for r in rivals if name.startswith(r.prefix)), None):
                unnamed.append(
                    f"{each.name}: the names of the tools of {rival} begin as {name} does: "
                    "give one of them another prefix"
                )
            else:
                self._own_names[name] = each.name
                if each.usable is not None:
                    specs.append(self._spec(name, each.usable))
        self._unnamed = tuple(unnamed)
        is_on = self._server.is_on
        self._registration.update(
            specs if is_on else (), are_sound=True, claims=self._own_names if is_on else ()
        )

    def _is_allowed(self, tool: KnownTool) -> bool:
        return definitions.is_allowed(self._server, tool.name)

    def _name(self, tool: KnownTool) -> str:
        prefix = definitions.prefix_of(self._key[1], self._server)
        return definitions.name_of(f"{prefix}{tool.name}")

    def _spec(self, name: str, tool: Definition) -> Any:
        spec = definitions.spec_of(self._key[1], self._server, tool)
        timeout_s = self._server.timeout_s or self._settings.call_timeout_s
        return msgspec.structs.replace(spec, name=name, timeout_s=timeout_s)

    async def listed(self, found: list[dict[str, Any]], is_all: bool) -> None:
        """Hold what the server says of its tools to what is known, and keep that."""
        made, refused = await asyncio.to_thread(self._sound, found)
        if not is_all:
            most, max_bytes = self._settings.max_tools, self._settings.max_tools_bytes
            refused.insert(
                0, f"more than {most} (mcp.max_tools), or {max_bytes} bytes (mcp.max_tools_bytes)"
            )
        async with self._keeping:
            if not self._is_loaded:
                self._take(await self._store.known_of(self._key))
            self._refused = tuple(refused)
            now = self._compared(made.values())
            if now != self.known or not self._is_kept:
                await self._hold(now)

    def _sound(self, found: list[dict[str, Any]]) -> tuple[dict[str, Definition], list[str]]:
        """Return what can be tools, by name, and why others can't."""
        made: dict[str, Definition] = {}
        refused: list[str] = []
        for each in found:
            try:
                definition = definitions.definition_of(each, self._settings)
                Tools.check_schema(definition.name, definition.parameters)
                made[definition.name] = definition
            except InvalidData as error:
                refused.append(error.message)
        return made, refused

    def _compared(self, listed: Iterable[Definition]) -> Known:
        accept_new = self._server.accept_new
        return definitions.compared(
            self.known,
            listed,
            accept_new=self._settings.accept_new if accept_new is None else accept_new,
            max_tools=self._settings.max_tools,
        )

    async def reload(self) -> None:
        """Offer what is kept: another daemon may have seen or accepted something else.

        What could not be kept when it was seen is newer, and is kept now.
        """
        async with self._keeping:
            if not self._is_kept:
                await self._hold(self.known)
                return
            known = await self._store.known_of(self._key)
            if known != self.known:
                self._take(known)

    async def _hold(self, now: Known) -> None:
        """Offer no more than what is known now, at once, and keep that as soon as it can be."""
        if self._has_ended:
            return
        before, self._is_kept = self.known, False
        self._take(now)
        held = tuple(
            name
            for name, each in now.items()
            if each.pending and (name not in before or before[name].pending != each.pending)
        )
        if held:
            self._held_back(held)
        await self._keep(now)

    async def _keep(self, now: Known) -> None:
        server = self._server if self._was_added else None
        await self._store.keep(self._key, now.values(), server)
        self._is_kept = True

    async def accept(self, names: tuple[str, ...], digest: str | None) -> None:
        """Believe what it says now of tools that are held back, as far as that can be shown.

        Raises:
            NotFound: None of that name is held back.
            Denied: It says something else by now than what was looked at.
        """
        async with self._keeping:
            shown = self.changes()
            if missing := [each for each in names if each not in shown]:
                raise NotFound(
                    f"{self._key[1]} has no tool {missing[0]!r} that is held back and can be shown"
                )
            if digest is not None and digest != self.digest(shown):
                raise Denied(f"{self._key[1]} says something else by now: look at it again")
            chosen = names or tuple(shown)
            now = {
                name: definitions.accepted(each) if name in chosen else each
                for name, each in self.known.items()
            }
            await self._keep(now)
            self._take(now)

    def end(self) -> None:
        """Take all back: what comes late from the server is nobody's any more."""
        self._has_ended = True
        self._registration.remove()
        self._own_names = {}

    # -- what is called -------------------------------------------------------------------------

    def tool(self, name: str) -> Definition:
        """Return a tool that may be called now.

        Raises:
            Denied: It has been held back meanwhile.
        """
        known = self.known.get(self._own_names.get(name, ""))
        if known is None or known.usable is None:
            raise self.denied(name)
        return known.usable

    def denied(self, name: str) -> Denied:
        """Say that a tool is not what it was."""
        return Denied(HELD_BACK.format(tool=name, server=self._key[1]))

    # -- what is told of them -------------------------------------------------------------------

    def held(self) -> list[KnownTool]:
        """Return the tools that would be offered, if somebody accepted what is said of them."""
        return [
            each
            for each in self.known.values()
            if each.pending and each.is_there and self._is_allowed(each)
        ]

    def changes(self) -> dict[str, str]:
        """Return what has changed of those, of as many as can be shown at once."""
        return definitions.shown(self.held())

    def digest(self, shown: Iterable[str]) -> str | None:
        """Return what stands for all that is shown, as it is now."""
        return definitions.digest_of(self.known[name] for name in shown)

    def offered(self) -> dict[str, str]:
        """Return the names of the tools that are offered, by the server's own."""
        return {self._own_names[name]: name for name in self._registration.offered()}

    def refused(self) -> tuple[str, ...]:
        """Return why tools that the server has are left out."""
        offered = self._registration.offered()
        taken = tuple(
            f"{own}: there is another tool {name}: give the server another prefix"
            for name, own in self._own_names.items()
            if self.known[own].usable is not None and self._server.is_on and name not in offered
        )
        return (*self._refused, *self._unnamed, *taken)[:MAX_REFUSED]

    def reports(self, shown: dict[str, str]) -> tuple[McpToolReport, ...]:
        """Tell of each tool, and of what has changed where that is shown."""
        offered = self.offered()
        return tuple(
            self._report(each, offered.get(name), shown.get(name))
            for name, each in self.known.items()
        )

    def _report(self, tool: KnownTool, name: str | None, diff: str | None) -> McpToolReport:
        told = tool.pending or tool.accepted
        assert told is not None  # one of them is there
        return McpToolReport(
            name=tool.name,
            status=self._status(tool, name),
            offered_as=name,
            effects=told.effects(is_trusted=self._server.trust_annotations),
            description=told.description,
            diff=diff,
        )

    def _status(self, tool: KnownTool, name: str | None) -> Status:
        if not tool.is_there:
            return "gone"
        if self._is_allowed(tool) and tool.pending:
            return "held_back"
        return "offered" if name else "not_allowed"

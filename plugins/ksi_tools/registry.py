"""Which tools there are, and whose."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from itertools import count
from typing import Any, Final, Protocol, Self

import msgspec
from msgspec import Struct

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import payload_of
from ksi_daemon.protocol import Busy, Conflict, NotFound
from ksi_daemon.protocol.names import check_name, did_you_mean, nearest
from ksi_daemon.router import Router
from ksi_daemon.routes import Route
from ksi_daemon.schemas import schema_of
from ksi_tools.events import Effects
from ksi_tools.functions import tools_of
from ksi_tools.schemas import checker_of, flattened
from ksi_tools.tool import (
    MAX_NAME_CHARS,
    NO_ARGUMENTS,
    Tool,
    ToolContext,
    check_tool_name,
    name_of_event,
)

CLIENT: Final = "client "  # what the router calls the provider of an event that is served
EVERYBODY: Final = ""  # stands for the tenant of what all tenants have


class ToolSpec(Struct, frozen=True, kw_only=True):
    """A tool as a `ToolProvider` tells of it; the arguments are checked against ``parameters``."""

    name: str
    description: str
    parameters: dict[str, Any] = msgspec.field(default_factory=NO_ARGUMENTS.copy)
    effects: Effects = "effectful"
    timeout_s: float | None = None


class ToolProvider(Protocol):
    """Brings tools whose list may change, such as those of another program."""

    name: str

    async def call_tool(self, name: str, arguments: dict[str, Any], context: ToolContext) -> Any:
        """Do it, and return text, or what can be told in JSON.

        Raises:
            TimedOut: Nobody knows whether it was done.
            KsiError: It was not done.
        """


class Registration:
    """Tools that were added together; they go with `remove`, or at the end of a ``with``."""

    def __init__(self, tools: "Tools", names: Iterable[str] = ()) -> None:
        self._tools = tools
        self._names = set(names)

    def remove(self) -> None:
        """Take the tools back."""
        self._tools._forget(self._names)
        self._names = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class ProviderRegistration(Registration):
    """The tools of a provider, which may change."""

    def __init__(self, tools: "Tools", provider: ToolProvider, tenant: str | None) -> None:
        super().__init__(tools)
        self._provider = provider
        self._tenant = tenant

    def update(self, specs: Iterable[ToolSpec], *, are_sound: bool = False) -> None:
        """Have these tools from now on, and no others; all of them, or an error.

        Args:
            specs: The tools.
            are_sound: Whether the schemas have been looked at before; they are then compiled when
                they are first needed.

        Raises:
            Conflict: Two have one name.
            InvalidData: A name or a schema is not sound.
        """
        made = [self._tool(spec, are_sound=are_sound) for spec in specs]
        self._tools._provide(self, made)

    def remove(self) -> None:
        """Take the tools back."""
        self._tools._provide(self, [])

    def names(self) -> dict[str, str]:
        """Return under which name each tool is offered: its own may be another's."""
        return self._tools._names_of(self)

    def _tool(self, spec: ToolSpec, *, are_sound: bool) -> Tool:
        provider = self._provider

        async def execute(arguments: dict[str, Any], context: ToolContext) -> Any:
            return await provider.call_tool(spec.name, arguments, context)

        checked = None if are_sound else checker_of(spec.name, spec.parameters)

        def check(arguments: dict[str, Any]) -> dict[str, Any]:
            nonlocal checked
            if checked is None:
                checked = checker_of(spec.name, spec.parameters)
            return checked(arguments)

        return Tool(
            name=check_tool_name(spec.name),
            description=spec.description,
            effects=spec.effects,
            provider=provider.name,
            parameters=spec.parameters,
            check=check,
            execute=execute,
            timeout_s=spec.timeout_s,
            tenant=self._tenant,
        )


class EventSource(Struct, frozen=True, kw_only=True):
    """An event that was made a tool.

    Attributes:
        name: The tool's.
        event: The event's.
        effects: What a repetition would do.
        description: The event's documentation unless given.
        parameters: The schema unless the event has its own.
        timeout_s: How long a call may take.
        tenant: Whose it is alone.
        route: What the connection serves with which it goes.
    """

    name: str
    event: str
    effects: Effects
    description: str = ""
    parameters: dict[str, Any] | None = None
    timeout_s: float | None = None
    tenant: str | None = None
    route: Route | None = None


class Tools:
    """The one registry of what agents can call, as other plugins find it as a service.

    Attributes:
        on_change: Called when there are other tools than before; a handful, that must not raise.

    Args:
        router: Knows who answers an event, and which plugins are there.
        bus: Sends the events that are tools.
        max_registered: How many tools the clients of a tenant may register.
        max_output_bytes: How much of a stream is kept.
    """

    def __init__(
        self, router: Router, bus: Bus, max_registered: int, max_output_bytes: int
    ) -> None:
        self._router = router
        self._bus = bus
        self._max_registered = max_registered
        self._max_output_bytes = max_output_bytes
        self._tools: dict[str, Tool] = {}
        self._events: dict[str, EventSource] = {}
        self._provided: dict[ProviderRegistration, list[Tool]] = {}
        self._offered: dict[tuple[str, str], Tool] | None = None  # made anew when it is asked for
        self._of_clients: dict[tuple[str, str], EventSource] = {}
        self._made: dict[str, tuple[Route, EventSource, Tool]] = {}
        self.on_change: list[Callable[[], None]] = []

    # -- what plugins call ----------------------------------------------------------------------

    def add(self, *owners: object, provider: str) -> Registration:
        """Take on functions that `tool` decorates: of modules, of objects, or themselves.

        Call it in the plugin's lifespan. While the plugin is not ready its tools can't be called;
        when it is started again, it brings them again.

        Args:
            owners: Modules, objects, functions.
            provider: The plugin's name.

        Raises:
            Conflict: A name is another's.
            InvalidData: A function has a signature that can't be told to a model.
        """
        made = [each for owner in owners for each in tools_of(owner, provider)]
        mine = {name for name, each in self._tools.items() if each.provider == provider}
        self._replace(mine & {each.name for each in made}, made)
        return Registration(self, (each.name for each in made))

    def add_event(
        self,
        event: str,
        *,
        effects: Effects,
        name: str | None = None,
        description: str = "",
        timeout_s: float | None = None,
    ) -> Registration:
        """Make an event a tool, for as long as somebody answers it.

        Args:
            event: Its name.
            effects: What a repetition would do.
            name: The tool's; made of the event's, with ``_`` for each ``:``, unless given.
            description: What models are told; the event's own documentation unless given.
            timeout_s: How long a call may take.

        Raises:
            Conflict: The name is another's.
        """
        source = EventSource(
            name=check_tool_name(name or name_of_event(event)),
            event=check_name(event),
            effects=effects,
            description=description,
            timeout_s=timeout_s,
        )
        known = self._events.get(source.name)
        if source.name in self._tools or (known is not None and known.event != event):
            raise Conflict(f"there is another tool {source.name!r}")
        self._events[source.name] = source
        self._changed()
        return Registration(self, [source.name])

    def add_provider(
        self, provider: ToolProvider, *, tenant: str | None = None
    ) -> ProviderRegistration:
        """Take on somebody whose tools may change: tell them by the registration's ``update``.

        Where a plugin has a tool of the same name, that one keeps it, whenever it comes, and so
        does the provider who came first; the other's is offered with a number behind its name.

        Args:
            provider: Who calls them.
            tenant: Whose they are alone; everybody's unless given.
        """
        return ProviderRegistration(self, provider, tenant)

    def _changed(self) -> None:
        self._offered = None
        for tell in self.on_change:
            tell()

    def _replace(self, old: set[str], new: list[Tool]) -> None:
        for index, each in enumerate(new):
            is_taken = each.name in self._tools and each.name not in old
            twice = any(other.name == each.name for other in new[:index])
            if is_taken or twice or each.name in self._events:
                raise Conflict(f"there is another tool {each.name!r}")
        self._forget(old)
        self._tools.update({each.name: each for each in new})

    def _forget(self, names: Iterable[str]) -> None:
        self._changed()
        for name in names:
            self._tools.pop(name, None)
            self._events.pop(name, None)
            self._made.pop(name, None)

    # -- what providers have --------------------------------------------------------------------

    @staticmethod
    def check_schema(name: str, schema: dict[str, Any]) -> None:
        """Refuse what a provider's tool can't have as the schema of its arguments.

        Raises:
            InvalidData: It is not sound, or too large.
        """
        checker_of(name, schema)

    def _provide(self, registration: "ProviderRegistration", tools: list[Tool]) -> None:
        for index, each in enumerate(tools):
            if any(other.name == each.name for other in tools[:index]):
                raise Conflict(f"there is another tool {each.name!r}")
        self._provided[registration] = tools
        if not tools:
            del self._provided[registration]  # who has some again comes last
        self._changed()

    def _names_of(self, registration: "ProviderRegistration") -> dict[str, str]:
        by_tool = {id(each.execute): name for (_, name), each in self._all_offered().items()}
        mine = self._provided.get(registration, ())
        return {each.name: by_tool[id(each.execute)] for each in mine}

    def _all_offered(self) -> dict[tuple[str, str], Tool]:
        """Return what providers have, by whose it is and the name under which it is offered."""
        if self._offered is None:
            self._offered = {}
            provided = [each for tools in self._provided.values() for each in tools]
            provided.sort(key=lambda each: each.tenant or EVERYBODY)
            renamed = []
            for each in provided:
                if self._is_taken(each.tenant or EVERYBODY, each.name):
                    renamed.append(each)
                else:
                    self._offered[each.tenant or EVERYBODY, each.name] = each
            for each in renamed:
                whose = each.tenant or EVERYBODY
                free = next(n for n in _others(each.name) if not self._is_taken(whose, n))
                self._offered[whose, free] = msgspec.structs.replace(each, name=free)
        return self._offered

    def _is_taken(self, whose: str, name: str) -> bool:
        offered = self._offered or {}
        is_plugins = name in self._tools or name in self._events
        return is_plugins or (EVERYBODY, name) in offered or (whose, name) in offered

    # -- what connections register --------------------------------------------------------------

    def register(self, source: EventSource) -> None:
        """Make an event a tool of a tenant.

        Raises:
            Conflict: The name is another's.
            Busy: There are too many.
            InvalidData: The name or the schema is not sound.
        """
        assert source.tenant is not None
        key = (source.tenant, check_tool_name(source.name))
        self.prune()
        checker_of(source.name, source.parameters or NO_ARGUMENTS)
        known = self._of_clients.get(key)
        if self._common(source.name, source.tenant) is not None or (
            known is not None and (known.event, known.route) != (source.event, source.route)
        ):
            raise Conflict(f"there is another tool {source.name!r}: choose another name")
        registered = sum(tenant == source.tenant for tenant, _ in self._of_clients)
        if known is None and registered >= self._max_registered:
            raise Busy(f"{registered} tools are registered already (tools.max_registered)")
        self._of_clients[key] = source
        self._changed()

    def route_to_register(self, event: str, whose: str, *, may_any: bool) -> Route:
        """Return who answers an event that is to be a tool.

        Raises:
            NotFound: Nobody does, or somebody else than who may make it one.
        """
        route = self._router.routes.get(check_name(event))
        if route is None or not (may_any or route.plugin == CLIENT + whose):
            hint = did_you_mean(event, self._router.routes) if may_any else ""
            raise NotFound(f"serve {event!r} first (router:serve){hint}")
        return route

    def unregister(self, tenant: str, name: str, whose: str, *, may_any: bool) -> None:
        """Take back a tool that was registered.

        Raises:
            NotFound: There is no such tool of theirs.
        """
        self.prune()
        source = self._of_clients.get((tenant, name))
        is_theirs = source is not None and (
            may_any or (source.route is not None and source.route.plugin == CLIENT + whose)
        )
        if not is_theirs:
            raise NotFound(f"no tool {name!r} is registered")
        self._drop(tenant, name)

    def _drop(self, tenant: str, name: str) -> None:
        del self._of_clients[tenant, name]
        self._changed()
        self._made.pop(f"{tenant} {name}", None)

    def prune(self) -> None:
        """Drop the tools of connections that are gone."""
        routes = self._router.routes
        for key, source in list(self._of_clients.items()):
            if source.route is not None and routes.get(source.event) is not source.route:
                self._drop(*key)

    # -- what is there --------------------------------------------------------------------------

    def find(self, name: str, tenant: str) -> Tool:
        """Return a tool.

        Raises:
            NotFound: There is none of that name.
            Unavailable: Who provides it is not there just now.
        """
        found = self._common(name, tenant) or self._of_tenant(name, tenant)
        if found is None:
            names = [each.name for each in self.all(tenant)]
            raise NotFound(
                f"there is no tool {name!r}{did_you_mean(name, names)}",
                details={"kind": "tool", "nearest": nearest(name, names)},
            )
        self._router.check_ready(found.provider, f"the tool {name}")
        return found

    def all(self, tenant: str) -> Iterator[Tool]:
        """Yield the tools that a tenant may have to do with, by name."""
        self.prune()
        named = {*self._tools, *self._events}
        named |= {name for whose, name in self._all_offered() if whose in (EVERYBODY, tenant)}
        theirs = {name for whose, name in self._of_clients if whose == tenant}
        for name in sorted(named | theirs):
            found = self._common(name, tenant) or self._of_tenant(name, tenant)
            if found is not None and found.provider not in self._router.reasons:
                yield found

    def _common(self, name: str, tenant: str) -> Tool | None:
        """Return a tool of a plugin's, or of a provider's that the tenant has."""
        found = self._tools.get(name)
        if found is None and (source := self._events.get(name)) is not None:
            return self._from_event(name, source)
        if found is None:
            offered = self._all_offered()
            found = offered.get((EVERYBODY, name)) or offered.get((tenant, name))
        return found

    def _of_tenant(self, name: str, tenant: str) -> Tool | None:
        source = self._of_clients.get((tenant, name))
        return None if source is None else self._from_event(f"{tenant} {name}", source)

    def _from_event(self, key: str, source: EventSource) -> Tool | None:
        """Return the tool of an event, if somebody answers that; made anew for another route."""
        route = self._router.routes.get(source.event)
        if route is None or (source.route is not None and route is not source.route):
            return None
        made = self._made.get(key)
        if made is None or made[0] is not route or made[1] is not source:
            made = self._made[key] = (route, source, self._tool(source, route))
        return made[2]

    def _tool(self, source: EventSource, route: Route) -> Tool:
        schema = source.parameters or route.data_schema
        check: Callable[[dict[str, Any]], Any] = route.convert
        if schema is not None:
            check = checker_of(source.name, schema)
        bus, limit = self._bus, self._max_output_bytes

        async def execute(arguments: Any, context: ToolContext) -> Any:
            if route.streams:
                return await gathered(bus.stream(source.event, arguments), limit)
            return await bus.request(source.event, arguments)

        return Tool(
            name=source.name,
            description=source.description or route.doc,
            effects=source.effects,
            provider=route.plugin,
            parameters=schema or _plain(schema_of(route.data_type)),
            check=check,
            execute=execute,
            timeout_s=source.timeout_s,
            tenant=source.tenant,
            event=source.event,
        )


def _others(name: str) -> Iterator[str]:
    """Yield names that stand for one that is taken."""
    for number in count(2):
        end = f"_{number}"
        yield f"{name[: MAX_NAME_CHARS - len(end)]}{end}"


async def gathered(chunks: AsyncGenerator[Any], max_bytes: int) -> list[Any]:
    """Return the chunks of a stream, which is read to its end; what is too much is left out."""
    kept: list[Any] = []
    size = left_out = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            plain = payload_of(chunk)
            size += len(msgspec.json.encode(plain))
            if size <= max_bytes:
                kept.append(plain)
            else:
                left_out += 1
    if left_out:
        kept.append(f"[… {left_out} more chunks (tools.max_output_bytes)]")
    return kept


def _plain(schema: dict[str, Any] | None) -> dict[str, Any]:
    if schema is None:
        return {"type": "object"}
    top = {key: value for key, value in schema.items() if key != "$defs"}
    return flattened(top, dict(schema.get("$defs", {})))

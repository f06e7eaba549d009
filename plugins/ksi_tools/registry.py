"""Which tools there are, and whose."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Final, NamedTuple, Protocol, Self

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
        self.whose = tenant or EVERYBODY

    def update(
        self,
        specs: Iterable[ToolSpec],
        *,
        are_sound: bool = False,
        claims: Iterable[str] = (),
    ) -> None:
        """Have these tools from now on, and no others; all of them, or an error.

        Args:
            specs: The tools.
            are_sound: Whether the schemas have been looked at before; they are then compiled when
                they are first needed.
            claims: Names that nobody else's tools get meanwhile, such as of tools that may come
                back: what was permitted by its name is to stay what it was.

        Raises:
            Conflict: Two have one name.
            InvalidData: A name or a schema is not sound.
        """
        made = [self._tool(spec, are_sound=are_sound) for spec in specs]
        self._tools._provide(self, made, claims)

    def remove(self) -> None:
        """Take the tools back."""
        self._tools._provide(self, [], ())

    def offered(self) -> frozenset[str]:
        """Return the names of those that are offered; the others' are somebody else's."""
        return self._tools._offered_of(self)

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
            tenant=self.whose or None,
        )


class Provided(NamedTuple):
    """The tools of a provider, and the names that are its own, theirs among them."""

    tools: list[Tool]
    names: frozenset[str]


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
        self._plugins_names: set[str] = set()  # also of those that are just started again
        self._provided: dict[ProviderRegistration, Provided] = {}
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
        self._plugins_names.add(source.name)
        self._changed()
        return Registration(self, [source.name])

    def add_provider(
        self, provider: ToolProvider, *, tenant: str | None = None
    ) -> ProviderRegistration:
        """Take on somebody whose tools may change: tell them by the registration's ``update``.

        Where a plugin has or had a tool of the same name, that one keeps it, whenever it comes, and
        so does the provider, or the connection, who came first: the other's is not offered.

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
        self._plugins_names.update(each.name for each in new)

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

    def _provide(
        self, registration: "ProviderRegistration", tools: list[Tool], claims: Iterable[str]
    ) -> None:
        names = frozenset((*claims, *(each.name for each in tools)))
        for index, each in enumerate(tools):
            if any(other.name == each.name for other in tools[:index]):
                raise Conflict(f"there is another tool {each.name!r}")
        self._provided[registration] = Provided(tools, names)
        if not names:
            del self._provided[registration]  # who has some again comes last
        self._changed()

    def _offered_of(self, registration: "ProviderRegistration") -> frozenset[str]:
        offered = self._all_offered()
        provided = self._provided.get(registration)
        return frozenset(
            each.name
            for each in (provided.tools if provided else ())
            if offered.get((registration.whose, each.name)) is each
        )

    def _all_offered(self) -> dict[tuple[str, str], Tool]:
        """Return what providers have and may offer, by whose it is and its name."""
        if self._offered is None:
            owners = self._owners()
            self._offered = {
                (registration.whose, each.name): each
                for registration, provided in self._provided.items()
                for each in provided.tools
                if owners.get((registration.whose, each.name)) is registration
            }
        return self._offered

    def _owners(self) -> dict[tuple[str, str], "ProviderRegistration"]:
        """Return whose each name is that no plugin has: everybody's go before a tenant's."""
        owners: dict[tuple[str, str], ProviderRegistration] = {}
        for each in sorted(self._provided, key=lambda each: each.whose):
            for name in self._provided[each].names - self._plugins_names:
                if (EVERYBODY, name) not in owners:
                    owners.setdefault((each.whose, name), each)
        return owners

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
        if self._is_taken(source.name, source.tenant) or (
            known is not None and (known.event, known.route) != (source.event, source.route)
        ):
            raise Conflict(f"there is another tool {source.name!r}: choose another name")
        registered = sum(tenant == source.tenant for tenant, _ in self._of_clients)
        if known is None and registered >= self._max_registered:
            raise Busy(f"{registered} tools are registered already (tools.max_registered)")
        self._of_clients[key] = source
        self._changed()

    def _is_taken(self, name: str, tenant: str) -> bool:
        if self._plugins(name) is not None:
            return True
        owners = self._owners()
        return (EVERYBODY, name) in owners or (tenant, name) in owners

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
        found = self._found(name, tenant)
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
            found = self._found(name, tenant)
            if found is not None and found.provider not in self._router.reasons:
                yield found

    def _found(self, name: str, tenant: str) -> Tool | None:
        """Return a plugin's tool, a connection's, or a provider's; no name is another's later."""
        return (
            self._plugins(name) or self._of_tenant(name, tenant) or self._provided_as(name, tenant)
        )

    def _plugins(self, name: str) -> Tool | None:
        found = self._tools.get(name)
        if found is None and (source := self._events.get(name)) is not None:
            return self._from_event(name, source)
        return found

    def _provided_as(self, name: str, tenant: str) -> Tool | None:
        offered = self._all_offered()
        return offered.get((EVERYBODY, name)) or offered.get((tenant, name))

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

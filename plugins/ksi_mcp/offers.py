"""The prompts and resources that plugins bring for other programs."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import event_handler
from ksi_daemon.protocol import Conflict, InvalidData, NotFound
from ksi_mcp import events as e
from ksi_mcp.exchange import Exchange, exchanging
from ksi_mcp.templates import pattern_of

MAX_COMPLETIONS: Final = 100

Complete = Callable[[str, str, dict[str, str]], Awaitable[list[str]]]


class Prompt(Struct, frozen=True, kw_only=True):
    """A prompt that other programs may get.

    Attributes:
        told: Its name, description and arguments, as MCP has it in JSON.
        get: Makes it of its arguments: MCP's ``GetPromptResult``, or what `asking` returns.
        complete: Completes an argument: of its name, what was typed, and the other arguments.
    """

    told: dict[str, Any]
    get: Callable[[dict[str, str]], Awaitable[dict[str, Any]]]
    complete: Complete | None = None


class Resource(Struct, frozen=True, kw_only=True):
    """Something that other programs may read.

    Attributes:
        told: Its ``uri``, name and so on, as MCP has it in JSON.
        read: Returns MCP's contents of a URI.
    """

    told: dict[str, Any]
    read: Callable[[str], Awaitable[list[dict[str, Any]]]]


class ResourceTemplate(Struct, frozen=True, kw_only=True):
    """Many things that other programs may read, by a URI with ``{variables}``.

    Attributes:
        told: Its ``uriTemplate``, name and so on, as MCP has it in JSON.
        read: Returns MCP's contents of a URI; given that and the variables.
        complete: Completes a variable.
    """

    told: dict[str, Any]
    read: Callable[[str, dict[str, str]], Awaitable[list[dict[str, Any]]]]
    complete: Complete | None = None


Kind = TypeVar("Kind", Prompt, Resource, ResourceTemplate)


class Shelf(Generic[Kind]):
    """What is offered of one kind, by its name or its URI.

    Args:
        key: Where its name is in what is told of it.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self.known: dict[str, Kind] = {}

    @contextmanager
    def holding(self, things: tuple[Kind, ...]) -> Iterator[None]:
        """Offer these within the ``with``.

        Raises:
            Conflict: A name is another's.
        """
        mine = {str(each.told[self._key]): each for each in things}
        for name in mine:
            if name in self.known:
                raise Conflict(f"{name} is offered already")
        self.known |= mine
        try:
            yield
        finally:
            for name in mine:
                del self.known[name]

    def told(self) -> tuple[dict[str, Any], ...]:
        """Tell of all, in an order that stays."""
        return tuple(self.known[name].told for name in sorted(self.known))


class Offers:
    """What plugins bring for other programs; they find it as a service.

    Args:
        bus: Publishes what changed.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._prompts = Shelf[Prompt]("name")
        self._resources = Shelf[Resource]("uri")
        self._templates = Shelf[ResourceTemplate]("uriTemplate")

    # -- what plugins call ----------------------------------------------------------------------

    @contextmanager
    def add(
        self,
        *,
        prompts: Iterable[Prompt] = (),
        resources: Iterable[Resource] = (),
        templates: Iterable[ResourceTemplate] = (),
    ) -> Iterator[None]:
        """Offer these within the ``with``.

        Raises:
            Conflict: A name or a URI is another's.
        """
        kept = (tuple(prompts), tuple(resources), tuple(templates))
        try:
            with (
                self._prompts.holding(kept[0]),
                self._resources.holding(kept[1]),
                self._templates.holding(kept[2]),
            ):
                self._tell(kept)
                yield
        finally:
            self._tell(kept)

    def updated(self, uri: str) -> None:
        """Tell those who watch a resource that it is another now."""
        self._bus.publish("mcp:updated", e.McpUpdated(uri=uri))

    def _tell(self, changed: tuple[tuple[Any, ...], ...]) -> None:
        prompts, *others = changed
        if prompts:
            self._bus.publish("mcp:changed", e.McpChanged(kind="prompts"))
        if any(others):
            self._bus.publish("mcp:changed", e.McpChanged(kind="resources"))

    # -- what the server asks -------------------------------------------------------------------

    @event_handler("mcp:offers", scope="mcp:read")
    def offers(self) -> e.McpOffered:
        """List the prompts and resources that plugins bring for other programs."""
        return e.McpOffered(
            prompts=self._prompts.told(),
            resources=self._resources.told(),
            templates=self._templates.told(),
        )

    @event_handler("mcp:prompt", scope="mcp:read")
    async def prompt(self, request: e.McpPrompt) -> e.McpPrompted:
        """Return a prompt of a plugin, or what has to be asked first."""
        prompt = self._prompts.known.get(request.name)
        if prompt is None:
            raise NotFound(f"there is no prompt {request.name!r}")
        _check_arguments(prompt, request.arguments)
        exchange = Exchange(request.capabilities, request.answers, request.state)
        with exchanging(exchange):
            made = await prompt.get(request.arguments)
        asks = exchange.asked_in(made)
        if asks is not None:
            return e.McpPrompted(asks=asks.requests, state=asks.state)
        return e.McpPrompted(prompt=made)

    @event_handler("mcp:resource", scope="mcp:read")
    async def resource(self, request: e.McpResource) -> e.McpResourceRead:
        """Return what a resource of a plugin holds."""
        resource = self._resources.known.get(request.uri)
        if resource is not None:
            return e.McpResourceRead(contents=tuple(await resource.read(request.uri)))
        for name, template in self._templates.known.items():
            found = pattern_of(name).fullmatch(request.uri)
            if found is not None:
                contents = await template.read(request.uri, found.groupdict())
                return e.McpResourceRead(contents=tuple(contents))
        raise NotFound(f"there is no resource {request.uri!r}")

    @event_handler("mcp:complete", scope="mcp:read")
    async def complete(self, request: e.McpComplete) -> e.McpCompleted:
        """Complete an argument of a plugin's prompt, or of the URI of its resources."""
        of: Prompt | ResourceTemplate | None = self._templates.known.get(request.name)
        if request.kind == "prompt":
            of = self._prompts.known.get(request.name)
        if of is None:
            raise NotFound(f"there is no {request.kind} {request.name!r}")
        if of.complete is None:
            return e.McpCompleted(values=())
        values = await of.complete(request.argument, request.value, request.arguments)
        return e.McpCompleted(values=tuple(values[:MAX_COMPLETIONS]), total=len(values))


def _check_arguments(prompt: Prompt, given: dict[str, str]) -> None:
    for argument in prompt.told.get("arguments", ()):
        if argument.get("required") and argument["name"] not in given:
            raise InvalidData(f"the prompt {prompt.told['name']} needs {argument['name']!r}")

"""The tools that a caller sees: KSI's own, and each event that may be reached."""

import base64
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import mcp_types as types
from msgspec import Struct

from ksi_mcp.server.reach import Reach
from ksi_system.events import EventDescription
from ksi_tools.events import CLIENT_TOOL, ToolInfo, ToolList, ToolListed
from ksi_tools.schemas import flattened
from ksi_tools.tool import MAX_NAME_CHARS, name_of_event

OWN: Final = "mcp"  # the provider of the tools for programs, which look themselves at who calls
READ: Final = ":read"
LOOK, ACT = "look", "action"
# What each of those sends, and its scope; those without one look at what is sent.
NEEDED: Final = {
    "search": ("memory:query", "memory:read"),
    "remember": ("memory:upsert", "memory:write"),
    LOOK: None,
    ACT: None,
}
MAX_KEPT: Final = 200
FRESH_S: Final = 1.0
KNOWN_S: Final = 30.0
SUFFIX: Final = "_tool"
MAX_DESCRIPTION: Final = 8000
NOT_SHOWN: Final = frozenset({"mcp:call", "mcp:call_quietly"})  # the way here


@dataclass(frozen=True)
class Offered:
    """A tool as a caller sees it, and how it is called.

    Attributes:
        told: What the caller is told.
        tool: The tool of the daemon that does it.
        event: The event, where it is one.
        is_interactive: Whether a person answers.
    """

    told: types.Tool
    tool: str
    event: str | None = None
    is_interactive: bool = False


class Catalogue(Struct, frozen=True):
    """The tools of one caller, by name, in the order of their names."""

    by_name: dict[str, Offered]
    made_at: float


class Catalogues:
    """Knows what each caller sees.

    Args:
        lists_events: Whether each event is a tool of its own.
    """

    def __init__(self, *, lists_events: bool) -> None:
        self._lists_events = lists_events
        self._kept: OrderedDict[str, Catalogue] = OrderedDict()
        self._events: tuple[Mapping[str, EventDescription], dict[str, Offered]] = ({}, {})

    async def fresh(self, reach: Reach) -> Catalogue:
        """Return what a caller sees now."""
        return await self._not_older(reach, FRESH_S)

    async def find(self, reach: Reach, name: str) -> Offered | None:
        """Return a tool that a caller sees, or saw a moment ago."""
        known = await self._not_older(reach, KNOWN_S)
        if name not in known.by_name:
            known = await self.fresh(reach)
        return known.by_name.get(name)

    def schema(self, caller: str, name: str) -> dict[str, Any] | None:
        """Return the schema of a tool that a caller has seen."""
        known = self._kept.get(caller)
        found = known.by_name.get(name) if known is not None else None
        return found.told.input_schema if found is not None else None

    async def _not_older(self, reach: Reach, max_age_s: float) -> Catalogue:
        known = self._kept.get(reach.name)
        if known is None or time.monotonic() - known.made_at > max_age_s:
            known = self._kept[reach.name] = await self._made(reach)
        self._kept.move_to_end(reach.name)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return known

    async def _made(self, reach: Reach) -> Catalogue:
        made_at = time.monotonic()
        listed: ToolListed = await reach.ask(
            "tool:list", ToolList(schemas=True), result_type=ToolListed
        )
        events = await reach.events()
        tools = [
            _of_tool(info, schema)
            for info, schema in zip(listed.tools, listed.schemas, strict=True)
            if _is_shown(reach, events, info)
        ]
        of_events = self._of_events(events)
        shown = [each for each in of_events.values() if reach.may(_scope_of(events, each))]
        return Catalogue(dict(sorted(_named(tools, shown))), made_at)

    def _of_events(self, events: Mapping[str, EventDescription]) -> dict[str, Offered]:
        """Return the events as tools, which all callers share."""
        if not self._lists_events:
            return {}
        if self._events[0] is not events:
            made = {name: _of_event(each) for name, each in events.items() if name not in NOT_SHOWN}
            self._events = (events, made)
        return self._events[1]


def _scope_of(events: Mapping[str, EventDescription], offered: Offered) -> str:
    return events[offered.event or ""].scope or ""


def _is_shown(reach: Reach, events: Mapping[str, EventDescription], info: ToolInfo) -> bool:
    if not info.is_allowed or info.name == CLIENT_TOOL:
        return False
    if info.provider != OWN or info.name not in NEEDED:
        return reach.may("tools:write")
    needed = NEEDED[info.name]
    if needed is None:
        return True
    event, scope = needed
    # Where the events can't be known, nobody knows whether there is a memory.
    return reach.may(scope) and (event in events or not events)


def _named(tools: Iterable[Offered], events: Iterable[Offered]) -> Iterator[tuple[str, Offered]]:
    """Yield all under names of their own: an event's is its own, and a tool of that name gives way.

    A tool that is the event itself is told of once.
    """
    by_event = {each.told.name: each for each in events}
    names = {each.told.name for each in tools}
    for each in tools:
        name, event = each.told.name, by_event.get(each.told.name)
        if event is None:
            yield name, each
        elif event.told.input_schema != each.told.input_schema:
            other = _free(name, names | by_event.keys())
            told = f"{each.told.description}\n\n(The tool {name}; an event has that name here.)"
            renamed = each.told.model_copy(update={"name": other, "description": told})
            yield other, Offered(renamed, each.tool, None, each.is_interactive)
    yield from by_event.items()


def _free(name: str, taken: Iterable[str]) -> str:
    known, number = set(taken), 1
    while True:
        suffix = SUFFIX if number == 1 else f"{SUFFIX}_{number}"
        made = name[: MAX_NAME_CHARS - len(suffix)] + suffix
        if made not in known:
            return made
        number += 1


def _of_tool(info: ToolInfo, schema: dict[str, Any]) -> Offered:
    annotations = types.ToolAnnotations(
        read_only_hint=info.effects == "read_only",
        idempotent_hint=info.effects != "effectful",
        destructive_hint=info.effects == "effectful",
    )
    told = types.Tool(
        name=info.name,
        description=info.description[:MAX_DESCRIPTION],
        input_schema=_plain(schema),
        annotations=annotations,
    )
    return Offered(told, info.name, None, info.is_interactive)


def _of_event(event: EventDescription) -> Offered:
    is_read = (event.scope or "").endswith(READ)
    told = types.Tool(
        name=name_of_event(event.event),
        title=event.event,
        description=event.doc[:MAX_DESCRIPTION],
        input_schema=_plain(event.data_schema),
        annotations=types.ToolAnnotations(
            read_only_hint=is_read, idempotent_hint=is_read, destructive_hint=not is_read
        ),
    )
    return Offered(told, LOOK if is_read else ACT, event.event)


def _plain(schema: dict[str, Any] | None) -> dict[str, Any]:
    """Return a schema with the object itself at its top, as MCP wants it."""
    top = {key: value for key, value in (schema or {}).items() if key != "$defs"}
    made = flattened(top, dict((schema or {}).get("$defs", {})))
    return {**made, "type": "object"}


def page(names: list[str], cursor: str | None, size: int) -> tuple[list[str], str | None]:
    """Return the names on the page that begins after a cursor, and the cursor of the next.

    Raises:
        ValueError: The cursor is none of ours.
    """
    after = "" if cursor is None else _read(cursor)
    left = [name for name in names if name > after]
    shown = left[:size]
    if len(left) <= size:
        return shown, None
    return shown, base64.urlsafe_b64encode(shown[-1].encode()).decode()


def _read(cursor: str) -> str:
    return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()

"""What callers see of the tools: names of their own, pages, and what is kept of it."""

from collections.abc import Mapping
from typing import Any

import mcp_types as types
import pytest
from mcp.server.streamable_http import EventMessage

from ksi_mcp.server.catalogue import MAX_KEPT, Catalogues, page
from ksi_mcp.server.replay import MAX_EVENTS, Replay
from ksi_system.events import EventDescription
from ksi_tools.events import ToolInfo, ToolListed


class Told:
    """A daemon that has an event, and the tools that a test wants."""

    tenant = "default"

    def __init__(self, *tools: tuple[ToolInfo, dict[str, Any]], name: str = "ann") -> None:
        self.name = name
        self.scopes: set[str] = set()
        self.memory: tuple[str, ...] = ()
        self.tools = tools
        self.asked = 0

    def may(self, scope: str) -> bool:
        return scope in self.scopes or not self.scopes

    async def events(self) -> Mapping[str, EventDescription]:
        return {name: described(name) for name in ("bird:list", *self.memory)}

    async def ask(self, event: str, data: Any = None, *, result_type: Any = None) -> ToolListed:
        self.asked += 1
        infos, schemas = zip(*self.tools, strict=True) if self.tools else ((), ())
        return ToolListed(tools=infos, schemas=schemas)

    def follow(self, event: str, data: Any, *, result_type: Any) -> Any:
        raise NotImplementedError

    def shown(self, error: Any) -> str:
        return str(error)


def described(event: str) -> EventDescription:
    """Describe an event that takes a place."""
    place = {"type": "object", "properties": {"place": {"type": "string"}}, "title": "BirdList"}
    schema = {"$ref": "#/$defs/BirdList", "$defs": {"BirdList": place}}
    return EventDescription(
        event=event,
        plugin="birds",
        streams=False,
        public=False,
        scope="birds:read",
        contributors=(),
        doc="List birds.",
        data_schema=schema,
        result_schema=None,
    )


def tool(
    name: str, schema: dict[str, Any] | None = None, provider: str = "other"
) -> tuple[ToolInfo, dict[str, Any]]:
    """Make a tool."""
    info = ToolInfo(name=name, description="Do it.", effects="effectful", provider=provider)
    return info, schema or {"type": "object", "properties": {}}


async def test_a_tool_named_as_an_event_gives_way_and_says_so() -> None:
    reach = Told(tool("bird_list"), tool("bird_list_tool"))

    known = (await Catalogues(lists_events=True).fresh(reach)).by_name

    assert list(known) == ["bird_list", "bird_list_tool", "bird_list_tool_2"]
    assert known["bird_list"].event == "bird:list"
    assert known["bird_list"].told.input_schema == {
        "type": "object",
        "properties": {"place": {"type": "string"}},
    }
    assert known["bird_list_tool"].tool == "bird_list_tool"
    assert known["bird_list_tool_2"].tool == "bird_list"
    assert "The tool bird_list" in str(known["bird_list_tool_2"].told.description)


async def test_an_event_that_was_made_a_tool_is_told_of_once() -> None:
    schema = {"type": "object", "properties": {"place": {"type": "string"}}}

    known = (await Catalogues(lists_events=True).fresh(Told(tool("bird_list", schema)))).by_name

    assert list(known) == ["bird_list"]


async def test_without_a_scope_for_tools_there_are_those_that_look_at_scopes_themselves() -> None:
    own = [tool(name, provider="mcp") for name in ("search", "remember", "look", "of_a_server")]
    reach = Told(*own, tool("look_2"), tool("sing"))
    reach.scopes = {"memory:read"}

    without = (await Catalogues(lists_events=True).fresh(reach)).by_name
    reach.memory = ("memory:query", "memory:upsert")
    known = (await Catalogues(lists_events=True).fresh(reach)).by_name

    assert list(known) == ["look", "search"]
    assert list(without) == ["look"]


async def test_events_are_tools_only_where_that_is_wanted() -> None:
    known = (await Catalogues(lists_events=False).fresh(Told(tool("sing")))).by_name

    assert list(known) == ["sing"]


async def test_what_is_known_of_callers_is_bounded_and_asked_for_once() -> None:
    catalogues, first = Catalogues(lists_events=True), Told(tool("sing"))

    assert await catalogues.find(first, "sing") is not None
    assert await catalogues.find(first, "sing") is not None
    once = first.asked
    for number in range(MAX_KEPT):
        await catalogues.find(Told(name=f"caller {number}"), "bird_list")
    await catalogues.find(first, "sing")

    assert once == 1
    assert first.asked == 2
    assert catalogues.schema("ann", "sing") is not None
    assert catalogues.schema("nobody", "sing") is None


def test_a_list_is_read_page_by_page() -> None:
    names = [f"tool {number:02}" for number in range(25)]

    first, cursor = page(names, None, 10)
    second, further = page(names, cursor, 10)
    third, end = page(names, further, 10)

    assert first + second + third == names
    assert end is None
    for wrong in ("%%%", "abc", "/w=="):
        with pytest.raises(ValueError, match=r"(?i)padd|base64|decode"):
            page(names, wrong, 10)


async def test_a_session_remembers_the_last_that_it_was_told() -> None:
    answered: list[types.RequestId] = []
    replay, sent = Replay(answered.append), []

    async def take(message: EventMessage) -> None:
        sent.append(message.event_id)

    ids = [await replay.store_event(str(at % 2), message(at)) for at in range(MAX_EVENTS + 10)]

    assert await replay.replay_events_after(ids[0], take) is None
    assert await replay.replay_events_after("no number", take) is None
    assert await replay.replay_events_after("9" * 5000, take) is None
    assert await replay.replay_events_after(ids[-6], take) == "0"
    assert sent == [ids[-4], ids[-2]]
    assert answered == []


def message(number: int) -> types.JSONRPCMessage:
    """Make a message."""
    return types.JSONRPCNotification(jsonrpc="2.0", method=f"number/{number}")

"""Lists that are long, names that there are not, and much that changes at once."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import mcp_types as types
import pytest
from mcp.shared.exceptions import MCPError
from msgspec import Raw
from msgspec.structs import replace

from ksi_daemon.protocol import Context, Event
from ksi_mcp import changes
from ksi_mcp.changes import MAX_WAITING, Changes
from ksi_mcp.events import McpChanged, McpOffered, McpUpdated
from ksi_mcp.server import completing, resources
from ksi_mcp.tests.server.test_catalogue import described
from ksi_memory.events import Item, MemoryList, MemoryListed
from ksi_system.events import EventDescription

AT = datetime(2026, 1, 1, tzinfo=UTC)
TURN = {"run_id": "r", "conversation_id": "c", "request_id": "q", "status": "succeeded"}
OF_KEYS = types.ResourceTemplateReference(uri="ksi://memory/{table}/{key}")


class Told:
    """A daemon with a long list of keys, and with resources of a plugin."""

    name, tenant = "ann", "default"

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.asked: list[str] = []

    def may(self, scope: str) -> bool:
        return True

    async def events(self) -> Mapping[str, EventDescription]:
        known = ("memory:list", "memory:get", "mcp:offers", "mcp:resource", "system:health")
        return {name: described(name) for name in known}

    async def ask(self, event: str, data: Any = None, *, result_type: Any = None) -> Any:
        self.asked.append(event)
        if isinstance(data, MemoryList):
            at = int(data.cursor or "0")
            items = [
                Item(id="1", table="files", key=key, version=1, valid_from=AT)
                for key in self.keys[at : at + data.limit]
            ]
            after = at + data.limit
            more = str(after) if after < len(self.keys) else None
            return MemoryListed(items=tuple(items), next=more)
        if event == "mcp:offers":
            return McpOffered(
                prompts=(),
                resources=({"uri": "bird://all"},),
                templates=({"uriTemplate": "bird://{kind}"},),
            )
        return Raw(b"{}")

    def follow(self, event: str, data: Any, *, result_type: Any) -> Any:
        raise NotImplementedError

    def shown(self, error: Any) -> str:
        return str(error)


async def completed(reach: Told, typed: str) -> types.Completion:
    argument = types.CompletionArgument(name="key", value=typed)
    params = types.CompleteRequestParams(ref=OF_KEYS, argument=argument)
    return (await completing.complete(reach, params)).completion


async def test_what_is_typed_is_found_however_far_down_it_is() -> None:
    reach = Told(*(f"heron-{number:04}" for number in range(500)), "owl-1", "owl-2")

    owls = await completed(reach, "owl")
    herons = await completed(reach, "heron")

    assert (owls.values, owls.total, owls.has_more) == (["owl-1", "owl-2"], 2, False)
    assert (len(herons.values), herons.total, herons.has_more) == (100, None, True)
    assert reach.asked == ["memory:list"] * 4  # three pages, and one has enough of the others


async def test_what_is_watched_is_something_that_there_may_be() -> None:
    reach = Told()

    for uri in ("ksi://health", "ksi://files/a%2Fb", "bird://all", "bird://owl"):
        await resources.check(reach, uri)
    for uri in ("ksi://nonsense", "ksi://agents/", "file:///etc/passwd", "", "bird://a/b"):
        with pytest.raises(MCPError, match="there is no resource"):
            await resources.check(reach, uri)


async def test_the_longest_key_can_be_read_and_what_is_longer_is_none() -> None:
    longest = "鷺" * 333  # of 1,000 bytes at most
    reach = Told()

    await resources.read(reach, f"ksi://files/{quote(longest, safe='')}")
    with pytest.raises(MCPError, match="there is no resource"):
        await resources.read(reach, "ksi://files/" + "x" * 4000)

    assert reach.asked == ["memory:get"]


class Heard:
    """Takes what is published."""

    def __init__(self) -> None:
        self.changed: list[McpChanged] = []
        self.updated: list[McpUpdated] = []
        self.is_told = asyncio.Event()

    def publish(self, event: str, data: Any) -> None:
        of_lists = event == "mcp:changed"
        (self.changed if of_lists else self.updated).append(data)
        self.is_told.set()


def happened(**data: Any) -> Event:
    return Event("some:thing", data, replace(Context("1"), tenant="birds"))


async def test_lists_are_told_of_however_much_else_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes, "APART_S", 0.0)
    heard: Any = Heard()
    noted = Changes(heard)
    for number in range(MAX_WAITING + 5):
        noted.agent(happened(name=f"a{number}", phase="Busy", was="Ready"))
    noted.agent(happened(name="a", phase="Terminated", was="Busy"))
    noted.remembered(happened(table="facts", inserted=1, updated=0))
    noted.tools_changed()

    async with asyncio.timeout(10.0), asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(noted.run())
        await heard.is_told.wait()
        telling.cancel()

    assert heard.changed == [
        McpChanged(kind="resources", tenant="birds"),
        McpChanged(kind="tools"),
    ]
    assert len(heard.updated) == MAX_WAITING


@pytest.mark.parametrize(
    ("what", "data", "is_told"),
    [
        ("agent", {"name": "a", "phase": "Pending"}, True),
        ("agent", {"name": "a", "phase": "Ready", "was": "Completed"}, True),
        ("agent", {"name": "a", "phase": "Ready", "was": "Starting"}, False),
        ("turn", {**TURN, "turn": 1}, True),
        ("turn", {**TURN, "turn": 2}, False),
        ("remembered", {"table": "files", "inserted": 1, "updated": 0}, True),
        ("forgot", {"ids": ["1"]}, True),
    ],
)
async def test_what_comes_and_goes_is_another_list(
    what: str, data: dict[str, Any], is_told: bool
) -> None:
    heard: Any = Heard()
    noted = Changes(heard)

    getattr(noted, what)(happened(**data))
    noted._tell()

    assert [each.kind for each in heard.changed] == ["resources"] * is_told

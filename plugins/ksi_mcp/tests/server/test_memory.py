"""Programs remember something, and look it up."""

import asyncio
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_mcp.tests.server.conftest import LEGACY, MODERN, NEEDED, Connect, text_of


@pytest.fixture
def ksi_settings() -> list[str]:
    """Fetch no model."""
    return ["memory.embedder=none"]


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The memory, and what it needs."""
    return list(installed_plugins(*NEEDED, "completion", "memory"))


async def test_what_is_remembered_is_found_by_whose_it_is(
    connect: Connect, client: AsyncClient
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def take(message: Any) -> None:
        if hasattr(message, "method"):
            told.put_nowait(message.method)

    async with connect(LEGACY, user="ann", message_handler=take) as ann, asyncio.timeout(20.0):
        first = await ann.call_tool("remember", {"text": "Herons nest at the weir."})
        again = await ann.call_tool("remember", {"text": "Herons nest at the weir."})
        moved = await ann.call_tool("remember", {"text": "Ann lives in Oslo.", "key": "user:home"})
        found = await ann.call_tool("search", {"query": 'SEARCH "herons" FROM facts'})
        home = await ann.call_tool("search", {"query": "LOOKUP user:home"})
        item = {"table": "files", "items": [{"key": "a.md"}]}
        await client.request("memory:upsert", item)
        while await told.get() != "notifications/resources/list_changed":
            pass
        files = [each.name for each in (await ann.list_resources()).resources]
    async with connect(MODERN, user="bob") as bob:
        nothing = await bob.call_tool("search", {"query": 'SEARCH "herons" FROM facts'})
        wrong = await bob.call_tool("search", {"query": "LOOKUP"})

    assert first.structured_content is not None
    assert first.structured_content["is_new"]
    assert again.structured_content is not None
    assert not again.structured_content["is_new"]
    assert moved.structured_content == {"key": "user:home", "is_new": True, "is_changed": False}
    assert "nest at the weir" in text_of(found)
    assert "Oslo" in text_of(home)
    assert "a.md" in files
    assert "weir" not in text_of(nothing)
    assert wrong.is_error

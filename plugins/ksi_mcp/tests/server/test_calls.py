"""Programs call tools over HTTP, in both protocols."""

import pytest

from ksi_mcp.tests.server.conftest import LEGACY, MODERN, Connect, text_of
from ksi_mcp.tests.server.tools import Toolbox

BOTH = pytest.mark.parametrize("mode", [MODERN, LEGACY])


@BOTH
async def test_a_tool_is_listed_and_called(connect: Connect, toolbox: Toolbox, mode: str) -> None:
    async with connect(mode) as client:
        listed = await client.list_tools()
        result = await client.call_tool("add", {"a": 1, "b": 2})
        shouted = await client.call_tool("shout", {"text": "hello"})

    found = {each.name: each for each in listed.tools}
    assert {"search", "remember", "look", "action", "add", "odd_whose"} <= found.keys()
    assert found["add"].annotations is not None
    assert found["add"].annotations.read_only_hint
    assert result.structured_content == {"sum": 3}
    assert toolbox.calls == ["hello"]
    assert text_of(shouted) == "HELLO"

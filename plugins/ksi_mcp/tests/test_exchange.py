"""What a tool returns that asks, and what plugins offer, without a daemon."""

from typing import Any

import msgspec
import pytest

from ksi_daemon.protocol import Conflict, InvalidData, NotFound, Unavailable
from ksi_mcp import events as e
from ksi_mcp.api import Content, Exchange, Offers, Prompt, ResourceTemplate, asking
from ksi_mcp.exchange import exchanging

ASK = {"method": "elicitation/create", "params": {"message": "Who?"}}


def test_a_tool_asks_whoever_calls_it_and_no_other_call_can_be_made_to_ask_the_same() -> None:
    with exchanging(Exchange({})) as exchange:
        content = msgspec.json.encode(asking("kept", who=ASK)).decode()

    asks = exchange.asked(content)
    assert asks is not None
    assert (asks.requests, asks.state) == ({"who": ASK}, "kept")
    with exchanging(Exchange({})) as other:
        asking(who=ASK)
        assert other.asked(content) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"mcp_asks":1}', '{"mcp_asks":"0"}', "x" * 999]
)
def test_text_that_only_looks_so_asks_nothing(content: str) -> None:
    with exchanging(Exchange({})) as exchange:
        asking(who=ASK)

    assert exchange.asked(content) is None


def test_a_tool_that_no_program_calls_cannot_ask() -> None:
    with pytest.raises(Unavailable, match="by MCP"):
        asking(who=ASK)


def test_a_tool_that_logs_without_end_is_heard_for_a_while() -> None:
    heard: list[Any] = []
    exchange = Exchange({}, log=lambda level, data: heard.append(data))

    for number in range(1000):
        exchange.log("info", number)

    assert heard == list(range(200))


def test_content_is_told_as_the_server_looks_for_it() -> None:
    block = {"type": "text", "text": "x"}

    assert msgspec.json.encode(Content(blocks=[block])).startswith(b'{"mcp_content":[')


class Heard:
    """A bus that remembers what was published."""

    def __init__(self) -> None:
        self.published: list[Any] = []

    def publish(self, event: str, data: Any = None) -> None:
        self.published.append((event, data))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def offers(heard: Heard) -> Offers:
    bus: Any = heard
    return Offers(bus)


async def greet(arguments: dict[str, str]) -> dict[str, Any]:
    return {"messages": [], "description": arguments["name"]}


async def read(uri: str, variables: dict[str, str]) -> list[dict[str, Any]]:
    return [{"uri": uri, "text": variables["of"]}]


GREETING = Prompt(
    told={"name": "greet", "arguments": [{"name": "name", "required": True}]}, get=greet
)
PAGES = ResourceTemplate(told={"uriTemplate": "wiki://{of}.page", "name": "pages"}, read=read)


async def test_prompts_and_resources_are_there_within_the_with_and_both_is_told(
    offers: Offers, heard: Heard
) -> None:
    with offers.add(prompts=[GREETING], templates=[PAGES]):
        made = await offers.prompt(e.McpPrompt(name="greet", arguments={"name": "Ann"}))
        page = await offers.resource(e.McpResource(uri="wiki://heron.page"))
        with pytest.raises(Conflict, match="greet"), offers.add(prompts=[GREETING]):
            pass
        assert [each["name"] for each in offers.offers().prompts] == ["greet"]

    assert made.prompt == {"messages": [], "description": "Ann"}
    assert page.contents[0]["text"] == "heron"
    assert offers.offers() == e.McpOffered(prompts=(), resources=(), templates=())
    kinds = [data.kind for event, data in heard.published if event == "mcp:changed"]
    assert {"prompts", "resources"} <= set(kinds)


async def test_what_is_not_offered_or_lacks_an_argument_is_told(offers: Offers) -> None:
    with offers.add(prompts=[GREETING], templates=[PAGES]):
        with pytest.raises(InvalidData, match="needs 'name'"):
            await offers.prompt(e.McpPrompt(name="greet"))
        for uri in ("wiki://a/b.page", "wiki://heron_page", "wiki://.page"):
            with pytest.raises(NotFound):
                await offers.resource(e.McpResource(uri=uri))
    with pytest.raises(NotFound):
        await offers.prompt(e.McpPrompt(name="greet", arguments={"name": "Ann"}))

"""Programs read resources, get prompts, have arguments completed, and are told what has changed."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import mcp_types as types
import msgspec
import pytest
from mcp.client.client import Client
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from ksi_client import AsyncClient
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_mcp.server import news
from ksi_mcp.tests.server.conftest import LEGACY, MODERN, Connect, text_of

NEEDED = ("postgres", "workflows", "tools", "models", "completion", "agents", "mcp", "http")
MODES: Final = (MODERN, LEGACY)
BOTH = pytest.mark.parametrize("mode", MODES)
MakeKey = Callable[..., Any]


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """What agents need, too."""
    return list(installed_plugins(*NEEDED))


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


def json_of(read: types.ReadResourceResult) -> Any:
    """Return the JSON of a resource."""
    (content,) = read.contents
    assert isinstance(content, types.TextResourceContents)
    return msgspec.json.decode(content.text)


async def test_agents_conversations_and_health_can_be_read(
    connect: Connect, client: AsyncClient, make_key: MakeKey
) -> None:
    await client.request("conversation:create", {"conversation_id": "a/talk", "title": "Herons"})
    few = await make_key("chat:read")
    for mode in MODES:
        async with connect(mode) as program:
            listed = {each.uri: each.name for each in (await program.list_resources()).resources}
            talk = json_of(await program.read_resource("ksi://conversations/a%2Ftalk"))
            critic = json_of(await program.read_resource("ksi://agents/critic"))
            health = json_of(await program.read_resource("ksi://health"))
            event = json_of(await program.read_resource("ksi://events/agent:list"))
            templates = (await program.list_resource_templates()).resource_templates
            for wrong in (
                "ksi://agents/nobody",
                "ksi://nothing",
                "file:///etc/passwd",
                "ksi://agents/",
            ):
                with pytest.raises(MCPError, match="no resource") as refused:
                    await program.read_resource(wrong)
                assert refused.value.data == {"uri": wrong}
        async with connect(mode, few) as program:
            of_few = {each.uri for each in (await program.list_resources()).resources}
            with pytest.raises(MCPError, match="no resource"):
                await program.read_resource("ksi://agents/critic")

        assert listed["ksi://conversations/a%2Ftalk"] == "Herons"
        assert talk["messages"] == []
        assert critic["info"]["name"] == "critic"
        assert health["state"] == "ready"
        assert event["events"][0]["event"] == "agent:list"
        assert "ksi://agents/{name}" in {each.uri_template for each in templates}
        assert of_few == {"ksi://conversations", "ksi://conversations/a%2Ftalk"}


@BOTH
async def test_agents_are_prompts_and_what_is_typed_is_completed(
    connect: Connect, mode: str
) -> None:
    async def completed(ref: Any, name: str, typed: str) -> list[str]:
        result = await program.complete(ref, {"name": name, "value": typed})
        return list(result.completion.values)

    prompt = types.PromptReference(name="ask_agent")
    of_events = types.ResourceTemplateReference(uri="ksi://events/{event}")
    of_tables = types.ResourceTemplateReference(uri="ksi://memory/{table}/{key}")
    async with connect(mode) as program:
        listed = {each.name: each for each in (await program.list_prompts()).prompts}
        got = await program.get_prompt("critic", {"prompt": "Read this."})
        with pytest.raises(MCPError, match="needs the argument 'prompt'"):
            await program.get_prompt("critic", {})
        for name in ("nobody", "", "x" * 300):
            with pytest.raises(MCPError, match=f"no prompt '{name[:200]}' here"):
                await program.get_prompt(name, {"prompt": "x"})
        agents = await completed(prompt, "agent", "cr")
        events = await completed(of_events, "event", "conversation:e")
        tables = await completed(of_tables, "table", "mom")
        nothing = await completed(types.PromptReference(name="critic"), "prompt", "x")
        nothing += await completed(types.PromptReference(name=""), "", "x")

    arguments = listed["critic"].arguments
    assert arguments is not None
    assert [each.name for each in arguments] == ["prompt"]
    (message,) = got.messages
    assert isinstance(message.content, types.TextContent)
    assert "agent critic" in message.content.text
    assert "Read this." in message.content.text
    assert agents == ["critic"]
    assert events == ["conversation:export"]
    assert tables == ["moments"]
    assert nothing == []


async def test_an_agent_is_asked(connect: Connect) -> None:
    async with connect() as program:
        result = await program.call_tool("ask_agent", {"agent": "general", "prompt": "Herons?"})

    assert not result.is_error
    assert "Herons?" in text_of(result)  # the model of the tests repeats what it was told


async def test_a_session_is_told_what_has_changed(
    connect: Connect, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "MAX_WATCHED", 1)
    told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def take(message: Any) -> None:
        if hasattr(message, "method"):
            told.put_nowait((message.method, message.params))

    async with connect(LEGACY, message_handler=take) as program, asyncio.timeout(20.0):
        await _watch(program, "ksi://agents/heron")
        for uri, why in (("ksi://nothing", "no resource"), ("ksi://health", "1 resources")):
            with pytest.raises(MCPError, match=why):
                await _watch(program, uri)
        await _register(client)
        while (await told.get())[0] != "notifications/tools/list_changed":
            pass
        names = {each.name for each in (await program.list_tools()).tools}
        await client.request("agent:spawn", {"name": "heron", "definition": "general"})
        while (method := await told.get())[0] != "notifications/resources/updated":
            pass
        await client.request("conversation:create", {"conversation_id": "talk"})
        while (await told.get())[0] != "notifications/resources/list_changed":
            pass

    assert "own_echo" in names
    assert method[1].uri == "ksi://agents/heron"


async def test_who_knows_no_sessions_listens(connect: Connect, client: AsyncClient) -> None:
    async with (
        connect() as program,
        asyncio.timeout(20.0),
        program.listen(tools_list_changed=True) as heard,
    ):
        await _register(client)
        event = await anext(aiter(heard))

    assert type(event).__name__ == "ToolsListChanged"


async def _watch(program: Client, uri: str) -> None:
    with pytest.warns(MCPDeprecationWarning):  # it is of the older protocol
        await program.session.subscribe_resource(uri)


async def _register(client: AsyncClient) -> None:
    async def echo(data: Any, context: Any) -> Any:
        return data

    await client.serve("own:echo", echo)
    tool = {"name": "own_echo", "event": "own:echo", "description": "Echo.", "effects": "read_only"}
    await client.request("tool:register", {**tool, "parameters": {"type": "object"}})

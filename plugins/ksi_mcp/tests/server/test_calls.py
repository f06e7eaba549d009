"""Programs call tools over HTTP, in both protocols."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import mcp_types as types
import pytest
from mcp.client.session import ClientRequestContext
from mcp.shared.exceptions import MCPError

from ksi_client import AsyncClient
from ksi_mcp.tests.server.conftest import LEGACY, MODERN, Connect, text_of
from ksi_mcp.tests.server.tools import Toolbox

MODES: Final = (MODERN, LEGACY)
BOTH = pytest.mark.parametrize("mode", MODES)
MakeKey = Callable[..., Any]


async def test_a_tool_is_listed_and_called(connect: Connect, toolbox: Toolbox) -> None:
    for mode in MODES:
        async with connect(mode) as client:
            listed = await client.list_tools()
            result = await client.call_tool("add", {"a": 1, "b": 2})
            shouted = await client.call_tool("shout", {"text": "hello"})

        found = {each.name: each for each in listed.tools}
        assert {"look", "action", "add", "odd_whose"} <= found.keys()
        assert not {"search", "remember"} & found.keys()  # no memory is loaded
        assert not {"odd_hidden", "client_tool"} & found.keys()
        assert found["add"].annotations is not None
        assert found["add"].annotations.read_only_hint
        assert result.structured_content == {"sum": 3}
        assert toolbox.calls.pop() == "hello"
        assert text_of(shouted) == "HELLO"


@BOTH
async def test_a_picture_is_one_for_programs_and_words_for_models(
    connect: Connect, client: AsyncClient, mode: str
) -> None:
    async with connect(mode) as program:
        result = await program.call_tool("picture", {})
    called = await client.request("tool:call", {"name": "picture", "call_id": "c1"})

    assert text_of(result) == "Look:"
    image = result.content[1]
    assert isinstance(image, types.ImageContent)
    assert image.data == "AAAA" * 40_000
    assert called["content"].splitlines() == [
        "Look:",
        "[image: image/png, 120000 bytes]",
        "[All of it: tool:output with output_ref 'c1']",
    ]


async def test_every_call_is_in_the_ledger_in_the_name_of_its_own_caller(
    connect: Connect, client: AsyncClient, make_key: MakeKey
) -> None:
    key = await make_key("*", user="ann", may_act_for_others=True)

    async with connect(LEGACY, key) as ann, connect(LEGACY, key, user="bob") as bob:
        of_ann = await ann.call_tool("odd_whose", {"a": 1})
        of_bob = await bob.call_tool("look", {"event": "odd:whose"})
    calls = await client.request("tool:calls")

    assert of_ann.structured_content is not None
    assert of_ann.structured_content["user"] == "ann"
    assert of_ann.structured_content["sent"] == {"a": 1}
    assert of_bob.structured_content is not None
    assert of_bob.structured_content["user"] == "bob"
    assert [each["name"] for each in calls["calls"]] == ["look", "look"]


async def test_one_session_bears_two_identities(
    connect: Connect, http: Any, make_key: MakeKey
) -> None:
    key = await make_key("*", user="ann", may_act_for_others=True)
    head = {"Accept": "application/json, text/event-stream"}
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    auth = http.authorization(key)
    async with http.session.post(f"{http.url}/mcp", json=hello, headers=auth | head) as begun:
        session = {"Mcp-Session-Id": begun.headers["Mcp-Session-Id"]}
        await begun.read()

    async def call(number: int, **more: str) -> str:
        asked = {
            "jsonrpc": "2.0",
            "id": number,
            "method": "tools/call",
            "params": {"name": "odd_whose", "arguments": {}},
        }
        headers = auth | head | session | {"MCP-Protocol-Version": "2025-11-25"} | more
        async with http.session.post(f"{http.url}/mcp", json=asked, headers=headers) as answer:
            text: str = await answer.text()
            return text

    other = await make_key("*")
    of_ann, of_bob = await call(2), await call(3, **{"x-user-id": "bob"})
    of_other = await call(4, Authorization=f"Bearer {other}")

    assert '\\"user\\":\\"ann\\"' in of_ann
    assert '\\"user\\":\\"bob\\"' in of_bob
    assert "Session not found" in of_other


async def test_a_key_sees_and_calls_what_its_scopes_say(
    connect: Connect, toolbox: Toolbox, make_key: MakeKey
) -> None:
    for mode in MODES:
        reader = await make_key("odd:read")
        caller = await make_key("tools:write")

        async with connect(mode, reader) as client:
            names = {each.name for each in (await client.list_tools()).tools}
            looked = await client.call_tool("look", {"event": "odd:whose"})
            denied = await client.call_tool("action", {"event": "odd:do"})
            hidden = await client.call_tool("look", {"event": "odd:hidden"})
            with pytest.raises(MCPError, match="no tool 'shout'"):
                await client.call_tool("shout", {"text": "no"})
        async with connect(mode, caller) as client:
            may = {each.name for each in (await client.list_tools()).tools}

        assert names == {"look", "action", "odd_whose"}
        assert looked.structured_content is not None
        assert denied.is_error
        assert "odd:write" in text_of(denied)
        assert hidden.is_error
        assert "not_found" in text_of(hidden)
        assert {"add", "tool_answer"} <= may
        assert "shout" not in may  # it is not read-only: tools:call:shout
        assert toolbox.calls == []


async def test_what_is_wrong_with_a_call_is_told_to_the_model(connect: Connect) -> None:
    for mode in MODES:
        async with connect(mode) as client:
            wrong = await client.call_tool("add", {"a": "one"})
            failed = await client.call_tool("fail", {})
            event = await client.call_tool("tool_answer", {"call_id": 3})

        assert wrong.is_error
        assert "invalid_data" in text_of(wrong)
        assert failed.is_error
        assert text_of(failed) == "busy: there is too much to do"
        assert failed.meta is not None
        assert failed.meta["ksi/code"] == "busy"
        assert event.is_error
        assert "call_id" in text_of(event)


@BOTH
async def test_progress_and_the_log_of_the_call_are_told(connect: Connect, mode: str) -> None:
    seen: list[Any] = []
    lines: list[Any] = []

    async def progress(
        progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        seen.append((progress, total, message))

    async def logged(line: types.LoggingMessageNotificationParams) -> None:
        lines.append((line.level, line.data))

    async with connect(mode, logging_callback=logged, log_level="warning") as client:
        result = await client.call_tool("steps", {}, progress_callback=progress)

    assert text_of(result) == "there"
    assert seen[0] == (1, 3, "step 1")
    assert ("warning", "the last step was a bad one") in lines


async def test_a_call_that_is_given_up_is_ended(connect: Connect, toolbox: Toolbox) -> None:
    for mode in MODES:
        async with connect(mode) as client, asyncio.timeout(10.0):
            toolbox.begun.clear()
            toolbox.ended.clear()
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(client.call_tool("wait", {}))
                await toolbox.begun.wait()
                waiting.cancel()
            await toolbox.ended.wait()

        assert toolbox.ended.is_set()


async def test_a_long_output_is_a_resource(connect: Connect) -> None:
    for mode in MODES:
        async with connect(mode) as client:
            result = await client.call_tool("much", {})
            link = result.content[-1]
            assert isinstance(link, types.ResourceLink)
            read = await client.read_resource(link.uri)

        assert "more: tool:output" in text_of(result)
        assert isinstance(read.contents[0], types.TextResourceContents)
        assert read.contents[0].text == "much " * 20_000


@BOTH
async def test_a_question_is_put_to_the_person(connect: Connect, mode: str) -> None:
    asked: list[str] = []

    async def answer(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"answer": "blue"})

    async with connect(mode, elicitation_callback=answer) as client:
        result = await client.call_tool("ask_user", {"question": "Which colour?"})

    assert asked == ["Which colour?"]
    assert text_of(result) == "blue"


@BOTH
async def test_a_tool_may_ask_again_before_it_goes_on(connect: Connect, mode: str) -> None:
    answers = iter(("maybe", "yes"))

    async def answer(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"answer": next(answers)})

    async with connect(mode, elicitation_callback=answer) as client:
        result = await client.call_tool("sure", {})

    assert text_of(result) == "done"


@BOTH
async def test_a_question_that_is_declined_is_dropped(connect: Connect, mode: str) -> None:
    async def decline(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        return types.ElicitResult(action="decline")

    async with connect(mode, elicitation_callback=decline) as client:
        result = await client.call_tool("ask_user", {"question": "Which colour?"})

    assert result.is_error
    assert "dropped" in text_of(result)


async def test_where_nobody_can_be_asked_the_call_waits(
    connect: Connect, client: AsyncClient
) -> None:
    for mode in MODES:
        async with connect(mode) as program:
            result = await program.call_tool("ask_user", {"question": "Which colour?"})
        call = (await client.request("tool:calls"))["calls"][0]

        assert result.is_error
        assert result.meta is not None
        assert result.meta["ksi/call_id"] == call["call_id"]
        assert call["status"] == "waiting"

"""A front end has runs: text, tools of both sides, questions, other agents, cut streams."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script, calling
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import TimedOut
from ksi_daemon.testing import module_plugin
from ksi_http.testing import HttpServer
from ksi_http.tests.agui.protocol import check_event
from ksi_models.events import FilePart, ModelCall, TextPart
from ksi_tools.api import Tools, tool

PICK = {
    "name": "pick_colour",
    "description": "Have the person pick a colour.",
    "parameters": {"type": "object", "properties": {}},
}


def user(text: str, name: str = "u1") -> dict[str, Any]:
    """Return a message of the user's."""
    return {"id": name, "role": "user", "content": text}


def given(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return what a front end sends."""
    return {
        "threadId": "t1",
        "runId": "r1",
        "state": {},
        "messages": list(messages),
        "tools": [],
        "context": [],
        "forwardedProps": {},
        **more,
    }


@asynccontextmanager
async def posted(
    http: HttpServer, data: Any, path: str = "/agui", **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    headers = {"Content-Type": "application/json", **http.authorization(), **headers}
    url = http.url + path
    async with http.session.post(url, data=json.dumps(data), headers=headers) as response:
        yield response


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the events of an answer with their ids, each held to the protocol."""
    assert response.status == 200, await response.text()
    event_id = ""
    async for line in response.content:
        if line.startswith(b"id: "):
            event_id = line[4:].decode().strip()
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            check_event(event)
            yield event_id, event


async def have(http: HttpServer, data: Any, path: str = "/agui", **headers: str) -> list[Any]:
    """Have a run; return its events."""
    async with posted(http, data, path, **headers) as response:
        return [event async for _, event in events_of(response)]


def kinds(events: list[Any]) -> list[str]:
    """Return the types of events, each once where it comes several times on end."""
    found: list[str] = []
    for event in events:
        if event["type"] != "CUSTOM" and found[-1:] != [event["type"]]:
            found.append(event["type"])
    return found


def text_of(events: list[Any], owner: str | None = None) -> str:
    return "".join(
        event["delta"]
        for event in events
        if event["type"] == "TEXT_MESSAGE_CONTENT" and event.get("subagentRunId") == owner
    )


def of(events: list[Any], kind: str) -> Any:
    (found,) = [event for event in events if event["type"] == kind]
    return found


async def test_a_run_is_a_turn_in_the_conversation_of_its_thread(
    http: HttpServer, script: Script, client: AsyncClient
) -> None:
    script.say("Good day.")

    events = await have(http, given(user("hello")))

    assert kinds(events) == [
        "RUN_STARTED",
        "STEP_STARTED",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "STEP_FINISHED",
        "RUN_FINISHED",
    ]
    assert text_of(events) == "Good day."
    assert events[0]["threadId"] == "t1"
    assert events[-1]["runId"] == "r1"
    assert events[-1]["outcome"] == {"type": "success"}
    assert events[-1]["usage"][0]["inputTokens"] == 10
    turns = (await client.request("completion:list", {"conversation_id": "t1"}))["turns"]
    assert [turn["agent"] for turn in turns] == ["general"]


async def test_a_conversation_may_be_called_by_any_text(http: HttpServer, script: Script) -> None:
    path = "/chat/the%20boiler%2F7"
    events = await have(http, given(user("one")), path)
    await have(http, given(user("two", "u2")), path)
    await have(http, given(user("three", "u3"), threadId="the boiler/7"))

    assert events[0]["threadId"] == events[-1]["threadId"] == "the boiler/7"
    assert len(script.calls[-1].messages) == 5


async def test_a_history_that_is_sent_again_is_not_said_again(
    http: HttpServer, script: Script
) -> None:
    script.say("First.", "Second.")
    first = given(user("one"))
    await have(http, first)
    again = await have(http, first)
    answer = {"id": "a1", "role": "assistant", "content": "First."}
    await have(http, given(user("one"), answer, user("two", "u2")))

    assert text_of(again) == "First."
    said = [message.role for message in script.calls[-1].messages]
    assert said == ["user", "assistant", "user"]
    assert len(script.calls) == 2


async def test_a_conversation_that_began_elsewhere_is_taken_on_with_its_history(
    http: HttpServer, script: Script
) -> None:
    answer = {"id": "a1", "role": "assistant", "content": "Once."}
    await have(http, given(user("one"), answer, user("two", "u2")))

    (call,) = script.calls
    assert [message.role for message in call.messages] == ["user", "assistant", "user"]


async def test_a_conversation_has_the_name_and_the_kind_that_its_first_run_gives(
    http: HttpServer, script: Script
) -> None:
    names = {"x-session-name": "The boiler", "x-session-type": "eval"}
    answer = {"id": "a1", "role": "assistant", "content": "Once."}
    await have(http, given(user("one"), answer, user("two", "u2")), **names)
    later = {"x-session-name": "Another", "x-session-type": "chat"}
    await have(http, given(user("three", "u3")), **later)
    await have(http, given(user("hello"), threadId="t2"))

    _, evals = await http.get("/conversations?kind=eval")
    _, chats = await http.get("/conversations?kind=chat")

    (found,) = evals["conversations"]
    assert (found["conversation_id"], found["title"], found["kind"]) == ("t1", "The boiler", "eval")
    assert chats["conversations"] == []
    assert roles_of(script.calls[0]) == ["user", "assistant", "user"]


async def test_the_model_is_told_of_the_user_by_who_may_act_for_others(
    http: HttpServer, script: Script, make_key: Callable[..., Any]
) -> None:
    told = {"x-user-id": "anna", "x-user-name": "Anna", "x-user-email": "anna@example.org"}
    hers = {"Authorization": f"Bearer {await make_key('chat:write', user='anna')}"}
    await have(http, given(user("hello")), **told)
    await have(http, given(user("and I?", "u2")), **hers)
    async with posted(http, given(user("x", "u3")), **hers, **told) as response:
        refused = await response.json()

    assert '{"name":"Anna","email":"anna@example.org"}' in (script.calls[0].system or "")
    assert "Anna" not in (script.calls[1].system or "")
    assert response.status == 403
    assert "x-user-name" in refused["error"]["message"]


async def test_a_tool_of_the_front_end_s_is_called_and_answered_with_the_next_run(
    http: HttpServer, script: Script
) -> None:
    script.say(calling(("pick_colour", "{}"), ("pick_colour", "{}"), text="Pick."), "Blue it is.")
    first = await have(http, given(user("paint"), tools=[PICK]))
    calls = [event["toolCallId"] for event in first if event["type"] == "TOOL_CALL_START"]
    results = [
        {"id": f"m{n}", "role": "tool", "toolCallId": call, "content": colour}
        for n, (call, colour) in enumerate(zip(calls, ("blue", "red"), strict=True))
    ]

    second = await have(http, given(user("paint"), *results, tools=[PICK], runId="r2"))

    assert first[-1]["outcome"] == {"type": "success", "pendingToolCallIds": calls}
    assert kinds(second)[-1] == "RUN_FINISHED"
    assert "TOOL_CALL_RESULT" not in kinds(second)  # it has these itself
    assert text_of(second) == "Blue it is."
    assert second[-1]["runId"] == "r2"
    assert len(script.calls) == 2


async def test_a_question_interrupts_the_run_and_its_answer_goes_on_with_it(
    http: HttpServer, script: Script
) -> None:
    script.say(calling(("ask_user", '{"question": "Which?"}')), "The red one.")
    first = await have(http, given(user("choose")))
    (interrupt,) = first[-1]["outcome"]["interrupts"]
    resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": "red"}]

    second = await have(http, given(user("choose"), resume=resume, runId="r2"))

    assert interrupt["reason"] == "question"
    assert interrupt["message"] == "Which?"
    assert of(second, "TOOL_CALL_RESULT")["content"] == "red"
    assert text_of(second) == "The red one."
    assert second[-1]["outcome"] == {"type": "success"}


def called(events: list[Any], text: str = "") -> dict[str, Any]:
    """Return the agent's message with the calls of a run, as a front end keeps it."""
    calls = [
        {"id": e["toolCallId"], "type": "function", "function": {"name": e["toolCallName"]}}
        for e in events
        if e["type"] == "TOOL_CALL_START"
    ]
    for call in calls:
        call["function"]["arguments"] = "{}"
    return {"id": "a1", "role": "assistant", "content": text, "toolCalls": calls}


def roles_of(call: ModelCall) -> list[str]:
    return [message.role for message in call.messages]


async def test_what_is_said_instead_of_using_a_tool_of_the_front_end_s_is_heard(
    http: HttpServer, script: Script
) -> None:
    script.say(calling(("pick_colour", "{}"), ("pick_colour", "{}")), "Never mind, then.")
    first = await have(http, given(user("paint"), tools=[PICK]))
    history = (user("paint"), called(first), user("Forget it.", "u2"))

    second = await have(http, given(*history, tools=[PICK], runId="r2"))
    again = await have(http, given(*history, tools=[PICK], runId="r2"))

    assert text_of(second) == text_of(again) == "Never mind, then."
    told = [e["content"] for e in second if e["type"] == "TOOL_CALL_RESULT"]
    assert told == ["The person did not answer."] * 2
    assert roles_of(script.calls[-1]) == ["user", "assistant", "tool", "tool", "user"]
    assert len(script.calls) == 2


async def test_what_is_said_after_a_question_is_its_answer(
    http: HttpServer, script: Script
) -> None:
    script.say(calling(("ask_user", '{"question": "Which?"}')), "The red one.")
    first = await have(http, given(user("choose")))
    history = (user("choose"), called(first), user("red", "u2"))

    second = await have(http, given(*history, runId="r2"))
    again = await have(http, given(*history, runId="r2"))

    assert of(second, "TOOL_CALL_RESULT")["content"] == "red"
    assert text_of(second) == text_of(again) == "The red one."
    assert len(script.calls) == 2


async def test_what_is_said_when_the_turn_that_asked_was_ended_is_a_turn_of_its_own(
    http: HttpServer, script: Script, client: AsyncClient
) -> None:
    script.say(calling(("ask_user", '{"question": "Which?"}')), "Good day.")
    first = await have(http, given(user("choose")))
    run = first[0]["metadata"]["ksi"]["run_id"]
    await client.request("completion:cancel", {"run_id": run})

    second = await have(http, given(user("choose"), called(first), user("hello", "u2")))

    assert text_of(second) == "Good day."


@pytest.mark.parametrize("agent", ["general", "router"])
async def test_a_turn_behind_one_that_waits_for_a_person_hangs_nobody(
    http: HttpServer, script: Script, agent: str
) -> None:
    question = calling(("ask_user", '{"question": "Which?"}'))
    asked = calling(("ask_agent", json.dumps({"agent": "general", "prompt": "Choose."})))
    chosen = ["Red.", "It is red."] if agent == "router" else ["It is red."]
    script.say(*([asked, question] if agent == "router" else [question]), *chosen, "Good day.")
    headers = {"x-agent-schema-name": agent}
    first = await have(http, given(user("choose")), **headers)
    (interrupt,) = first[-1]["outcome"]["interrupts"]

    behind = await have(http, given(user("hello", "u2")), **headers)
    resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": "red"}]
    await have(http, given(user("choose"), called(first), resume=resume), **headers)
    again = await have(http, given(user("hello", "u2")), **headers)

    assert (behind[-1]["type"], behind[-1]["code"]) == ("RUN_ERROR", "conflict")
    assert "resume it, or cancel it" in behind[-1]["message"]
    assert text_of(again) == "Good day."


async def test_an_agent_that_was_asked_asks_and_a_key_that_may_write_alone_answers(
    http: HttpServer, script: Script, make_key: Callable[..., Any]
) -> None:
    asked = json.dumps({"agent": "general", "prompt": "Choose."})
    question = calling(("ask_user", '{"question": "Which?"}'), text="Well, ")
    script.say(calling(("ask_agent", asked), text="Let us see."), question, "red.", "It is red.")
    headers = {
        "Authorization": f"Bearer {await make_key('chat:write')}",
        "x-agent-schema-name": "router",
    }

    first = await have(http, given(user("choose")), **headers)
    (interrupt,) = first[-1]["outcome"]["interrupts"]
    resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": "red"}]
    second = await have(http, given(user("choose"), called(first), resume=resume), **headers)

    child = interrupt["subagentRunId"]
    assert text_of(first, child) == "Well, "
    assert text_of(second, child) == "red."
    assert of(second, "SUBAGENT_FINISHED")["outcome"] == {"type": "success"}
    assert text_of(second) == "It is red."


async def test_a_run_is_begun_and_read_with_one_request_to_the_daemon(
    http: HttpServer, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    await have(http, given(user("hello")))
    taken, times = http.app.connections.taken, 0

    def counted() -> Any:
        nonlocal times
        times += 1
        return taken()

    monkeypatch.setattr(http.app.connections, "taken", counted)
    await have(http, given(user("and now?", "u2")))

    assert times == 1


async def test_a_stream_of_a_run_that_is_not_there_can_t_be_taken_up(http: HttpServer) -> None:
    mark = {"Last-Event-ID": "1.0.1.~nothing"}
    async with posted(http, given(user("hello")), **mark) as response:
        answer = await response.json()

    assert response.status == 404
    assert answer["error"]["code"] == "not_found"


async def test_an_image_goes_to_the_model(http: HttpServer, script: Script) -> None:
    source = {"type": "data", "value": "iVBORw0KGgo=", "mimeType": "image/png"}
    content = [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]

    await have(http, given({"id": "u1", "role": "user", "content": content}))

    shown = script.calls[-1].messages[-1].parts
    assert shown == (TextPart("What is it?"), FilePart("image/png", b"\x89PNG\r\n\x1a\n"))


async def test_an_agent_changes_the_state_that_it_shares_with_the_front_end(
    http: HttpServer, script: Script
) -> None:
    changes = {"changes": {"colour": "red", "size": None, "of/a": {"b": [1]}}}
    calls = (("update_state", json.dumps(changes)), ("update_state", '{"changes": 7}'))
    script.say(calling(*calls), "It is red now.")
    state = {"colour": "blue", "size": 3}

    events = await have(http, given(user("make it red"), state=state))

    assert of(events, "STATE_SNAPSHOT")["snapshot"] == state
    assert sorted(of(events, "STATE_DELTA")["delta"], key=lambda each: each["path"]) == [
        {"op": "replace", "path": "/colour", "value": "red"},
        {"op": "add", "path": "/of~1a", "value": {"b": [1]}},
        {"op": "remove", "path": "/size"},
    ]
    told = [event["content"] for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert told[0] == "changed"
    assert told[1].startswith("changes: it has to be an object")
    assert '"colour":"blue"' in (script.calls[0].system or "")
    assert text_of(events) == "It is red now."


async def test_what_nothing_waits_for_any_more_is_a_conflict(
    http: HttpServer, script: Script
) -> None:
    await have(http, given(user("hello")))
    resume = [{"interruptId": "x:1:0", "status": "resolved", "payload": "red"}]

    status, answer = await http.post("/agui", given(user("hello"), resume=resume))

    assert status == 409
    assert answer["error"]["code"] == "conflict"


async def test_an_agent_that_is_asked_is_shown_within_the_run(
    http: HttpServer, script: Script
) -> None:
    asked = json.dumps({"agent": "define", "prompt": "What is a heron?"})
    script.say(calling(("ask_agent", asked)), "A bird.", "It is a bird.")

    events = await have(http, given(user("Herons?")), **{"x-agent-schema-name": "router"})

    started, ended = of(events, "SUBAGENT_STARTED"), of(events, "SUBAGENT_FINISHED")
    child = started["subagentRunId"]
    assert started["name"] == "define"
    assert started["parentToolCallId"] == of(events, "TOOL_CALL_START")["toolCallId"]
    assert text_of(events, child) == "A bird."
    assert text_of(events) == "It is a bird."
    assert ended["result"] == "A bird."
    order = [event["type"] for event in events]
    assert order.index("SUBAGENT_FINISHED") < order.index("TOOL_CALL_RESULT")


async def test_a_stream_that_is_cut_anywhere_goes_on_from_its_last_event(
    http: HttpServer, script: Script
) -> None:
    asked = json.dumps({"agent": "define", "prompt": "What is a heron?"})
    script.say(calling(("ask_agent", asked), text="Let me ask."), "A bird.", "It is a bird.")
    data, headers = given(user("Herons?")), {"x-agent-schema-name": "router"}
    async with posted(http, data, **headers) as response:
        whole = [each async for each in events_of(response)]

    for at, (event_id, _) in enumerate(whole[:-1]):
        if not event_id:
            continue
        rest = await have(http, data, **{"Last-Event-ID": event_id})
        seen = [event for _, event in whole[: at + 1]] + rest
        assert text_of(seen) == "Let me ask.It is a bird.", (at, event_id, rest)
        assert seen[-1]["type"] == "RUN_FINISHED"
        counts = {kind: sum(e["type"] == kind for e in seen) for kind in ONCE}
        assert counts == ONCE, (at, event_id, rest)


ONCE = {
    "RUN_STARTED": 1,
    "SUBAGENT_STARTED": 1,
    "SUBAGENT_FINISHED": 1,
    "TOOL_CALL_START": 1,
    "TOOL_CALL_RESULT": 1,
    "RUN_FINISHED": 1,
}


async def test_who_goes_away_does_not_end_the_run(
    http: HttpServer, script: Script, client: AsyncClient
) -> None:
    script.say("Good day.")
    script.gate = asyncio.Event()
    async with posted(http, given(user("hello"))) as response:
        async for _, event in events_of(response):
            if event["type"] == "TEXT_MESSAGE_CONTENT":
                break
    script.gate.set()

    (turn,) = (await client.request("completion:list", {"conversation_id": "t1"}))["turns"]
    result = await client.request("completion:wait", {"run_id": turn["run_id"], "timeout_s": 20})

    assert result["text"] == "Good day."


async def test_a_run_that_fails_says_so_with_a_code(http: HttpServer, script: Script) -> None:
    script.say(*[ValueError("secret inside")] * 9)

    events = await have(http, given(user("hello")))

    assert events[-1]["type"] == "RUN_ERROR"
    assert events[-1]["code"] == "failed"
    assert "secret" not in events[-1]["message"]


NO_RUNS: list[tuple[Any, dict[str, str], int, str]] = [
    (given(), {}, 400, "nothing new"),
    (given({"id": "a", "role": "assistant", "content": "hi"}), {}, 400, "nothing new"),
    (given(user("")), {}, 400, "says nothing"),
    (given(user("hello")), {"x-agent-schema-name": "reseacher"}, 404, "researcher"),
    (given(user("hello")), {"x-session-type": "party"}, 400, "x-session-type"),
    (given(user("hello")), {"x-user-email": "anna"}, 400, "x-user-email"),
    (given(user("hello")), {"x-user-name": "a" * 201}, 400, "x-user-name"),
    (given(user("hello")), {"Last-Event-ID": "7"}, 400, "begin without it"),
    (given(user("hello"), threadId=""), {}, 400, "threadId"),
    (given(user("hello"), tools=[{**PICK, "name": "a b"}]), {}, 400, "client_tools"),
    ({"threadId": "t1"}, {}, 400, "runId"),
]


async def test_what_no_run_can_be_had_of_is_refused(http: HttpServer) -> None:
    for data, headers, status, told in NO_RUNS:
        async with posted(http, data, **headers) as response:
            answer = await response.json()

        assert (response.status, told in answer["error"]["message"]) == (status, True), answer


async def test_another_user_s_conversation_is_not_there(http: HttpServer, script: Script) -> None:
    await have(http, given(user("hello")), **{"x-user-id": "anna"})
    async with posted(http, given(user("hello", "u2")), **{"x-user-id": "ben"}) as response:
        answer = await response.json()

    assert response.status == 404
    assert answer["error"]["code"] == "not_found"


class TestFrontEndsThatKnowNoSubAgents:
    @pytest.fixture
    def http_settings(self) -> dict[str, Any]:
        return {"knows_subagents": False}

    async def test_they_are_told_by_events_of_their_own(
        self, http: HttpServer, script: Script
    ) -> None:
        asked = json.dumps({"agent": "define", "prompt": "What is a heron?"})
        looks = calling(("current_time", "{}"), text="A ")
        script.say(calling(("ask_agent", asked)), looks, "bird.", "It is a bird.")

        events = await have(http, given(user("Herons?")), **{"x-agent-schema-name": "router"})

        told = [event for event in events if event.get("name", "").startswith("child_")]
        content = "".join(e["value"]["content"] for e in told if e["name"] == "child_content")
        assert content == "A bird."
        assert {event["value"]["agent_name"] for event in told} == {"define"}
        assert [e["name"] for e in told if "tool" in e["name"]] == [
            "child_tool_start",
            "child_tool_result",
        ]
        assert not any(event.get("subagentRunId") for event in events)
        assert text_of(events) == "It is a bird."


async def test_a_run_that_is_cancelled_says_so(http: HttpServer, script: Script) -> None:
    script.say("Good day.")
    script.gate = asyncio.Event()
    async with posted(http, given(user("hello"))) as response:
        events = events_of(response)
        started = (await anext(events))[1]
        await http.post(f"/v1/runs/{started['metadata']['ksi']['run_id']}/cancel")
        rest = [event async for _, event in events]

    assert rest[-1]["outcome"] == {"type": "cancelled"}


@tool(effects="effectful")
async def lamp() -> str:
    """Switch the lamp, of which nobody knows whether it did."""
    raise TimedOut("the lamp did not answer")


@hookimpl
def info() -> PluginInfo:
    return PluginInfo(requires=("tools",))


@hookimpl
async def lifespan(plugin: Plugin) -> AsyncIterator[None]:
    with plugin.service(Tools).add(lamp, provider=plugin.name):
        yield


class TestCallsInDoubt:
    @pytest.fixture
    def ksi_plugins(self, ksi_plugins: list[EntryPoint]) -> list[EntryPoint]:
        lamps = module_plugin("lamps", ksi_plugin=info, ksi_lifespan=lifespan)
        return [*ksi_plugins, lamps]

    async def test_a_person_decides_what_became_of_them(
        self,
        http: HttpServer,
        script: Script,
        client: AsyncClient,
        make_key: Callable[..., Any],
    ) -> None:
        keeper = {"text": "---\nname: keeper\ntools: [lamp]\n---\nKeep the light."}
        await client.request("agent:apply", {"documents": [keeper]})
        headers = {"x-agent-schema-name": "keeper"}
        script.say(calling(("lamp", "{}")), "It is light.")
        first = await have(http, given(user("light!")), **headers)
        (interrupt,) = first[-1]["outcome"]["interrupts"]
        history = (user("light!"), called(first))
        verdict = {"verdict": "done", "content": "It shines."}
        resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": verdict}]
        writer = {"Authorization": f"Bearer {await make_key('chat:write')}"}

        impatient = await have(http, given(*history, user("And?", "u2")), **headers)
        refused = await have(http, given(*history, resume=resume), **headers, **writer)
        decided = await have(http, given(*history, resume=resume), **headers)

        assert interrupt["reason"] == "tool_call_in_doubt"
        assert impatient[-1]["outcome"]["interrupts"] == [interrupt]
        assert (refused[-1]["type"], refused[-1]["code"]) == ("RUN_ERROR", "denied")
        assert of(decided, "TOOL_CALL_RESULT")["content"] == "It shines."
        assert text_of(decided) == "It is light."
        assert roles_of(script.calls[-1]) == ["user", "assistant", "tool", "user"]

"""Events from outside begin runs, which can be looked at and ended."""

import asyncio
from collections.abc import Callable
from typing import Any

from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script
from ksi_http.sidecar.chats import conversation_of
from ksi_http.testing import HttpServer
from ksi_http.v1.runs import agent_of


def event(**more: Any) -> dict[str, Any]:
    """Return an event from outside."""
    return {
        "schema_version": 1,
        "type": "message",
        "conversation_key": "chat 7",
        "user_key": "anna",
        "text": "hello",
        **more,
    }


async def test_an_event_is_a_turn_of_its_user_in_its_conversation(
    http: HttpServer, script: Script, client: AsyncClient
) -> None:
    script.say("Good day.", "And again.")
    status, begun = await http.post("/v1/events", event(raw={"secret": ["x"]}))
    assert status == 200, begun
    _, ended = await http.get(f"/v1/runs/{begun['run_id']}?wait_s=20")
    _, raw = await http.get(f"/v1/runs/{begun['run_id']}/raw")
    _, second = await http.post("/v1/events", event())
    await http.get(f"/v1/runs/{second['run_id']}?wait_s=20")
    missing, _ = await http.get(f"/v1/runs/{second['run_id']}/raw")
    ben, _ = await http.get(f"/v1/runs/{begun['run_id']}/raw", headers={"x-user-id": "ben"})

    run = begun["run_id"]
    assert ended == {"run_id": run, "status": "succeeded", "output": "Good day."}
    assert raw == {"secret": ["x"]}
    assert (missing, ben) == (404, 404)
    (conversation,) = (await client.request("conversation:list"))["conversations"]
    assert conversation["conversation_id"] == conversation_of("chat 7")
    assert (conversation["user"], conversation["agent"]) == ("anna", "general")
    assert [message.role for message in script.calls[-1].messages] == ["user", "assistant", "user"]
    assert "secret" not in str(script.calls)


async def test_a_run_is_running_until_it_is_ended(http: HttpServer, script: Script) -> None:
    script.say("Good day.")
    script.gate = asyncio.Event()
    _, begun = await http.post("/v1/events", event())
    path = f"/v1/runs/{begun['run_id']}"
    await script.began.wait()

    _, running = await http.get(path)
    _, cancelled = await http.post(path + "/cancel")
    _, after = await http.get(path)

    assert running["status"] == "running"
    assert cancelled == {"run_id": begun["run_id"], "status": "failed"}
    assert after["error"]["code"] == "cancelled"


async def test_a_run_that_fails_keeps_what_is_inside(http: HttpServer, script: Script) -> None:
    script.say(*[ValueError("secret inside")] * 9)
    _, begun = await http.post("/v1/events", event())

    _, ended = await http.get(f"/v1/runs/{begun['run_id']}?wait_s=20")

    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "failed"
    assert "secret" not in str(ended)


async def test_an_event_that_comes_again_with_its_key_is_one_run(
    http: HttpServer, make_key: Callable[..., Any], script: Script
) -> None:
    headers = {"Idempotency-Key": "event 7"}
    first = await http.post("/v1/events", event(raw=1), headers=headers)
    again = await http.post("/v1/events", event(raw=1), headers=headers)
    anna = await make_key("chat:*", user="anna")
    bound = await http.post("/v1/events", event(), key=anna)
    other, _ = await http.post("/v1/events", event(user_key="ben"), key=anna)
    reader, _ = await http.post("/v1/events", event(), key=await make_key("chat:read"))

    assert again == first
    assert bound[0] == 200
    assert (other, reader) == (403, 403)


async def test_what_is_no_event_is_refused(http: HttpServer) -> None:
    for given in (
        event(schema_version=2),
        event(text=""),
        event(conversation_key=""),
        event(user_key="a\nb"),
        {"schema_version": 1},
    ):
        status, answer = await http.post("/v1/events", given)

        assert (status, answer["error"]["code"]) == (400, "invalid_data"), given


async def test_a_run_that_nobody_began_is_not_found(http: HttpServer) -> None:
    for method, path in (("GET", ""), ("GET", "/raw"), ("POST", "/cancel")):
        status, answer = await http.request(method, f"/v1/runs/none{path}")
        assert (status, answer["error"]["code"]) == (404, "not_found")
    assert (await http.get("/v1/runs/none?wait_s=soon"))[0] == 400


def test_the_type_of_an_event_says_which_agent_takes_it() -> None:
    agents = {"ticket.*": "support", "*": "define"}

    assert agent_of("ticket.opened", agents) == "support"
    assert agent_of("message", agents) == "define"
    assert agent_of("message", {}) == "general"


def test_a_conversation_has_its_own_name_where_it_can_be_one() -> None:
    assert conversation_of("C024:1700.5") == "C024:1700.5"
    assert conversation_of("a b") != conversation_of("a c")

"""Agents are spawned, listed, paused, restarted and ended."""

import asyncio
from typing import Any

import pytest

from ksi_agents.agents import Agents
from ksi_agents.tests.helpers import (
    ask,
    change,
    conditions,
    document,
    get,
    send,
    spawned,
    until,
)
from ksi_client import AsyncClient, Busy, Conflict, Denied, InvalidData, NotFound
from ksi_completion.tests.conversing import run_sql
from ksi_completion.tests.doubles import Script
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.news import News

pytestmark = pytest.mark.usefixtures("script")


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["agents.max_agents=8", "agents.sweep_s=0.1"]


async def apply(client: AsyncClient, **fields: Any) -> Any:
    applied = await client.request("agent:apply", {"documents": [document(**fields)]})
    assert not [each for each in applied["problems"] if not each.get("is_warning")]
    return applied


async def names(client: AsyncClient, **which: Any) -> list[str]:
    listed = await client.request("agent:list", which)
    return [each["name"] for each in listed["agents"]]


# -- spawned -------------------------------------------------------------------------------------


async def test_an_agent_that_is_spawned_is_ready(client: AsyncClient) -> None:
    agent = await spawned(client)

    assert agent["phase"] == "Ready"
    assert agent["desired"] == "running"
    assert (agent["definition"], agent["version"]) == ("clerk", 1)
    told = await conditions(client)
    assert (told["Ready"]["status"], told["Ready"]["reason"]) == ("True", "Started")
    assert (told["Live"]["status"], told["Live"]["reason"]) == ("True", "AtRest")


async def test_an_agent_answers_as_its_definition_says(client: AsyncClient, script: Script) -> None:
    script.say("It is four.")
    await spawned(client)

    answer = await ask(client, "2+2?", message_id="m1")

    assert (answer["status"], answer["text"]) == ("succeeded", "It is four.")
    assert answer["message_id"] == "m1"
    assert answer["cost_usd"] == 0.5
    assert script.calls[0].system is not None
    assert "You are a clerk." in script.calls[0].system
    assert (await get(client))["phase"] == "Ready"


async def test_an_agent_has_a_conversation_of_its_own(client: AsyncClient, script: Script) -> None:
    first = await spawned(client, "ann")
    second = await spawned(client, "bob", conversation_id="given")

    await ask(client, "one", "ann")
    await ask(client, "two", "bob")
    await ask(client, "three", "bob")

    assert first["conversation_id"] != second["conversation_id"]
    found = await client.request("conversation:get", {"conversation_id": "given"})
    assert (found["messages"], found["agent"]) == (4, "bob")
    assert [len(call.messages) for call in script.calls] == [1, 1, 3]


async def test_an_agent_without_a_name_gets_one_from_its_definition(client: AsyncClient) -> None:
    agent = await client.request("agent:spawn", {"document": document()})
    other = await client.request("agent:spawn", {"document": document()})

    assert agent["name"].startswith("clerk-")
    assert agent["name"] != other["name"]


async def test_two_agents_can_not_have_one_name(client: AsyncClient) -> None:
    await spawned(client)

    with pytest.raises(Conflict, match="there is an agent bob already"):
        await spawned(client)


async def test_the_name_of_a_definition_is_kept_for_those_who_run_by_it(
    client: AsyncClient,
) -> None:
    await apply(client, name="judge")

    with pytest.raises(Conflict, match="name of a definition"):
        await spawned(client, "judge")
    agent = await client.request("agent:spawn", {"definition": "judge", "name": "judge"})

    assert agent["phase"] == "Ready"


async def test_spawning_twice_with_a_request_id_is_spawning_once(client: AsyncClient) -> None:
    first = await spawned(client, request_id="r")
    again = await spawned(client, request_id="r")

    assert first == again
    assert await names(client) == ["bob"]
    with pytest.raises(Conflict, match="another request"):
        await spawned(client, "ann", request_id="r")


async def test_an_unknown_definition_is_told_with_the_nearest(client: AsyncClient) -> None:
    await apply(client, name="clerk")

    with pytest.raises(NotFound, match="clerk"):
        await client.request("agent:spawn", {"definition": "clrek"})
    with pytest.raises(InvalidData, match="or by a document"):
        await client.request("agent:spawn", {})
    with pytest.raises(InvalidData, match="premission"):
        await spawned(client, fields={"premission": "trusted"})

    assert await names(client) == []


async def test_there_are_only_so_many_agents(client: AsyncClient) -> None:
    for number in range(8):
        await spawned(client, f"a{number}")

    with pytest.raises(Busy, match=r"agents\.max_agents"):
        await spawned(client)

    await change(client, "terminate", "a0")
    assert (await spawned(client))["phase"] == "Ready"


async def test_a_first_prompt_is_worked_off_and_an_errand_ends_with_it(
    client: AsyncClient, script: Script
) -> None:
    script.say("Done.", "Done, too.")

    await spawned(client, "bob", prompt="go")
    await spawned(client, "errand", {"restart": {"policy": "never"}}, prompt="go")

    bob = await until(client, lambda it: it["phase"] == "Ready")
    errand = await until(client, lambda it: it["phase"] == "Completed", "errand")
    assert (bob["waiting"], errand["waiting"]) == (0, 0)
    assert errand["ended_at"] is not None
    assert len(script.calls) == 2
    assert await names(client) == ["bob"]
    with pytest.raises(Conflict, match="has ended"):
        await send(client, name="errand")


async def test_a_child_may_do_no_more_than_its_parent(client: AsyncClient) -> None:
    await spawned(client, "ann", {"tools": ["agent_*", "ask_agent"], "permissions": "restricted"})
    fields = {"tools": ["*"], "permissions": "trusted"}
    data = {"document": document(**fields), "name": "kid"}
    kid = await client.request("agent:spawn", data, context={"agent": "ann", "run": "r1"})
    await spawned(client, "free", fields)

    assert (kid["parent"], kid["parent_run"]) == ("ann", "r1")
    shown = await get(client, "ann", "children", "tools")
    assert [each["name"] for each in shown["children"]] == ["kid"]
    of_kid = await get(client, "kid", "tools")
    assert set(of_kid["tools"]) <= set(shown["tools"])
    assert "ask_agent" not in of_kid["tools"]
    assert "ask_agent" in (await get(client, "free", "tools"))["tools"]


async def test_changes_of_an_agent_are_published(client: AsyncClient) -> None:
    changes = await client.subscribe("agent:changed")
    await spawned(client)
    await ask(client)
    await change(client, "terminate", "bob", reason="enough")
    seen = []
    async for event in changes:
        seen.append((event.data.get("was"), event.data["phase"]))
        if event.data["phase"] == "Terminated":
            break

    assert seen == [
        (None, "Pending"),
        ("Pending", "Starting"),
        ("Starting", "Ready"),
        ("Ready", "Busy"),
        ("Busy", "Ready"),
        ("Ready", "Terminated"),
    ]


async def test_whoever_has_a_token_gets_no_agent_that_may_do_more_than_only_read(
    client: AsyncClient, connect: Any
) -> None:
    grants = {"call": ["agent:*"]}
    made = await client.request("token:create", {"name": "bot", "grants": grants, "ttl_s": 60})
    bot = await connect(token=made["token"])

    data = {"document": document(tools=["*"], permissions="trusted"), "name": "bob"}
    await bot.request("agent:spawn", data)
    shown = await get(client, "bob", "definition", "tools")

    assert shown["definition"]["permissions"] == "restricted"
    assert "ask_agent" not in shown["tools"]


async def test_an_agent_spawns_none_into_the_conversations_of_others(client: AsyncClient) -> None:
    await client.request("conversation:create", {"conversation_id": "private"})
    data = {"document": document(), "name": "bob", "conversation_id": "private"}

    with pytest.raises(Denied, match="conversation"):
        await client.request("agent:spawn", data, context={"agent": "ann", "conversation": "own"})

    agent = await client.request("agent:spawn", data)
    assert agent["conversation_id"] == "private"


# -- listed --------------------------------------------------------------------------------------


async def test_agents_are_listed_by_what_they_are(client: AsyncClient) -> None:
    await spawned(client, "a_1", labels={"team": "red"})
    await spawned(client, "a-2", {"labels": {"team": "blue"}})
    await spawned(client, "b-1", {"name": "other"})
    await change(client, "terminate", "b-1")

    assert await names(client) == ["a-2", "a_1"]
    assert await names(client, pattern="a_*") == ["a_1"]
    assert await names(client, labels={"team": "blue"}) == ["a-2"]
    assert await names(client, definition="other", ended=True) == ["b-1"]
    assert await names(client, phase=["Terminated"]) == ["b-1"]
    page = await client.request("agent:list", {"limit": 1})
    assert await names(client, cursor=page["cursor"]) == ["a_1"]


async def test_an_agent_tells_what_is_asked_of_it(client: AsyncClient, script: Script) -> None:
    script.say("Yes.")
    await spawned(client, fields={"model": "test/script"})
    await ask(client, "Really?", message_id="m1")
    sections = ("definition", "mailbox", "channels", "children", "tools", "usage")

    shown = await get(client, "bob", *sections)

    assert set(shown) == {"agent", *sections}
    assert shown["definition"]["model"] == "test/script"
    (mail,) = shown["mailbox"]
    assert (mail["number"], mail["status"], mail["prompt"]) == (1, "succeeded", "Really?")
    assert mail["run_id"]
    with pytest.raises(NotFound, match="there is no agent eve"):
        await get(client, "eve")


async def test_what_happened_to_an_agent_is_told(client: AsyncClient, script: Script) -> None:
    script.say("Yes.")
    await spawned(client)
    answer = await ask(client)
    await change(client, "pause", "bob")

    logs = await client.request("agent:logs", {"name": "bob"})
    kinds = [entry["kind"] for entry in logs["entries"]]
    assert kinds == ["paused", "message", "ready", "spawned"]
    assert logs["entries"][1]["run_id"] == answer["run_id"]
    before = logs["entries"][2]["number"]
    older = await client.request("agent:logs", {"name": "bob", "before": before, "limit": 5})
    assert [entry["kind"] for entry in older["entries"]] == ["spawned"]


async def test_each_user_has_agents_of_his_own(client: AsyncClient) -> None:
    ann, ben = {"user": "ann"}, {"user": "ben"}
    data = {"document": document(), "name": "bob"}
    await client.request("agent:spawn", data, context=ann)

    for event, request in (
        ("agent:get", {"name": "bob"}),
        ("agent:send", {"agent": "bob", "prompt": "x"}),
        ("agent:terminate", {"which": {"names": ["bob"]}}),
        ("agent:subscribe", {"agent": "bob", "channel": "c"}),
    ):
        with pytest.raises(NotFound):
            await client.request(event, request, context=ben)

    hers = await client.request("agent:list", {}, context=ann)
    his = await client.request("agent:list", {}, context=ben)
    assert (len(hers["agents"]), len(his["agents"])) == (1, 0)
    answer = await client.request("agent:ask", {"agent": "bob", "prompt": "x"}, context=ann)
    assert answer["status"] == "succeeded"


# -- changed -------------------------------------------------------------------------------------


async def test_a_paused_agent_takes_messages_and_works_them_off_later(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client)
    await change(client, "pause", "bob")

    first, second = await send(client, "one"), await send(client, "two")
    paused = await get(client)
    told = await conditions(client)
    resumed = await change(client, "resume", "bob")

    assert (first["waiting"], second["waiting"]) == (0, 1)
    assert (paused["desired"], paused["reason"], paused["waiting"]) == ("paused", "Paused", 2)
    assert told["Ready"]["status"] == "False"
    assert resumed["agents"][0]["phase"] == "Busy"
    await until(client, lambda it: it["phase"] == "Ready" and not it["waiting"])
    assert [str(call.messages[-1].parts[0]) for call in script.calls] == [
        "TextPart(text='one')",
        "TextPart(text='two')",
    ]


async def test_an_agent_paused_at_work_finishes_what_it_is_at(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three")
    await spawned(client)
    await send(client, "one")
    await send(client, "two")
    await script.began.wait()

    await change(client, "pause", "bob")
    script.gate.set()

    agent = await until(client, lambda it: it["phase"] == "Ready")
    assert (agent["waiting"], agent["reason"]) == (1, "Paused")
    assert len(script.calls) == 1


async def test_an_agent_keeps_its_version_until_it_is_restarted(
    client: AsyncClient, script: Script
) -> None:
    await apply(client, prompt="You are old.")
    await client.request("agent:spawn", {"definition": "clerk", "name": "bob"})
    await apply(client, prompt="You are new.")

    await ask(client)
    kept = await change(client, "restart", "bob", keep_version=True)
    await until(client, lambda it: it["phase"] == "Ready")
    await ask(client)
    renewed = await change(client, "restart", "bob")
    await until(client, lambda it: it["phase"] == "Ready")
    await ask(client)

    assert (kept["agents"][0]["version"], renewed["agents"][0]["version"]) == (1, 2)
    told = [call.system for call in script.calls]
    assert ["old" in (each or "") for each in told] == [True, True, False]
    assert (await get(client))["restarts"] == 2


async def test_an_agent_outlives_its_definition(client: AsyncClient, script: Script) -> None:
    await apply(client, prompt="You are old.")
    await client.request("agent:spawn", {"definition": "clerk", "name": "bob"})
    await client.request("agent:remove", {"names": ["clerk"]})

    await change(client, "restart", "bob")
    await until(client, lambda it: it["phase"] == "Ready")
    await ask(client)

    assert "You are old." in (script.calls[0].system or "")


async def test_an_agent_restarted_at_work_finishes_that_first(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three")
    await spawned(client)
    await send(client, "one")
    await script.began.wait()

    changed = await change(client, "restart", "bob")
    script.gate.set()

    assert changed["agents"][0]["phase"] == "Busy"
    agent = await until(client, lambda it: it["phase"] == "Ready")
    assert agent["restarts"] == 1
    shown = await get(client, "bob", "mailbox")
    assert shown["mailbox"][0]["status"] == "succeeded"


async def test_an_agent_terminated_at_work_is_cancelled_with_all_that_waits(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three")
    await spawned(client)
    async with asyncio.TaskGroup() as together:
        asking = together.create_task(ask(client, "one"))
        await script.began.wait()
        waiting = together.create_task(ask(client, "two"))
        await until(client, lambda it: it["waiting"] == 1)
        ended = await change(client, "terminate", "bob", reason="enough")

    assert ended["agents"][0]["phase"] == "Terminated"
    assert asking.result()["status"] == "cancelled"
    assert waiting.result()["status"] == "cancelled"
    agent = await until(client, lambda it: it.get("run_id") is None)
    assert (agent["phase"], agent["reason"]) == ("Terminated", "enough")
    turn = await client.request("completion:status", {"run_id": asking.result()["run_id"]})
    assert turn["status"] == "cancelled"
    with pytest.raises(Conflict, match="terminated"):
        await change(client, "restart", "bob")


async def test_the_name_of_one_terminated_at_work_is_free_at_once(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    await spawned(client)
    await send(client)
    await script.began.wait()
    await change(client, "terminate", "bob")

    again = await spawned(client)

    assert again["phase"] == "Ready"


async def test_what_one_terminated_was_at_is_cancelled_by_whoever_sweeps(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three")
    await spawned(client)
    await send(client)
    agent = await until(client, lambda it: it.get("run_id") is not None)

    await run_sql(
        database_logins,
        "SELECT ksi_agents.terminate('default', ARRAY[id], 'enough') FROM ksi_agents.agent",
    )
    await run_sql(database_logins, "UPDATE ksi_agents.agent SET due_at = now()")

    await until(client, lambda it: it.get("run_id") is None)
    turn = await client.request("completion:status", {"run_id": agent["run_id"]})
    assert turn["status"] == "cancelled"
    assert (await get(client))["phase"] == "Terminated"


async def test_one_terminated_whose_turn_is_gone_leaves_its_name(
    client: AsyncClient, database_logins: Logins
) -> None:
    agent = await spawned(client)
    answer = await ask(client)
    await client.request("conversation:delete", {"conversation_id": agent["conversation_id"]})
    await run_sql(
        database_logins,
        "UPDATE ksi_agents.agent SET phase = 'Busy', at_work = 1, run = $1",
        answer["run_id"],
    )

    await change(client, "terminate", "bob")

    await until(client, lambda it: it.get("run_id") is None)
    assert (await spawned(client))["phase"] == "Ready"


async def test_a_name_is_free_again_once_its_agent_has_ended(
    client: AsyncClient,
) -> None:
    first = await spawned(client, fields={"tools": ["*"]})
    await send(client, "one", message_id="m")
    await until(client, lambda it: it["phase"] == "Ready")
    await change(client, "terminate", "bob")
    permitted = await client.request("tool:permissions", {"subject": "agent:bob"})

    second = await spawned(client)
    answer = await ask(client, "another", message_id="m")

    assert permitted["allow"] is None
    assert permitted["parent"] is None
    assert first["conversation_id"] != second["conversation_id"]
    assert (answer["status"], answer["text"]) == ("succeeded", "seen 1")


async def test_agents_that_have_ended_long_ago_are_forgotten(
    client: AsyncClient, database_logins: Logins, database: Database
) -> None:
    for name in ("ann", "ben", "cat"):
        await spawned(client, name, {"description": name})
        await ask(client, name=name)
    await change(client, "terminate", "ann", "ben")
    await run_sql(
        database_logins,
        "UPDATE ksi_agents.agent SET ended_at = ended_at - interval '2 hours' WHERE name = 'ann'",
    )

    await Agents(database, News("ksi_agents", database)).forget_past(3600.0)

    assert await names(client, ended=True) == ["ben", "cat"]
    kept = await run_sql(database_logins, "SELECT definition FROM ksi_agents.blueprint")
    assert len(kept) == 2
    assert (await ask(client, name="cat"))["status"] == "succeeded"


async def test_agents_are_ended_in_bulk_once_it_was_said_which(client: AsyncClient) -> None:
    await spawned(client, "a-1", labels={"team": "red"})
    await spawned(client, "a-2")
    await spawned(client, "b-1", labels={"team": "red"})
    kid = {"document": document(), "name": "kid"}
    await client.request("agent:spawn", kid, context={"agent": "a-1"})

    dry = await change(client, "terminate", "a-*", dry_run=True)
    assert [each["name"] for each in dry["agents"]] == ["a-1", "a-2", "kid"]
    assert len(await names(client)) == 4
    await client.request("agent:terminate", {"which": {"labels": {"team": "red"}}})
    assert await names(client) == ["a-2"]
    assert not (await client.request("agent:terminate", {"which": {"idle_s": 3600}}))["agents"]
    await client.request("agent:terminate", {"which": {"idle_s": 0}})
    assert await names(client) == []
    with pytest.raises(InvalidData, match="say which"):
        await client.request("agent:terminate", {"which": {}})
    with pytest.raises(NotFound, match="there is no agent a-2"):
        await change(client, "terminate", "a-2")


async def test_an_agent_has_a_say_in_its_own_children_alone(client: AsyncClient) -> None:
    await spawned(client, "ann")
    await spawned(client, "ben")
    kid = {"document": document(), "name": "kid"}
    await client.request("agent:spawn", kid, context={"agent": "ann"})
    which = {"which": {"names": ["*"]}}

    ended = await client.request("agent:terminate", which, context={"agent": "ann"})

    assert [each["name"] for each in ended["agents"]] == ["kid"]
    assert await names(client) == ["ann", "ben"]

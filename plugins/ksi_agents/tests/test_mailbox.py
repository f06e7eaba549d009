"""What is accepted into a mailbox is worked off once, and in its order."""

import asyncio
from typing import Any

import pytest

from ksi_agents.mailbox import mail_of_request, request_of
from ksi_agents.tests.helpers import ask, change, get, send, spawned, until
from ksi_client import AsyncClient, Busy, Conflict, InvalidData, NotFound
from ksi_completion.tests.conversing import run_sql
from ksi_completion.tests.doubles import Script
from ksi_completion.tests.test_turns import words_of
from ksi_daemon.protocol import Failed
from ksi_postgres.logins import Logins

MAILBOX = 30

pytestmark = pytest.mark.usefixtures("script")


@pytest.fixture
def ksi_settings() -> list[str]:
    return [f"agents.max_mailbox={MAILBOX}", "agents.sweep_s=0.1"]


def said(script: Script) -> list[str]:
    return [words_of(call.messages)[-1] for call in script.calls]


async def idle(client: AsyncClient, name: str = "bob") -> Any:
    return await until(client, lambda it: it["phase"] == "Ready" and not it["waiting"], name)


async def mails(client: AsyncClient, name: str = "bob") -> Any:
    return (await get(client, name, "mailbox"))["mailbox"]


# -- order ---------------------------------------------------------------------------------------


async def test_messages_are_worked_off_once_and_in_their_order(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client)
    prompts = [f"m{number}" for number in range(20)]

    sent = [await send(client, prompt) for prompt in prompts]
    await idle(client)

    assert [each["number"] for each in sent] == list(range(1, 21))
    assert said(script) == prompts
    assert {mail["status"] for mail in await mails(client)} == {"succeeded"}


async def test_many_who_ask_at_once_each_get_their_own_answer(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client, "ann")
    await spawned(client, "bob")
    script.say(*[f"answer {number}" for number in range(20)])

    async with asyncio.TaskGroup() as together:
        tasks = [
            together.create_task(ask(client, f"q{number}", ("ann", "bob")[number % 2]))
            for number in range(20)
        ]

    answers = [task.result() for task in tasks]
    by_prompt = {words_of(call.messages)[-1]: f"answer {n}" for n, call in enumerate(script.calls)}
    assert [each["text"] for each in answers] == [by_prompt[f"q{n}"] for n in range(20)]
    assert len(script.calls) == 20


async def test_two_hundred_agents_at_work_at_once_are_all_answered(
    client: AsyncClient, script: Script
) -> None:
    names = [f"a{number}" for number in range(200)]
    for name in names:
        await spawned(client, name)

    async with asyncio.TaskGroup() as together:
        tasks = [together.create_task(ask(client, name, name)) for name in names]

    assert {task.result()["status"] for task in tasks} == {"succeeded"}
    assert sorted(said(script)) == sorted(names)


# -- once ----------------------------------------------------------------------------------------


async def test_sending_twice_with_an_id_is_sending_once(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client)

    first = await send(client, "one", message_id="m")
    again = await send(client, "one", message_id="m")
    await idle(client)
    late = await ask(client, "one", message_id="m")

    assert (first["number"], again["number"]) == (1, 1)
    assert (late["status"], late["text"]) == ("succeeded", "seen 1")
    assert len(script.calls) == 1
    with pytest.raises(Conflict, match="another message"):
        await send(client, "two", message_id="m")


async def test_an_answer_that_was_not_waited_for_is_there_when_it_is_asked_again(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("four")
    await spawned(client)

    early = await ask(client, "2+2?", message_id="m", timeout_s=0.05)
    async with asyncio.TaskGroup() as together:
        tasks = [together.create_task(ask(client, "2+2?", message_id="m")) for _ in range(3)]
        await asyncio.sleep(0)
        script.gate.set()

    assert (early["status"], early.get("text")) == ("given", None)
    assert {task.result()["text"] for task in tasks} == {"four"}
    assert len(script.calls) == 1


async def test_one_agents_message_is_no_others(client: AsyncClient, script: Script) -> None:
    await spawned(client, "ann")
    await spawned(client, "bob")

    one = await ask(client, "one", "ann", message_id="m")
    two = await ask(client, "two", "bob", message_id="m")

    assert one["run_id"] != two["run_id"]
    assert said(script) == ["one", "two"]


def test_a_request_says_whose_message_it_is() -> None:
    assert mail_of_request(request_of("0123456789ab", 7)) == ("0123456789ab", 7)
    assert mail_of_request("mail-0123456789ab-x") is None
    assert mail_of_request("chat-1") is None


# -- bounds --------------------------------------------------------------------------------------


async def test_a_mailbox_that_is_full_refuses_with_the_bound_and_keeps_what_it_has(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client)
    await change(client, "pause", "bob")
    for number in range(MAILBOX):
        await send(client, f"m{number}")

    with pytest.raises(Busy, match=r"agents\.max_mailbox"):
        await send(client, "one too many")

    await change(client, "resume", "bob")
    await idle(client)
    assert said(script) == [f"m{number}" for number in range(MAILBOX)]


FLOOD = 10_000  # what a mailbox takes unless it is said otherwise


@pytest.mark.parametrize("ksi_settings", [["agents.sweep_s=0.1"]])
async def test_a_flooded_mailbox_is_worked_off_from_its_head_and_floods_nobody_else(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    await spawned(client)
    await spawned(client, "eve")
    await change(client, "pause", "bob")
    await send(client, "m1")
    await run_sql(
        database_logins,
        "INSERT INTO ksi_agents.mail (tenant, agent, number, message_id, status, prompt, context, "
        "is_awaited) SELECT m.tenant, m.agent, n, 'id-' || n, m.status, 'm' || n, m.context, false "
        "FROM ksi_agents.mail m, generate_series(2, $1::bigint) n",
        FLOOD,
    )
    await run_sql(
        database_logins,
        "UPDATE ksi_agents.agent SET waiting = $1::int, last_mail = $1::int WHERE name = 'bob'",
        FLOOD,
    )

    with pytest.raises(Busy, match="10000 messages wait in the mailbox of bob"):
        await send(client, "one too many")
    assert (await ask(client, "hello", "eve"))["status"] == "succeeded"
    assert len(await mails(client)) == 100
    script.calls.clear()
    await change(client, "resume", "bob")
    await until(client, lambda _: len(script.calls) >= 3)
    await change(client, "terminate", "bob")

    assert said(script)[:3] == ["m1", "m2", "m3"]
    ended = await until(client, lambda it: it.get("run_id") is None)
    assert (ended["phase"], ended["waiting"]) == ("Terminated", 0)


async def test_agents_that_would_wait_for_one_another_are_told_at_once(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three")
    for name in ("ann", "ben", "cat"):
        await spawned(client, name)
    async with asyncio.TaskGroup() as together:
        together.create_task(ask(client, "x", "ann"))
        for sender, receiver in (("ann", "ben"), ("ben", "cat")):
            await until(client, lambda it: it["phase"] == "Busy", sender)
            data = {"agent": receiver, "prompt": "x"}
            together.create_task(client.request("agent:ask", data, context={"agent": sender}))
        await until(client, lambda it: it["phase"] == "Busy", "cat")

        with pytest.raises(Conflict, match="waits for the one that asks"):
            await client.request(
                "agent:ask", {"agent": "ann", "prompt": "x"}, context={"agent": "cat"}
            )
        with pytest.raises(Conflict, match="waits for the one that asks"):
            await client.request(
                "agent:ask", {"agent": "cat", "prompt": "x"}, context={"agent": "cat"}
            )
        script.gate.set()


async def test_two_at_work_who_ask_one_another_are_not_both_left_waiting(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three", "four five six")
    for name in ("ann", "ben"):
        await spawned(client, name)
        await send(client, "work", name)
        await until(client, lambda it: it["phase"] == "Busy", name)
    ann, ben = {"agent": "ann", "prompt": "x"}, {"agent": "ben", "prompt": "x"}

    late = await client.request("agent:ask", {**ben, "timeout_s": 0}, context={"agent": "ann"})
    async with asyncio.TaskGroup() as together:
        asking = together.create_task(
            client.request("agent:ask", ann, context={"agent": "ben"})
        )  # ann waits for ben no more
        await until(client, lambda it: it["waiting"] == 1, "ann")
        with pytest.raises(Conflict, match="waits for the one that asks"):
            await client.request("agent:ask", ben, context={"agent": "ann"})
        script.gate.set()

    assert late["status"] == "waiting"
    assert asking.result()["status"] == "succeeded"


async def test_a_message_to_nobody_or_to_one_who_has_ended_is_refused(
    client: AsyncClient,
) -> None:
    await spawned(client)
    await change(client, "terminate", "bob")

    with pytest.raises(Conflict, match="has ended"):
        await send(client)
    with pytest.raises(NotFound, match="there is no agent eve"):
        await ask(client, name="eve")


async def test_what_an_agent_is_told_is_held_to_its_schema(
    client: AsyncClient, script: Script
) -> None:
    schema = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    await spawned(client, fields={"input": schema})

    for prompt, why in (("Oslo", "no JSON"), ("{}", "city"), ('{"city": 4}', r"\$\.city")):
        with pytest.raises(InvalidData, match=why):
            await ask(client, prompt)
    answer = await ask(client, '{"city": "Oslo"}')

    assert answer["status"] == "succeeded"
    assert len(await mails(client)) == len(script.calls) == 1


# -- what goes wrong -----------------------------------------------------------------------------


async def test_a_message_that_fails_is_told_and_the_next_one_is_worked_off(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client, fields={"restart": {"delay_s": 0}})
    script.say(Failed("the model is out of order"), "fine")

    await send(client, "one", message_id="m1")
    async with asyncio.TaskGroup() as together:
        one = together.create_task(ask(client, "one", message_id="m1"))
        two = together.create_task(ask(client, "two"))

    assert one.result()["status"] == "failed"
    assert "out of order" in one.result()["error"]["message"]
    assert two.result()["text"] == "fine"
    assert [mail["status"] for mail in await mails(client)] == ["failed", "succeeded"]


async def test_a_message_for_which_no_turn_can_be_had_fails(client: AsyncClient) -> None:
    agent = await spawned(client, fields={"restart": {"delay_s": 0}})
    await ask(client)
    where = {"conversation_id": agent["conversation_id"]}
    await client.request("conversation:archive", where)

    refused = await ask(client)
    await client.request("conversation:archive", {**where, "archived": False})
    answer = await ask(client)

    assert refused["status"] == "failed"
    assert "archived" in refused["error"]["message"]
    assert answer["status"] == "succeeded"


async def test_what_was_given_by_nobody_is_given_by_the_sweep(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    await spawned(client)
    await run_sql(
        database_logins,
        "WITH sent AS (INSERT INTO ksi_agents.mail (tenant, agent, number, message_id, status, "
        "prompt, context, is_awaited, given_at) SELECT tenant, id, 1, 'm', 'given', 'left', "
        """'{"id":""}', false, now() FROM ksi_agents.agent) """
        "UPDATE ksi_agents.agent SET phase = 'Busy', at_work = 1, last_mail = 1, due_at = now()",
    )

    answer = await ask(client, "left", message_id="m")

    assert (answer["status"], said(script)) == ("succeeded", ["left"])
    assert (await get(client))["phase"] == "Ready"


async def test_an_end_that_nobody_saw_is_found_by_the_sweep_and_no_turn_is_had_again(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    await spawned(client)
    answer = await ask(client, "one", message_id="m")
    await run_sql(
        database_logins,
        "WITH given AS (UPDATE ksi_agents.mail SET status = 'given', run = NULL, ended_at = NULL) "
        "UPDATE ksi_agents.agent SET phase = 'Busy', at_work = 1, due_at = now()",
    )

    again = await ask(client, "one", message_id="m")

    assert again == answer
    assert len(script.calls) == 1
    assert (await get(client))["phase"] == "Ready"


async def test_what_an_agent_is_at_is_told_while_it_is_at_it(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three")
    await spawned(client)
    await send(client)

    held = {"type": "Live", "status": "True", "reason": "LeaseHeld"}
    shown = await until(
        client,
        lambda it: any(held.items() <= each.items() for each in it["conditions"]),
        "bob",
        "conditions",
    )
    script.gate.set()

    agent = shown["agent"]
    assert agent["phase"] == "Busy"
    turn = await client.request("completion:status", {"run_id": agent["run_id"]})
    assert turn["agent"] == "bob"
    await idle(client)


async def test_a_turn_that_a_person_cancels_is_no_failure_of_the_agent(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("one two three")
    await spawned(client)
    async with asyncio.TaskGroup() as together:
        asking = together.create_task(ask(client))
        agent = await until(client, lambda it: it.get("run_id") is not None)
        await client.request("completion:cancel", {"run_id": agent["run_id"]})

    assert asking.result()["status"] == "cancelled"
    now = await get(client)
    assert (now["phase"], now.get("restarts", 0)) == ("Ready", 0)

"""Tests of conversations that are at work: locks and turns, copies, and what a turn takes."""

import asyncio
import json
from typing import Any

import pytest

from ksi_client import AsyncClient, Conflict
from ksi_completion.tests.conversing import run_sql, say
from ksi_completion.tests.doubles import Script, Toolbox, calling
from ksi_postgres.logins import Logins


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["completion.sweep_s=600"]  # nobody but the lock starts what has waited for it


async def ask(client: AsyncClient, prompt: str = "hello", **more: Any) -> str:
    accepted = await client.request(
        "completion:async", {"prompt": prompt, "conversation_id": "c", **more}
    )
    return str(accepted["run_id"])


async def result_of(client: AsyncClient, run: str) -> dict[str, Any]:
    return dict(await client.request("completion:wait", {"run_id": run, "timeout_s": 30}))


async def lock(client: AsyncClient, **more: Any) -> dict[str, Any]:
    request = {"conversation_id": "c", "owner": "me", **more}
    return dict(await client.request("conversation:lock", request))


async def test_a_turn_waits_for_the_lock_and_starts_when_it_is_given_back(
    client: AsyncClient, script: Script
) -> None:
    await client.request("conversation:create", {"conversation_id": "c"})
    taken = await lock(client)

    run = await ask(client)
    before = await client.request("completion:status", {"run_id": run})
    await client.request(
        "conversation:unlock", {"conversation_id": "c", "lock_id": taken["lock_id"]}
    )
    after = await result_of(client, run)

    assert before["status"] == "waiting"
    assert after["status"] == "succeeded"


async def test_a_turn_that_waits_for_a_lock_is_cancelled_and_the_lock_holds(
    client: AsyncClient, script: Script
) -> None:
    await client.request("conversation:create", {"conversation_id": "c"})
    taken = await lock(client)
    first, second = await ask(client, "first"), await ask(client, "second")

    answer = await client.request("completion:cancel", {"run_id": first})
    between = await client.request("completion:status", {"run_id": second})
    await client.request(
        "conversation:unlock", {"conversation_id": "c", "lock_id": taken["lock_id"]}
    )
    after = await result_of(client, second)

    assert (answer["status"], between["status"]) == ("cancelled", "waiting")
    assert after["status"] == "succeeded"
    assert len(script.calls) == 1


async def test_a_turn_starts_when_the_lock_expires(client: AsyncClient, script: Script) -> None:
    await client.request("conversation:create", {"conversation_id": "c"})
    await lock(client, ttl_s=0.2)

    result = await result_of(client, await ask(client))

    assert result["status"] == "succeeded"


async def test_a_lock_comes_between_the_turn_that_runs_and_the_next(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    first = await ask(client, "first")
    await script.began.wait()
    second = await ask(client, "second")

    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(lock(client, wait_s=30))
        while not (await client.request("conversation:locks"))["locks"]:
            pass
        script.gate.set()
    await result_of(client, first)
    between = await client.request("completion:status", {"run_id": second})
    await client.request(
        "conversation:unlock", {"conversation_id": "c", "lock_id": taking.result()["lock_id"]}
    )

    assert between["status"] == "waiting"
    assert (await result_of(client, second))["status"] == "succeeded"


async def test_a_conversation_at_work_is_not_deleted_and_can_be_afterwards(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    run = await ask(client)
    await script.began.wait()

    with pytest.raises(Conflict, match="at work"):
        await client.request("conversation:delete", {"conversation_id": "c"})
    script.gate.set()
    await result_of(client, run)
    gone = await client.request("conversation:delete", {"conversation_id": "c"})

    assert gone["messages"] == 2


async def test_a_conversation_goes_on_in_its_copy(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    script.say("one", "two", "three")
    await result_of(client, await ask(client, "a"))
    await result_of(client, await ask(client, "b"))
    await client.request("conversation:fork", {"conversation_id": "c", "at": 2, "new_id": "d"})

    await result_of(client, await ask(client, "other", conversation_id="d"))

    shown = [message.parts[0].text for message in script.calls[-1].messages]  # type: ignore[union-attr]  # texts
    assert shown == ["a", "one", "other"]
    original = await client.request("conversation:get", {"conversation_id": "c"})
    assert original["messages"] == 4


async def test_a_conversation_that_was_brought_in_goes_on(
    client: AsyncClient, script: Script
) -> None:
    script.say("one")
    await result_of(client, await ask(client, "a"))
    pieces = [
        piece["text"]
        async for piece in client.stream("conversation:export", {"conversation_id": "c"})
    ]
    document = json.loads("".join(pieces))
    await client.request("conversation:import", {"document": document, "new_id": "d"})

    await result_of(client, await ask(client, "b", conversation_id="d"))

    assert len(script.calls[-1].messages) == 3


async def test_what_a_conversation_is_made_with_is_told_to_the_tools(
    client: AsyncClient, connect: Any, toolbox: Toolbox
) -> None:
    await client.request("conversation:create", {"conversation_id": "c", "tools": ["read*"]})
    token = await client.request(
        "token:create",
        {"name": "t", "ttl_s": 60, "grants": {"call": ["conversation:*"]}, "user": "bob"},
    )
    bob = await connect(token=token["token"])
    made = await bob.request("conversation:create", {"conversation_id": "d", "tools": ["*"]})

    (permit,) = toolbox.permits
    assert (permit.subject, permit.allow, permit.parent) == ("conversation:c", ("read*",), None)
    assert made["tools"] == ["*"]  # which narrows nothing, and allows nothing


# -- what is stored --------------------------------------------------------------------------------

STORED = """
    SELECT sum(pg_column_size(m.*)) AS bytes FROM ksi_completion.message m
     WHERE m.turn = $1
"""
GROWTH = """
    SELECT sum(pg_total_relation_size(c.oid)) AS bytes FROM pg_class c
     WHERE c.relnamespace IN ('ksi_completion'::regnamespace, 'dbos'::regnamespace,
                              'ksi_workflows'::regnamespace)
       AND c.relkind = 'r'
"""


async def test_a_turn_takes_the_same_space_however_many_there_were_before(
    client: AsyncClient, database_logins: Logins, script: Script
) -> None:
    async def turns_until(number: int) -> None:
        have = await client.request("conversation:get", {"conversation_id": "c"})
        missing = number - 1 - have["turns"]
        said = [m for _ in range(missing) for m in (("user", "hello"), ("assistant", "word " * 50))]
        await say(database_logins, "c", *said)
        script.say("word " * 50)
        await result_of(client, await ask(client))

    await client.request("conversation:create", {"conversation_id": "c"})
    sizes = {}
    for number in (10, 100, 1000):
        await turns_until(number)
        (row,) = await run_sql(database_logins, STORED, number)
        (turn,) = await run_sql(
            database_logins,
            "SELECT pg_column_size(t.*) AS bytes FROM ksi_completion.turn t WHERE number = $1",
            number,
        )
        (engine,) = await run_sql(
            database_logins,
            "SELECT coalesce(sum(pg_column_size(o.*)), 0) AS bytes FROM dbos.operation_outputs o",
        )
        sizes[number] = (int(row["bytes"]) + int(turn["bytes"]), int(engine["bytes"]))

    print(sizes)  # noqa: T201  the figures
    own = [size for size, _ in sizes.values()]
    assert max(own) <= 1.2 * min(own)
    engine_sizes = [size for _, size in sizes.values()]
    first, second, third = engine_sizes
    assert third - second <= 1.2 * max(second - first, 1)


async def test_a_hundred_model_calls_on_a_long_conversation_take_little_space(
    client: AsyncClient, database_logins: Logins, script: Script, toolbox: Toolbox
) -> None:
    await say(database_logins, "c", *(("user", "words " * 400) for _ in range(500)))  # 200,000
    toolbox.add("look", "read_only", lambda call: "found")
    (before,) = await run_sql(database_logins, GROWTH)
    for _ in range(5):
        for number in range(19):
            script.say(calling(("look", f'{{"n": {number}}}')))
        script.say("so it is")
        result = await result_of(client, await ask(client))
        assert result["status"] == "succeeded"
    (after,) = await run_sql(database_logins, GROWTH)

    assert len(script.calls) == 100
    grown = int(after["bytes"]) - int(before["bytes"])
    print(f"{grown / 1e6:.2f} MB")  # noqa: T201  the figure
    assert grown < 20_000_000

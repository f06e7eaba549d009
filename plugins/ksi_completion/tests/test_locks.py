"""Tests of locks: who has one keeps turns from starting, until it is given back or expires."""

import asyncio
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ksi_client import (
    AsyncClient,
    Busy,
    Conflict,
    Denied,
    InvalidData,
    LocalTransport,
    TimedOut,
)
from ksi_completion.conversations import Conversations, LockTaken
from ksi_completion.tests.conversing import (
    Started,
    conversing,
    end_turn,
    open_turn,
    postgres,
    run_sql,
    say,
)
from ksi_completion.tests.test_conversations import As, client_of  # noqa: F401  a fixture
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import running_daemon
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for


@pytest.fixture
def started() -> Started:
    return Started()


@pytest.fixture
def ksi_plugins(started: Started) -> list[EntryPoint]:
    return [postgres(), conversing(started)]


@pytest.fixture
async def conversation(client: AsyncClient) -> str:
    await client.request("conversation:create", {"conversation_id": "c"})
    return "c"


async def lock(client: AsyncClient, owner: str = "me", **more: Any) -> dict[str, Any]:
    request = {"conversation_id": "c", "owner": owner, **more}
    return dict(await client.request("conversation:lock", request))


async def held(client: AsyncClient) -> list[str]:
    listed = await client.request("conversation:locks")
    return [each["owner"] for each in listed["locks"]]


async def waiting_lock(logins: Logins) -> None:
    """Return once somebody holds the lock, though he may still wait for a turn."""
    while not await run_sql(logins, "SELECT FROM ksi_completion.lock"):
        pass


async def test_a_lock_is_taken_listed_and_given_back(
    client: AsyncClient, conversation: str, started: Started
) -> None:
    taken = await lock(client)

    listed = await client.request("conversation:locks")
    back = await client.request(
        "conversation:unlock", {"conversation_id": "c", "lock_id": taken["lock_id"]}
    )

    assert listed["locks"] == [{key: taken[key] for key in taken if key != "lock_id"}]
    assert back == {"conversation_id": "c", "was_locked": True}
    assert await held(client) == []
    assert started.places == [("default", "c")]


async def test_a_second_lock_is_refused_and_says_whose_the_first_is(
    client: AsyncClient, conversation: str
) -> None:
    await lock(client, "somebody")

    with pytest.raises(Busy, match="'somebody'") as told:
        await lock(client)

    assert told.value.retry_after_s is not None
    assert 0 < told.value.retry_after_s <= 60
    assert told.value.details == {"kind": "locked", "owner": "somebody"}


async def test_a_lock_is_waited_for_until_it_is_given_back(
    client: AsyncClient, conversation: str
) -> None:
    first = await lock(client, "first")

    async with asyncio.TaskGroup() as tasks:
        second = tasks.create_task(lock(client, "second", wait_s=30, ttl_s=5))
        await asyncio.sleep(0)
        await client.request(
            "conversation:unlock", {"conversation_id": "c", "lock_id": first["lock_id"]}
        )

    assert second.result()["owner"] == "second"
    assert await held(client) == ["second"]


async def test_of_many_who_want_it_one_has_it_at_a_time(
    client: AsyncClient, conversation: str
) -> None:
    inside = most = 0

    async def use(number: int) -> None:
        nonlocal inside, most
        taken = await lock(client, f"{number}", wait_s=30)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        await client.request(
            "conversation:unlock", {"conversation_id": "c", "lock_id": taken["lock_id"]}
        )

    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(use(number))

    assert most == 1
    assert await held(client) == []


async def test_a_lock_that_expires_is_another_s_and_what_waits_is_started(
    client: AsyncClient, conversation: str, started: Started
) -> None:
    first = await lock(client, "first", ttl_s=0.05)

    second = await lock(client, "second", wait_s=30)

    assert second["owner"] == "second"
    assert started.places == [("default", "c")]
    with pytest.raises(Conflict, match="not the one that lock_id names"):
        await client.request(
            "conversation:unlock", {"conversation_id": "c", "lock_id": first["lock_id"]}
        )
    assert await held(client) == ["second"]


async def test_a_lock_is_prolonged_by_who_knows_it(client: AsyncClient, conversation: str) -> None:
    first = await lock(client, ttl_s=5)

    again = await lock(client, ttl_s=500, lock_id=first["lock_id"])

    assert again["lock_id"] == first["lock_id"]
    assert again["locked_at"] == first["locked_at"]
    assert again["expires_at"] > first["expires_at"]


async def test_a_lock_that_was_lost_can_t_be_prolonged(
    client: AsyncClient, conversation: str
) -> None:
    with pytest.raises(Conflict, match="does not hold any more"):
        await lock(client, lock_id="made up")
    first = await lock(client)
    await client.request("conversation:unlock", {"conversation_id": "c", "force": True})
    with pytest.raises(Conflict, match="does not hold any more"):
        await lock(client, lock_id=first["lock_id"])


async def test_only_who_knows_it_gives_a_lock_back_or_breaks_it(
    client: AsyncClient, conversation: str
) -> None:
    await lock(client)

    with pytest.raises(Conflict, match="break it with force"):
        await client.request("conversation:unlock", {"conversation_id": "c"})
    with pytest.raises(Conflict, match="break it with force"):
        await client.request("conversation:unlock", {"conversation_id": "c", "lock_id": "x"})
    broken = await client.request("conversation:unlock", {"conversation_id": "c", "force": True})
    none = await client.request("conversation:unlock", {"conversation_id": "c"})

    assert (broken["was_locked"], none["was_locked"]) == (True, False)


async def test_a_lock_waits_for_the_turn_that_runs(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", ("user", "hello"))
    await open_turn(database_logins, "c", 1)

    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(lock(client, wait_s=30, ttl_s=7))
        await waiting_lock(database_logins)
        assert not taking.done()
        began = asyncio.get_running_loop().time()
        await end_turn(database_logins, "c", 1)

    took_s = asyncio.get_running_loop().time() - began
    assert took_s < 5  # by the word that comes, long before it would look by itself
    (row,) = await run_sql(
        database_logins,
        "SELECT extract(epoch FROM expires_at - clock_timestamp()) AS left "
        "FROM ksi_completion.lock",
    )
    assert 0 < row["left"] <= 7


@pytest.mark.parametrize("wait_s", [0, 0.05])
async def test_a_turn_that_runs_on_is_told_and_the_lock_given_up(
    client: AsyncClient, database_logins: Logins, started: Started, wait_s: float
) -> None:
    await say(database_logins, "c", ("user", "hello"))
    await open_turn(database_logins, "c", 1, "paused")

    with pytest.raises(Busy, match="a turn of the conversation 'c' runs"):
        await lock(client, wait_s=wait_s)

    assert await held(client) == []
    assert started.places == [("default", "c")]


async def test_who_waits_and_goes_away_leaves_no_lock(
    client: AsyncClient, database_logins: Logins, started: Started
) -> None:
    await say(database_logins, "c", ("user", "hello"))
    await open_turn(database_logins, "c", 1)

    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(lock(client, wait_s=30))
        await waiting_lock(database_logins)
        taking.cancel()
    while await held(client):
        pass

    assert ("default", "c") in started.places


@pytest.mark.parametrize(("wait_s", "lost"), [(0, 1), (30, 2)], ids=["at once", "prolonged"])
async def test_a_lock_of_which_nobody_was_told_is_given_back(
    client: AsyncClient,
    conversation: str,
    monkeypatch: pytest.MonkeyPatch,
    wait_s: float,
    lost: int,
) -> None:
    take, asked = Conversations.take_lock, count(1)

    async def answer_lost(store: Conversations, *args: Any, **more: Any) -> LockTaken:
        taken = await take(store, *args, **more)
        if next(asked) == lost:
            raise TimedOut("the query took too long")
        return taken

    monkeypatch.setattr(Conversations, "take_lock", answer_lost)
    with pytest.raises(TimedOut):
        await lock(client, wait_s=wait_s)

    assert await held(client) == []


@pytest.mark.parametrize(
    "wrong", [{"ttl_s": 0}, {"ttl_s": 1e9}, {"owner": ""}, {"wait_s": -1}, {"wait_s": 1e9}]
)
async def test_times_and_owners_have_bounds(
    client: AsyncClient, conversation: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidData):
        await lock(client, **{"owner": "me", **wrong})


async def test_an_agent_breaks_no_lock(
    client: AsyncClient,
    client_of: As,  # noqa: F811  the fixture
) -> None:
    await client.request("conversation:create", {"conversation_id": "c", "agent": "guide"})
    guide = await client_of(agent="guide")
    await lock(client)

    with pytest.raises(Denied, match="lock_id"):
        await guide.request("conversation:unlock", {"conversation_id": "c", "force": True})


# -- other daemons -------------------------------------------------------------------------------


async def test_a_lock_is_one_lock_for_all_daemons(
    client: AsyncClient, conversation: str, database_logins: Logins, started: Started
) -> None:
    elsewhere = Started()
    with tempfile.TemporaryDirectory(prefix="ksi-test-") as home:
        plugins = (postgres(), conversing(elsewhere))
        settings = settings_for(database_logins)
        async with (
            running_daemon(Path(home), *plugins, settings=settings) as daemon,
            AsyncClient(LocalTransport(daemon)) as other,
        ):
            first = await lock(client, "here")
            with pytest.raises(Busy, match="'here'"):
                await lock(other, "there")

            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(lock(other, "there", wait_s=30))
                assert elsewhere.locks is not None
                while not elsewhere.locks._waiting:
                    await held(other)
                await held(other)  # it has asked by then, and been told that it is locked
                began = asyncio.get_running_loop().time()
                await client.request(
                    "conversation:unlock", {"conversation_id": "c", "lock_id": first["lock_id"]}
                )
            took_s = asyncio.get_running_loop().time() - began

    assert waiting.result()["owner"] == "there"
    assert took_s < 5  # by the word that comes, long before it would look by itself
    assert started.places == [("default", "c")]


async def test_a_turn_that_ends_elsewhere_lets_who_waits_go_on_after_postgres_was_away(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", ("user", "hello"))
    await open_turn(database_logins, "c", 1)

    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(lock(client, wait_s=30))
        await waiting_lock(database_logins)
        await run_sql(
            database_logins,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'ksi watch'",
        )
        await end_turn(database_logins, "c", 1)

    assert taking.result()["owner"] == "me"

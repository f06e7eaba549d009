"""Agents are given work by themselves: at times, and when events happen."""

from typing import Any

import pytest

from ksi_agents.tests.helpers import change, get, spawned, until
from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script

pytestmark = pytest.mark.usefixtures("script")

EVERY_SECOND = "* * * * * *"


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["agents.sweep_s=0.1"]


async def schedules(client: AsyncClient) -> list[str]:
    listed = await client.request("workflow:schedules")
    return [each["name"] for each in listed["schedules"]]


async def had(client: AsyncClient, name: str = "bob") -> Any:
    """Wait until an agent has worked off a message, and return it."""
    shown = await until(
        client,
        lambda it: any(each["status"] == "succeeded" for each in it["mailbox"]),
        name,
        "mailbox",
    )
    return next(each for each in shown["mailbox"] if each["status"] == "succeeded")


async def test_an_agent_is_told_what_to_do_when_its_time_comes(client: AsyncClient) -> None:
    await spawned(client, fields={"schedule": [{"cron": EVERY_SECOND, "prompt": "look around"}]})

    assert (await had(client))["prompt"] == "look around"


async def test_an_agent_that_has_ended_is_woken_no_more(client: AsyncClient) -> None:
    wakes = [{"cron": "0 7 * * *", "prompt": "wake"}, {"cron": "0 8 * * *", "prompt": "work"}]
    await spawned(client, fields={"schedule": wakes})
    assert await schedules(client) == ["agent:bob:0", "agent:bob:1"]

    await change(client, "terminate", "bob")

    assert await schedules(client) == []


async def test_an_event_wakes_who_waits_for_it_and_nobody_else(client: AsyncClient) -> None:
    fields = {"schedule": [{"event": "parcel:*", "prompt": "Somebody is at the door."}]}
    await spawned(client, fields=fields)
    await spawned(client, "ann")

    await client.request("router:publish", {"event": "letter:came", "data": {"from": "cat"}})
    await client.request("router:publish", {"event": "parcel:came", "data": {"from": "dan"}})

    mail = await had(client)
    assert mail["prompt"].startswith("Somebody is at the door.")
    assert "parcel:came" in mail["prompt"]
    assert "dan" in mail["prompt"]
    assert len((await get(client, "bob", "mailbox"))["mailbox"]) == 1
    assert (await get(client, "ann", "mailbox"))["mailbox"] == []


async def test_an_agent_does_not_wake_itself(client: AsyncClient, script: Script) -> None:
    fields = {"schedule": [{"event": "completion:result", "prompt": "What was that?"}]}
    await spawned(client, fields=fields)
    await spawned(client, "ann")

    await client.request("agent:ask", {"agent": "ann", "prompt": "hello"})

    await had(client)  # ann's turn has woken bob; his own one does not
    await until(client, lambda it: it["phase"] == "Ready")
    assert len((await get(client, "bob", "mailbox"))["mailbox"]) == 1
    assert len(script.calls) == 2

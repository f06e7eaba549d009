"""Who follows a turn hears of the turns that are asked for within it."""

import asyncio
from typing import Any

import pytest

from ksi_agents.tests.helpers import spawned
from ksi_agents.tests.test_delegation import NEEDED, asking
from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    """Agents and what they need, with a double for the models."""
    return [*installed_plugins(*NEEDED), script.plugin()]


async def children(client: AsyncClient, run: str, **more: Any) -> Any:
    listed = await client.request("completion:children", {"run_id": run, **more})
    return listed["turns"]


@pytest.mark.parametrize("agent", ["define", "bob"])
async def test_a_turn_s_children_are_told_while_it_waits_for_them(
    client: AsyncClient, script: Script, agent: str
) -> None:
    if agent == "bob":
        await spawned(client, agent)
    script.say(asking(agent, "What is a heron?"), "A bird.", "It is a bird.")
    script.gate = asyncio.Event()
    run = (await client.request("completion:async", {"prompt": "Herons?", "tools": ["*"]}))[
        "run_id"
    ]

    (child,) = await children(client, run, wait_s=20)
    script.gate.set()
    await client.request("completion:wait", {"run_id": run, "timeout_s": 20})
    later = await children(client, run, known=1)

    assert child["agent"] == agent
    if agent == "define":  # bob has a mailbox, whose requests have ids of their own
        assert child["request_id"] == f"{run}:1:0"
    assert child["status"] in ("waiting", "running")
    assert [each["status"] for each in later] == ["succeeded"]


async def test_children_of_a_turn_that_has_none_are_waited_for_as_long_as_is_asked(
    client: AsyncClient, script: Script
) -> None:
    run = (await client.request("completion:async", {"prompt": "hello"}))["run_id"]

    assert await children(client, run, wait_s=0.01) == []


async def test_children_are_told_to_nobody_whose_they_are_not(
    client: AsyncClient, script: Script
) -> None:
    script.say(asking("define", "What is a heron?"), "A bird.", "It is a bird.")
    anna, ben = {"user": "anna"}, {"user": "ben"}
    asked = {"prompt": "Herons?", "tools": ["*"]}
    run = (await client.request("completion:async", asked, context=anna))["run_id"]
    await client.request("completion:wait", {"run_id": run, "timeout_s": 20}, context=anna)

    of_anna, of_ben = [
        (await client.request("completion:children", {"run_id": run}, context=who))["turns"]
        for who in (anna, ben)
    ]

    assert len(of_anna) == 1
    assert of_ben == []

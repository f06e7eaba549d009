"""What a run of a workflow may take, with all the turns within it."""

from typing import Any

import pytest

from ksi_agents.tests import stage_plugin
from ksi_agents.tests.helpers import ask, spawned
from ksi_client import AsyncClient, Denied, InvalidData, NotFound
from ksi_completion.tests.doubles import Script
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins, module_plugin

NEEDED = ("postgres", "workflows", "tools", "completion", "agents")
REFUSED = "has made 2 calls of models, and may make 2"


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    """Agents and what they need, a stage, and a double for the models."""
    installed = installed_plugins(*NEEDED)
    return [*installed, script.plugin(), module_plugin("stage", **vars(stage_plugin))]


async def play(
    client: AsyncClient, *lines: tuple[str, str], above: str | None = None, **limits: Any
) -> tuple[str, Any]:
    """Perform a play; return its run, and what was said in it."""
    args = {"lines": lines, "limits": limits, "above": above}
    started = await client.request("workflow:start", {"name": "play", "args": args})
    run: str = started["run_id"]
    outcome = await client.request("workflow:result", {"run_id": run, "timeout_s": 30})
    assert outcome["status"] == "finished", outcome
    return run, outcome["output"]


async def test_turns_within_a_run_are_refused_when_it_has_taken_what_it_may(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client, "ann")
    await spawned(client, "bob")
    script.say("first", "second", "after the play")

    run, said = await play(client, ("ann", "1"), ("bob", "2"), ("ann", "3"), requests=2)
    after = await ask(client, "4", "ann")

    assert said[:2] == ["first", "second"]
    assert f"the run {run} {REFUSED}" in said[2]
    assert after["text"] == "after the play"
    spent = await client.request("agent:spent", {"run_id": run})
    assert (spent["requests"], spent["cost_usd"], spent["limits"]) == (2, 1.0, {"requests": 2})


async def test_the_bare_model_and_turns_of_nobody_count_in_a_run_too(
    client: AsyncClient, script: Script
) -> None:
    script.say("first", "second")

    run, said = await play(client, ("model", "1"), ("nobody", "2"), ("model", "3"), requests=2)
    _, others = await play(client, ("nobody", "1"), ("nobody", "2"), requests=1)

    assert said[:2] == ["first", "second"]
    assert f"the run {run} {REFUSED}" in said[2]
    assert [text.endswith("may make 1 (limits.requests)") for text in others] == [False, True]


async def test_a_run_without_bounds_is_only_counted(client: AsyncClient) -> None:
    run, _ = await play(client, ("model", "1"), ("nobody", "2"))

    spent = await client.request("agent:spent", {"run_id": run})
    assert (spent["requests"], spent.get("limits", {})) == (2, {})


async def test_what_a_run_takes_counts_in_the_run_above_it(client: AsyncClient) -> None:
    above, _ = await play(client, ("model", "1"), requests=2)

    _, said = await play(client, ("nobody", "2"), ("nobody", "3"), above=above, requests=9)

    assert f"the run {above} {REFUSED}" in said[1]
    assert (await client.request("agent:spent", {"run_id": above}))["requests"] == 2
    with pytest.raises(InvalidData, match="not part of itself"):
        await client.request("agent:limit", {"run_id": above, "parent_run_id": above})


async def test_limits_are_said_anew_and_what_was_taken_stays(client: AsyncClient) -> None:
    run, _ = await play(client, ("model", "1"), requests=1)

    changed = await client.request("agent:limit", {"run_id": run, "limits": {"tokens": 9}})

    assert (changed["requests"], changed["limits"]) == (1, {"tokens": 9})


async def test_a_run_that_is_not_there_has_no_limits(client: AsyncClient) -> None:
    for event in ("agent:limit", "agent:spent"):
        with pytest.raises(NotFound, match="there is no run elsewhere"):
            await client.request(event, {"run_id": "elsewhere"})


async def test_a_turn_keeps_the_limits_of_its_agent(client: AsyncClient) -> None:
    await spawned(client, "ann")
    answer = await ask(client, "1", "ann")

    with pytest.raises(InvalidData, match="is a turn, and has the limits of its agent"):
        await client.request("agent:limit", {"run_id": answer["run_id"]})


async def test_an_agent_does_not_say_itself_what_its_run_may_take(
    client: AsyncClient, connect: Any
) -> None:
    run, _ = await play(client, requests=1)
    grants = {"call": ["agent:*", "workflow:*"]}
    data = {"name": "bot", "grants": grants, "ttl_s": 60, "agent": "bot", "run": run}
    bot = await connect(token=(await client.request("token:create", data))["token"])

    with pytest.raises(Denied, match="does not say itself"):
        await bot.request("agent:limit", {"run_id": run, "limits": {"requests": 9}})

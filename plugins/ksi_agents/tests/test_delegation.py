"""Agents have others work for them: by the tool ``ask_agent``, and by a router."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_agents.definition import Definition
from ksi_agents.routing import best
from ksi_agents.tests.helpers import ask, document, spawned
from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script, calling, response
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Failed
from ksi_daemon.testing import installed_plugins
from ksi_models.events import ModelCall, ModelChunk, TextPart, ToolResultPart

NEEDED = ("postgres", "workflows", "tools", "completion", "agents")


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    """Agents and what they need, with a double for the models."""
    installed = installed_plugins(*NEEDED)
    return [*installed, script.plugin()]


def asking(agent: str, prompt: str) -> Any:
    """Return an answer that asks an agent."""
    return calling(("ask_agent", json.dumps({"agent": agent, "prompt": prompt})))


async def have(client: AsyncClient, agent: str, prompt: str) -> Any:
    """Have an agent's turn, without the agent having been spawned."""
    accepted = await client.request("completion:async", {"agent": agent, "prompt": prompt})
    asked = {"run_id": accepted["run_id"], "timeout_s": 20}
    result = await client.request("completion:wait", asked)
    assert result["status"] == "succeeded", result
    return result


async def apply(client: AsyncClient, **fields: Any) -> None:
    applied = await client.request("agent:apply", {"documents": [document(**fields)]})
    assert [each["action"] for each in applied["applied"]] == ["created"]


def told(call: ModelCall) -> ToolResultPart:
    """Return what came of the tool call before a call of the model."""
    (part,) = call.messages[-1].parts
    assert isinstance(part, ToolResultPart)
    return part


async def test_a_router_s_model_asks_an_agent_and_answers_with_what_it_says(
    client: AsyncClient, script: Script
) -> None:
    script.say(asking("define", "What is a heron?"), "A bird.", "It is a bird, says define.")

    result = await have(client, "router", "Tell me of herons.")

    router, define, again = script.calls
    assert result["text"] == "It is a bird, says define."
    assert "- critic: " in (router.system or "")  # it is told whom it may ask
    assert "{{" not in (router.system or "")
    assert router.system != define.system
    assert told(again).content == "A bird."


async def test_the_words_of_a_request_choose_the_agent_before_a_model_does(
    client: AsyncClient, script: Script
) -> None:
    await apply(client, name="landlord", prompt="You are the landlord.", routes=["rent*", "lease"])

    await have(client, "router", "When is the RENT due?")
    await have(client, "router", "When is the party?")

    chosen, not_chosen = script.calls
    assert chosen.system == "You are the landlord."
    assert (not_chosen.system or "").startswith("You hand requests to the agents")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("how much is the rent", "a"),
        ("renting and leasing a house", "a"),
        ("open a bank account", "b"),
        ("rent and a bank account", None),  # as much for one as for the other
        ("current affairs", None),  # a word as a whole, not a part of one
        ("", None),
    ],
)
def test_the_agent_with_the_most_words_is_chosen_and_none_of_two_equals(
    prompt: str, expected: str | None
) -> None:
    known = [
        Definition(name="a", routes=("rent*", "leas*")),
        Definition(name="b", routes=("bank account",)),
        Definition(name="c"),
    ]

    assert best(prompt, known) == expected


async def test_what_goes_wrong_is_told_to_who_asked(client: AsyncClient, script: Script) -> None:
    script.say(asking("define", "x"), Failed("no words left"), "It has failed.")

    await have(client, "router", "Tell me of herons.")

    assert told(script.calls[-1]).is_error
    assert "the agent define failed: no words left" in told(script.calls[-1]).content


async def test_an_unknown_agent_is_told_with_the_nearest_name(
    client: AsyncClient, script: Script
) -> None:
    script.say(asking("defien", "x"), "There is none.")

    await have(client, "router", "Tell me of herons.")

    assert "did you mean define?" in told(script.calls[-1]).content


async def test_who_may_not_delegate_is_not_offered_it(client: AsyncClient, script: Script) -> None:
    await have(client, "define", "What is a heron?")

    assert "ask_agent" not in {tool.name for tool in script.calls[0].tools}


async def test_one_that_waits_already_is_not_asked_by_way_of_another(
    client: AsyncClient, script: Script
) -> None:
    await apply(client, name="between", prompt="You ask.", tools=["ask_agent"])
    await spawned(client, "boss", {"tools": ["ask_agent"]})
    script.say(asking("between", "go"), asking("boss", "back"), "I could not.", "Well then.")

    answered = await ask(client, "go", "boss")

    assert answered["text"] == "Well then."
    refused = told(script.calls[2])
    assert refused.is_error
    assert "a circle" in refused.content


async def test_definitions_that_ask_one_another_in_a_circle_end_by_their_depth(
    client: AsyncClient, script: Script
) -> None:
    async def hand_on(request: ModelCall) -> AsyncIterator[ModelChunk]:
        """Ask the other one, and say what came of it."""
        (last,) = request.messages[-1].parts
        if isinstance(last, ToolResultPart):
            yield response((TextPart(last.content),))
        else:
            other = "ping" if "pong" in (request.system or "") else "pong"
            yield response(asking(other, "And you?"))

    await apply(client, name="ping", prompt="You are ping.", tools=["ask_agent"])
    await apply(client, name="pong", prompt="You are pong.", tools=["ask_agent"])
    script.say(*[hand_on] * 100)

    result = await have(client, "ping", "Who begins?")

    turns = await client.request("completion:list", {})
    assert [turn["status"] for turn in turns["turns"]] == ["succeeded"] * 6  # the first, and five
    assert len(script.calls) == 12
    assert "as many turns as may wait for one another already" in result["text"]
    assert "answer without asking another agent" in result["text"]

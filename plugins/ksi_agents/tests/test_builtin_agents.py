"""The agents that are built in, each at work with a model that does as it is told."""

from typing import Any

import pytest

from ksi_agents.standing import Standing
from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script, calling
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_models.events import ModelCall, ToolResultPart

NEEDED = ("postgres", "workflows", "tools", "completion", "memory", "agents")


@pytest.fixture
def ksi_settings_of_memory() -> list[str]:
    """No vectors are needed here."""
    return ["memory.embedder=none"]


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    """Agents, memory and what they need, with a double for the models."""
    installed = installed_plugins(*NEEDED)
    return [*installed, script.plugin()]


async def ask(client: AsyncClient, agent: str, prompt: str) -> Any:
    """Have a built-in agent answer, without it having been spawned."""
    accepted = await client.request("completion:async", {"agent": agent, "prompt": prompt})
    result = await client.request(
        "completion:wait", {"run_id": accepted["run_id"], "timeout_s": 20}
    )
    assert result["status"] == "succeeded", result
    return result["text"]


def prompt_of(agent: str) -> str:
    standing = Standing().find(agent)
    assert standing is not None
    return standing.definition.prompt


def tools_of(call: ModelCall) -> set[str]:
    return {tool.name for tool in call.tools}


async def test_general_answers_and_may_call_what_only_reads(
    client: AsyncClient, script: Script
) -> None:
    script.say(calling(("current_time", "{}")), "It is late.")

    assert await ask(client, "general", "How late is it?") == "It is late."

    first, second = script.calls[:2]
    assert prompt_of("general") in (first.system or "")
    assert {"current_time", "memory_search"} <= tools_of(first)
    assert not {"memory_save", "memory_forget"} & tools_of(first)
    (result,) = second.messages[-1].parts
    assert isinstance(result, ToolResultPart)
    assert not result.is_error


async def test_researcher_looks_into_the_memory_and_names_its_source(
    client: AsyncClient, script: Script
) -> None:
    fact = {"key": "heron-nest", "title": "Herons", "body": "The heron nests on the north shore."}
    await client.request("memory:upsert", {"table": "facts", "items": [fact]})
    script.say(calling(("memory_search", '{"query": "heron"}')), "On the north shore [heron-nest].")

    answer = await ask(client, "researcher", "Where does the heron nest?")

    assert answer == "On the north shore [heron-nest]."
    first, second = script.calls[:2]
    assert prompt_of("researcher") in (first.system or "")
    assert {"memory_search", "memory_why", "memory_save"} <= tools_of(first)
    assert "memory_forget" not in tools_of(first)
    (result,) = second.messages[-1].parts
    assert isinstance(result, ToolResultPart)
    assert "north shore" in result.content
    assert "heron-nest" in result.content


async def test_critic_ends_with_a_verdict_and_changes_nothing(
    client: AsyncClient, script: Script
) -> None:
    script.say(calling(("memory_save", "{}")), "“Always”: it is not always.\nVerdict: not sound")

    answer = await ask(client, "critic", "Review: herons always nest in the north.")

    assert answer.splitlines()[-1] == "Verdict: not sound"
    first, second = script.calls[:2]
    assert prompt_of("critic") in (first.system or "")
    assert tools_of(first) <= {"memory_search", "current_time"}
    assert first.settings.temperature == 0.2
    (refused,) = second.messages[-1].parts
    assert isinstance(refused, ToolResultPart)
    assert refused.is_error


async def test_define_says_what_a_word_means_in_few_requests(
    client: AsyncClient, script: Script
) -> None:
    script.say("A heron is a long-legged wading bird.")

    assert await ask(client, "define", "heron") == "A heron is a long-legged wading bird."

    (call,) = script.calls[:1]
    assert prompt_of("define") in (call.system or "")
    assert tools_of(call) <= {"memory_search"}
    assert call.settings.temperature == 0


@pytest.mark.parametrize("agent", ["blend", "summarizer"])
async def test_blend_and_summarizer_have_nothing_but_what_they_are_given(
    client: AsyncClient, script: Script, agent: str
) -> None:
    fact = {"key": "heron-nest", "title": "Herons", "body": "The heron nests on the north shore."}
    await client.request("memory:upsert", {"table": "facts", "items": [fact]})
    script.say("Herons nest.")

    assert await ask(client, agent, "The heron nests. Herons nest in spring.") == "Herons nest."

    (call,) = script.calls[:1]
    assert prompt_of(agent) in (call.system or "")
    assert "north shore" not in (call.system or "")
    assert call.tools == ()

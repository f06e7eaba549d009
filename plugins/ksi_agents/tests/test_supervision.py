"""Agents are started, probed, started again, and given up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_agents.definition import Probe
from ksi_agents.probes import question_of
from ksi_agents.tests.helpers import ask, change, conditions, get, send, spawned, until
from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script, response
from ksi_completion.tests.test_turns import words_of
from ksi_daemon.protocol import Failed
from ksi_models.events import ModelCall, ModelChunk, TextPart

HEALTHY = {"kind": "custom", "prompt": "How are you?", "expect": "HEALTHY"}

pytestmark = pytest.mark.usefixtures("script")


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["agents.sweep_s=0.05", "agents.probe_timeout_s=5", "completion.patience_s=0.2"]


async def clever(request: ModelCall) -> AsyncIterator[ModelChunk]:
    """Do as one is told."""
    words = words_of(request.messages)[-1].split()
    answer = words[-1]
    if "plus" in words:
        answer = str(int(words[2]) + int(words[4].rstrip("?")))
    yield response((TextPart(f" {answer}\n"),))


def restarting(**fields: Any) -> dict[str, Any]:
    return {"restart": {"delay_s": 0.01, **fields}}


# -- probes --------------------------------------------------------------------------------------


async def test_an_agent_that_knows_what_it_must_is_ready(
    client: AsyncClient, script: Script
) -> None:
    script.say(clever, clever, "HEALTHY")

    agent = await spawned(
        client, fields={"probes": [{"kind": "echo"}, {"kind": "reasoning"}, HEALTHY]}
    )

    assert agent["phase"] == "Ready"
    assert (await conditions(client))["Probed"]["reason"] == "Passed"
    assert len(script.calls) == 3
    listed = await client.request("conversation:list", {})
    assert listed["conversations"] == []  # nothing is left of them


@pytest.mark.parametrize("said", ["UNHEALTHY", "I am HEALTHY", "healthy", "HEALTHY.", "HEAL THY"])
async def test_a_wrong_answer_passes_no_probe(
    client: AsyncClient, script: Script, said: str
) -> None:
    script.say(said)

    agent = await spawned(client, fields={"probes": [HEALTHY], "restart": {"policy": "never"}})

    assert (agent["phase"], agent["reason"]) == ("Failed", "ProbeFailed")
    ready = (await conditions(client))["Ready"]
    assert ready["status"] == "False"
    assert said in ready["message"]


async def test_an_agent_that_fails_a_probe_is_asked_again(
    client: AsyncClient, script: Script
) -> None:
    script.say("UNHEALTHY", Failed("broken"), "HEALTHY", "work")

    await spawned(client, fields={"probes": [HEALTHY], **restarting()}, prompt="go")
    agent = await until(client, lambda it: it["phase"] == "Ready")

    assert agent["restarts"] == 2
    assert words_of(script.calls[-1].messages) == ["go"]
    kinds = [
        entry["kind"] for entry in (await client.request("agent:logs", {"name": "bob"}))["entries"]
    ]
    assert kinds == ["message", "ready", "failed", "failed", "spawned"]


async def test_a_probe_that_is_not_answered_in_time_has_failed(
    client: AsyncClient, script: Script
) -> None:
    script.gate = asyncio.Event()
    script.say("HEALTHY")
    probe = {**HEALTHY, "timeout_s": 0.2}

    agent = await spawned(client, fields={"probes": [probe], "restart": {"policy": "never"}})

    assert (agent["phase"], agent["reason"]) == ("Failed", "ProbeFailed")
    assert (await client.request("conversation:list", {}))["conversations"] == []


@given(st.sampled_from(["echo", "reasoning"]), st.text(max_size=20), st.text(max_size=20))
def test_a_question_has_one_answer_for_each_start(kind: Any, seed: str, other: str) -> None:
    question = question_of(Probe(kind=kind), seed)

    assert question == question_of(Probe(kind=kind), seed)
    assert question.is_answered_by(f" {question.expected}\n")
    assert not question.is_answered_by(f"UN{question.expected}")
    assert not question.is_answered_by(f"{question.expected}{question.expected}")
    assert not question.is_answered_by(None)
    assert question.is_answered_by(other) == (other.strip() == question.expected)


# -- restarts ------------------------------------------------------------------------------------


async def test_an_agent_that_fails_is_started_again_and_keeps_its_mailbox(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client, fields=restarting())
    script.say(Failed("broken"), "fine")

    for prompt in ("one", "two"):
        await send(client, prompt)
    agent = await until(client, lambda it: it["phase"] == "Ready" and not it["waiting"])

    assert agent["restarts"] == 1
    shown = await get(client, "bob", "mailbox")
    assert [mail["status"] for mail in shown["mailbox"]] == ["failed", "succeeded"]


async def test_an_agent_that_fails_too_often_is_given_up_until_it_is_restarted(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client, fields=restarting(max_restarts=2))
    script.say(*[Failed("broken")] * 3, "fine")
    for number in range(4):
        await send(client, f"m{number}", message_id=f"m{number}")

    agent = await until(client, lambda it: it["phase"] == "Failed")
    told = await ask(client, "m3", message_id="m3", timeout_s=10)
    health = await client.request("system:health", {})
    await change(client, "restart", "bob")
    answer = await ask(client, "m3", message_id="m3")

    assert (agent["reason"], agent["waiting"]) == ("CrashLoopBackOff", 1)
    assert (told["status"], told["error"]["code"]) == ("waiting", "unavailable")
    assert "agent:restart" in told["error"]["message"]
    assert answer["text"] == "fine"
    (of_agents,) = [each for each in health["plugins"] if each["plugin"] == "agents"]
    assert of_agents["health"] == "degraded"
    assert "bob" in of_agents["why"]


async def test_pauses_between_restarts_double_up_to_a_bound(
    client: AsyncClient, script: Script
) -> None:
    fields = restarting(delay_s=0.1, max_delay_s=0.3, max_restarts=10)
    await spawned(client, fields=fields)
    script.say(*[Failed("broken")] * 4)
    for number in range(4):
        await send(client, f"m{number}")

    await until(client, lambda it: it["phase"] == "Ready" and not it["waiting"])

    logs = await client.request("agent:logs", {"name": "bob"})
    failed = [each["message"] for each in logs["entries"] if each["kind"] == "failed"]
    assert [message.rpartition(" in ")[2] for message in reversed(failed)] == [
        "0.1 s",
        "0.2 s",
        "0.3 s",
        "0.3 s",
    ]


async def test_failures_of_long_ago_do_not_count(client: AsyncClient, script: Script) -> None:
    fields = restarting(max_restarts=1, window_s=0.001)
    await spawned(client, fields=fields)
    script.say(*[Failed("broken")] * 4)

    for number in range(4):
        await ask(client, f"m{number}")
    agent = await until(client, lambda it: it["phase"] == "Ready")

    assert agent["restarts"] == 4


@pytest.mark.parametrize(
    ("policy", "phase", "reason"),
    [("never", "Failed", "TurnFailed"), ("always", "Ready", "")],
)
async def test_the_policy_says_whether_an_agent_is_started_again(
    client: AsyncClient, script: Script, policy: str, phase: str, reason: str
) -> None:
    await spawned(client, fields=restarting(policy=policy, max_restarts=0))
    script.say(Failed("broken"))

    await ask(client)
    agent = await until(client, lambda it: it["phase"] in ("Ready", "Failed"))

    assert (agent["phase"], agent.get("reason", "")) == (phase, reason)


async def test_an_agent_terminated_between_restarts_is_not_started_again(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client, fields=restarting(delay_s=0.3))
    script.say(Failed("broken"))
    await ask(client)
    assert (await get(client))["phase"] == "Pending"

    await change(client, "terminate", "bob")
    await asyncio.sleep(0.5)  # longer than the pause

    assert (await get(client))["phase"] == "Terminated"


async def test_an_agent_that_answers_nonsense_where_a_schema_was_asked_for_has_failed(
    client: AsyncClient, script: Script
) -> None:
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
    await spawned(client, fields={**restarting(), "output": schema})
    script.say("a banana", '{"age": "old"}', '{"age": 7} or so', '{"age": 8}')

    nonsense = await ask(client, "How old?")
    sense = await ask(client, "How old?")

    assert nonsense["status"] == "failed"
    assert "output" not in nonsense
    assert "does not fit the output_schema" in nonsense["error"]["message"]
    assert nonsense["error"]["details"]["setting"] == "completion.output_retries"
    assert (sense["status"], sense["output"]) == ("succeeded", {"age": 8})
    assert (await get(client))["restarts"] == 1

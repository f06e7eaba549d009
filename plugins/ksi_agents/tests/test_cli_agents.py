"""Agents whose model is a command: it is watched, ended, explained and started again."""

from typing import Any

import pytest

from ksi_agents.tests.helpers import ask, get, spawned, until
from ksi_client import AsyncClient
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_models.testing import FakeClaude

NEEDED = ("postgres", "workflows", "models", "tools", "completion", "agents")


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """Agents with the real models."""
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings(fake_claude: FakeClaude) -> list[str]:
    """Point the daemon at a fake command that may hold little memory, and is asked once."""
    return [
        *fake_claude.settings,
        'models.providers={"claude-cli": {"memory_mb": 150}}',
        "models.max_attempts=1",
        "completion.patience_s=0",
        "agents.sweep_s=0.05",
    ]


async def said_in_the_log(client: AsyncClient) -> list[str]:
    logs = await client.request("agent:logs", {"name": "bob"})
    return [entry["message"] for entry in logs["entries"] if entry["kind"] == "message"]


def on(model: str) -> dict[str, Any]:
    return {"model": f"claude-cli/{model}", "restart": {"delay_s": 0.01, "max_restarts": 3}}


async def test_an_agent_whose_process_takes_too_much_is_started_again_and_says_why(
    client: AsyncClient,
) -> None:
    await spawned(client, fields=on("eat"))

    answer = await ask(client, "Read it all.")
    agent = await until(client, lambda agent: agent["phase"] == "Ready")

    assert (answer["status"], answer["error"]["code"]) == ("failed", "failed")
    assert answer["error"]["details"]["setting"] == "models.providers.claude-cli.memory_mb"
    (told,) = await said_in_the_log(client)
    assert "MB of memory and may hold 150; it said: reading it all" in told
    assert agent["restarts"] == 1


async def test_an_agent_whose_process_dies_says_how_and_what_it_said_at_its_end(
    client: AsyncClient,
) -> None:
    await spawned(client, fields=on("quit"))

    await ask(client, "Go.")

    (told,) = await said_in_the_log(client)
    assert "ended with the exit code 3 without an answer; it said: this / that / and ***" in told
    assert "secretsecret" not in told


async def test_an_agent_goes_on_when_its_process_works_again(
    client: AsyncClient, fake_claude: FakeClaude
) -> None:
    command = fake_claude.command.read_text()
    await spawned(client, fields=on("sonnet"))
    fake_claude.command.write_text("#!/bin/sh\necho no disk left >&2; kill -TERM $$\n")
    failed = await ask(client, "one")
    fake_claude.command.write_text(command)

    answer = await ask(client, "two")

    assert "was ended by SIGTERM without an answer; it said: no disk" in failed["error"]["message"]
    assert answer["status"] == "succeeded"
    assert answer["text"].endswith("two")
    assert (await get(client))["restarts"] == 1

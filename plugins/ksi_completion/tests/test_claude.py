"""Turns with the claude command, in a daemon in which nothing gives it tools."""

from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_completion.tests.test_turns import ask, ended
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_models.testing import FakeClaude

NEEDED = ("postgres", "workflows", "models", "tools", "completion")


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """Turns with the real models and tools."""
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings(fake_claude: FakeClaude) -> list[str]:
    """Point the daemon at a fake command, which is logged in: so it is the default."""
    looked_for = ["models.find_local=false", "models.keyring=false", "models.model="]
    return [*fake_claude.settings, *looked_for]


async def said(client: AsyncClient, prompt: str, **more: Any) -> Any:
    accepted = await ask(client, prompt, conversation_id="c", **more)
    return await ended(client, accepted["run_id"])


async def test_whoever_is_logged_in_with_claude_talks_to_it_in_one_session(
    client: AsyncClient, fake_claude: FakeClaude
) -> None:
    first = await said(client, "Explain quantum computing")
    second = await said(client, "And shorter?")

    assert (first["status"], first["model"]) == ("succeeded", "claude-cli/sonnet")
    assert first["text"] == "Explain quantum computing"
    assert second["text"] == "And shorter?"
    assert ["--resume" in run["arguments"] for run in fake_claude.runs] == [False, True]


async def test_what_is_shown_beforehand_offers_it_no_tools_either(client: AsyncClient) -> None:
    shown = await client.request("completion:preview", {"turn": {"prompt": "hello"}})

    assert (shown["model"], shown["tools"]) == ("claude-cli/sonnet", [])


@pytest.mark.parametrize(
    ("model", "code", "told"),
    [("login", "denied", "log in"), ("has-tools", "invalid_data", "tool")],
)
async def test_why_it_does_not_answer_is_told(
    client: AsyncClient, model: str, code: str, told: str
) -> None:
    result = await said(client, "hello", model=f"claude-cli/{model}")

    assert (result["status"], result["error"]["code"]) == ("failed", code)
    assert told in result["error"]["message"]

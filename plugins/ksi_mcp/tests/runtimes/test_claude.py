"""The claude command in a daemon: its model's calls are the turn's, and it is tried before."""

import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.confinement import Confined
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import TokenStore
from ksi_daemon.protocol import KsiError
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_models.providers import claude_cli
from ksi_models.testing import FakeClaude
from ksi_tools.api import Tools, tool

NEEDED = ("postgres", "workflows", "models", "tools", "completion", "mcp")


class Till:
    """A plugin with a tool that counts what it takes."""

    def __init__(self, fake: FakeClaude) -> None:
        self.paid: list[str] = []
        self._fake = fake

    @hookimpl
    def ksi_plugin(self) -> PluginInfo:
        return PluginInfo(requires=("tools",))

    @hookimpl
    async def ksi_lifespan(self, plugin: Plugin) -> AsyncIterator[None]:
        @tool(effects="effectful", name="pay")
        async def pay(what: str) -> str:
            """Pay for something."""
            self.paid.append(what)
            return f"paid for {what}"

        @tool(effects="effectful", name="pay_and_kill")
        async def pay_and_kill(what: str) -> str:
            """Pay for something, and kill the command that waits for that."""
            os.kill(self._fake.runs[-1]["pid"], signal.SIGKILL)
            self.paid.append(what)
            return f"paid for {what}"

        with plugin.service(Tools).add(pay, pay_and_kill, provider=plugin.name):
            yield


@pytest.fixture
def till(fake_claude: FakeClaude) -> Till:
    return Till(fake_claude)


@pytest.fixture
def ksi_plugins(till: Till) -> list[EntryPoint]:
    """Turns with the real models, tools and MCP."""
    return [
        *installed_plugins(*NEEDED),
        module_plugin("till", ksi_plugin=till.ksi_plugin, ksi_lifespan=till.ksi_lifespan),
    ]


@pytest.fixture
def ksi_settings(fake_claude: FakeClaude) -> list[str]:
    """Point the daemon at a fake command, which is tried once for each call."""
    return [*fake_claude.settings, "models.max_attempts=1", "completion.patience_s=0"]


async def turn(client: AsyncClient, *steps: dict[str, Any]) -> Any:
    prompt = json.dumps({"steps": steps})
    asked = {"prompt": prompt, "model": "claude-cli/sonnet", "conversation_id": "c", "tools": ["*"]}
    accepted = await client.request("completion:async", asked)
    return await client.request("completion:wait", {"run_id": accepted["run_id"], "timeout_s": 40})


def call(name: str, what: str) -> dict[str, Any]:
    return {"name": name, "arguments": {"what": what}}


async def test_the_turn_makes_the_calls_of_its_model_and_the_same_process_goes_on(
    client: AsyncClient, fake_claude: FakeClaude, till: Till
) -> None:
    ended = await turn(
        client,
        {"think": "First.", "calls": [call("pay", "bread"), call("pay", "wine")]},
        {"calls": [{"name": "Bash", "arguments": {}}, call("pay", "fish")]},
        {"say": "All is paid."},
    )

    assert (ended["status"], ended["text"]) == ("succeeded", "All is paid."), ended
    assert till.paid == ["bread", "wine", "fish"]
    calls = await client.request("tool:calls", {})
    assert [(each["name"], each["status"]) for each in calls["calls"]] == [("pay", "done")] * 3
    assert ended["usage"]["output_tokens"] == 3
    (run,) = fake_claude.runs
    arguments = run["arguments"]
    assert arguments[arguments.index("--tools") + 1] == ""
    assert arguments[arguments.index("--allowedTools") + 1] == "mcp__ksi"
    assert arguments[arguments.index("--permission-mode") + 1] == "dontAsk"
    assert "ksi_" not in json.dumps([arguments, run["environ"]])  # no token
    with pytest.raises(KsiError, match="only the server of a program's conversation"):
        await client.request("mcp:session_call", {"name": "pay"})


async def test_nothing_is_done_twice_where_the_process_is_killed_as_it_waits(
    client: AsyncClient, fake_claude: FakeClaude, till: Till
) -> None:
    ended = await turn(client, {"calls": [call("pay_and_kill", "bread")]}, {"say": "unheard"})

    assert ended["status"] == "succeeded", ended["error"]
    assert till.paid == ["bread"]
    assert len(fake_claude.runs) == 2
    assert "paid for bread" in ended["text"]  # the second one repeats what it was told
    assert "don't call them again" in ended["text"]


# -- the canary -----------------------------------------------------------------------------------


async def ways(client: AsyncClient) -> tuple[str, dict[str, str]]:
    """Have the command asked, which has a new one tried; return what is known of it then."""
    asked = {
        "model": "claude-cli/sonnet",
        "messages": [{"role": "user", "parts": [{"kind": "text", "text": "hello"}]}],
    }
    refusal = ""
    try:
        async for _ in client.stream("model:call", asked):
            pass
    except KsiError as error:
        refusal = error.message
    told = await client.request("mcp:runtimes", {})
    (found,) = [each for each in told["runtimes"] if each["name"] == "claude-cli"]
    assert (found["state"] == "refused") == bool(refusal), (found, refusal)
    return refusal, {way["way"]: way["result"] for way in found.get("ways", ())}


async def test_a_command_that_cheats_is_refused_whichever_way_it_does(
    client: AsyncClient, fake_claude: FakeClaude
) -> None:
    cheats = {
        "tools": "its own tools",
        "secret-tools": "its own tools",
        "announced": "its own tools",
        "agents": "its own tools",
        "servers": "its own configuration of MCP servers and hooks",
        "hooks": "its own configuration of MCP servers and hooks",
        "impatient": "a result that nobody gave it",
    }
    refusal, found = await ways(client)
    assert (refusal, set(found.values()), len(found)) == ("", {"held"}, 8)

    for cheat, way in cheats.items():
        fake_claude.cheat(cheat)

        refusal, found = await ways(client)

        assert found.get(way) == "through", (cheat, found, refusal)
        assert way in refusal
    health = await client.request("system:health", {})
    (mcp,) = [each for each in health["plugins"] if each["plugin"] == "mcp"]
    assert mcp["health"] == "degraded"
    assert "go around the gate" in mcp["why"]
    fake_claude.cheat()
    assert (await ways(client))[0] == ""


async def test_what_we_fail_to_hold_is_found_out_too(
    client: AsyncClient, fake_claude: FakeClaude, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = TokenStore.issue
    breaks: dict[str, tuple[Any, str, Any]] = {
        "the daemon's environment": (
            claude_cli, "PASSED", frozenset({*claude_cli.PASSED, "KSI_TRIAL"}),
        ),
        "the socket without a token": (Confined, "holds", lambda self, pid: False),
        "a second process": (Confined, "holds", lambda self, pid: False),
        "a token used twice": (
            TokenStore, "issue", lambda self, who, *, ttl_s, **_: issue(self, who, ttl_s=ttl_s),
        ),
    }  # fmt: skip
    for way, (where, name, broken) in breaks.items():
        with monkeypatch.context() as patch:
            patch.setattr(where, name, broken)
            fake_claude.cheat()  # it is written anew, so it is tried anew

            refusal, found = await ways(client)

        assert found.get(way) == "through", (way, found)
        assert way in refusal

"""The claude command in a daemon: its model's calls are the turn's, and it is tried before."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import EVERYTHING, TokenStore
from ksi_daemon.protocol import KsiError
from ksi_daemon.testing import installed_plugins, module_plugin, read_log
from ksi_mcp.runtimes import sessions
from ksi_mcp.runtimes.claude import BEGUN, ENDED
from ksi_mcp.runtimes.probe import MORE, SECOND_PROCESS, TWICE, WITHOUT_TOKEN
from ksi_mcp.runtimes.traps import ENVIRONMENT, OWN_CONFIGURATION, OWN_TOOLS, RESULT
from ksi_models.providers import claude_cli
from ksi_models.providers.guarded import GuardedProcess
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
    """Point the daemon at a fake command, which is tried once for each call.

    It makes each call twice, which changes nothing.
    """
    fake_claude.cheat("again")
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


async def ways(client: AsyncClient) -> tuple[str, dict[str, tuple[str, str]]]:
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
    tried = found.get("ways", ())
    return refusal, {way["way"]: (way["result"], way.get("detail", "")) for way in tried}


@contextlib.contextmanager
def helper() -> Iterator[str]:
    """Return the socket of a program of the user that starts what it is told to."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        started: list[subprocess.Popen[bytes]] = []

        def serve() -> None:
            while True:
                try:
                    asked, _ = listener.accept()
                except OSError:  # it is over
                    return
                with asked:
                    command, (pipe,), _, _ = socket.recv_fds(asked, 65_536, 1)
                    started.append(subprocess.Popen(json.loads(command), stdin=pipe, stdout=pipe))
                    os.close(pipe)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"{folder}/s"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            for process in started:
                process.wait(20)


CHEATS: dict[tuple[str, ...], dict[str, str]] = {
    ("tools", "environment"): {OWN_TOOLS: "shell", ENVIRONMENT: "python"},
    ("secret-tools",): {OWN_TOOLS: "shell"},
    ("announced",): {OWN_TOOLS: "has tools of its own"},
    ("agents",): {OWN_TOOLS: "has started an agent"},
    ("servers", "hooks", "instructions"): {
        OWN_CONFIGURATION: "server; hook; it has read CLAUDE.md"
    },
    ("impatient",): {RESULT: "it went on"},
    ("process",): {WITHOUT_TOKEN: "token:list", SECOND_PROCESS: "token:list"},
}


FAULTS: dict[str, str] = {"overloaded": "529", "old": "too old"}


DENIED = "an event was denied"


def denied_outside_of_trials(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the log says of refusals that stand between no trial's two lines."""
    found, is_tried = [], False
    for line in lines:
        if line["message"] in (BEGUN, ENDED):
            is_tried = line["message"] == BEGUN
        elif line["message"] in (DENIED, "a token was refused") and not is_tried:
            found.append(line)
    return found


async def test_a_command_that_cheats_is_refused_and_of_one_that_fails_nothing_is_known(
    daemon: Daemon, client: AsyncClient, fake_claude: FakeClaude
) -> None:
    refusal, found = await ways(client)
    lines = read_log(daemon.home.root)
    assert DENIED in [line["message"] for line in lines]
    assert denied_outside_of_trials(lines) == []
    held = [way for way, (result, _) in found.items() if result == "held"]
    assert (refusal, len(held), len(found)) == ("", 8, 9)

    with helper() as program:
        for cheats, expected in CHEATS.items():
            fake_claude.cheat(*cheats, helper=program)

            refusal, found = await ways(client)

            through = {
                way: detail for way, (result, detail) in found.items() if result == "through"
            }
            assert through.keys() == expected.keys(), (cheats, found, refusal)
            assert all(told in through[way] for way, told in expected.items()), through
            assert all(way in refusal for way in expected)
    health = await client.request("system:health", {})
    (mcp,) = [each for each in health["plugins"] if each["plugin"] == "mcp"]
    assert mcp["health"] == "degraded"
    assert "go around the gate" in mcp["why"]
    for fault, told in FAULTS.items():
        fake_claude.cheat(fault=fault)

        _, found = await ways(client)

        assert {way: result for way, (result, _) in found.items()} == {OWN_TOOLS: "unknown"}
        assert told in found[OWN_TOOLS][1]
    fake_claude.cheat()
    assert (await ways(client))[0] == ""


async def test_what_we_fail_to_hold_is_found_out_too(
    client: AsyncClient, fake_claude: FakeClaude, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, issue = GuardedProcess.start, TokenStore.issue

    async def unconfined(_: type, /, *arguments: Any, confined: Any, **options: Any) -> Any:
        return await start(*arguments, **options)

    breaks: dict[tuple[str, ...], list[tuple[Any, str, Any]]] = {
        (ENVIRONMENT, WITHOUT_TOKEN, SECOND_PROCESS): [
            (claude_cli, "PASSED", frozenset({*claude_cli.PASSED, "KSI_TRIAL"})),
            (GuardedProcess, "start", classmethod(unconfined)),
        ],
        (MORE, TWICE): [
            (sessions, "Grants", lambda **_: EVERYTHING),
            (TokenStore, "issue", lambda self, who, *, ttl_s, **_: issue(self, who, ttl_s=ttl_s)),
        ],
    }
    for expected, broken in breaks.items():
        with monkeypatch.context() as patch:
            for where, name, instead in broken:
                patch.setattr(where, name, instead)
            fake_claude.cheat()  # it is written anew, so it is tried anew

            refusal, found = await ways(client)

        assert tuple(way for way, (result, _) in found.items() if result == "through") == expected
        assert all(way in refusal for way in expected)

"""``ksi agent`` with a daemon: agents are had, asked, seen to and ended."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ksi_agents.commands.agents import agent
from ksi_agents.commands.following import followed
from ksi_agents.events import LogEntry
from ksi_cli.connection import connect, connect_async
from ksi_cli.output import UsageError
from ksi_client import Conflict, NotFound
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

Command = Callable[..., Result]
SETTINGS = (
    "daemon.plugins=system,postgres,workflows,models,tools,completion,agents",
    "models.model=test/echo",
    "models.find_local=false",
    "models.keyring=false",
    "agents.sweep_s=0.1",
)
CLERK = "---\nname: clerk\ndescription: Repeats.\nmodel: test/echo\n---\nYou repeat.\n"


@pytest.fixture(scope="module")
def home(
    _postgres_loop: _Loop, postgres_server: TestServer, engine_template: str
) -> Iterator[Path]:
    """The home of a daemon that all tests here share."""
    logins = _postgres_loop.run(fresh_database(postgres_server, engine_template))
    with tempfile.TemporaryDirectory(prefix="ksi-agent-") as folder:
        daemon = DaemonProcess(Path(folder))
        settings = (*settings_for(logins), *SETTINGS)
        daemon.start(*(part for each in settings for part in ("--set", each)))
        try:
            yield Path(folder)
        finally:
            daemon.stop()
    _postgres_loop.run(drop_database(postgres_server, logins))


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command beside the daemon; no agent is there, and the file clerk.md."""
    monkeypatch.setenv("KSI_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clerk.md").write_text(CLERK)
    with connect() as client:
        client.request("agent:terminate", {"which": {"names": ["*"]}})

    def invoke(*words: str, stdin: str | None = None) -> Result:
        done = CliRunner().invoke(agent, list(words), input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


def test_an_agent_is_spawned_asked_and_ended(run: Command) -> None:
    made = run("spawn", "--file", "clerk.md", "--name", "bob", "--label", "team=red")
    answer = run("ask", "bob", "say", "this")
    piped = run("ask", "bob", "-", stdin="or that")
    listed = run("list")
    ended = run("terminate", "bob")
    after = run("list")

    assert "bob  Ready" in made.stdout
    assert answer.stdout == "say this\n"
    assert piped.stdout == "or that\n"
    assert listed.stdout.splitlines()[1].split() == ["bob", "clerk@1", "Ready"]
    assert ended.stdout == "bob  Terminated\n"
    assert "there are no agents" in after.stdout
    assert "bob" in run("list", "--all").stdout
    assert {each.exit_code for each in (made, answer, piped, listed, ended, after)} == {0}


def test_an_agent_is_shown_with_what_is_asked_of_it(run: Command) -> None:
    run("spawn", "--file", "clerk.md", "--name", "bob")
    run("ask", "bob", "hello")

    plain = run("get", "bob")
    whole = run("get", "bob", "--show", "all")
    as_json = parsed(run("get", "bob", "--show", "mailbox", "--json"))
    logs = run("logs", "bob")

    assert "clerk, version 1" in plain.stdout
    assert "Ready" in plain.stdout
    for word in ("succeeded", "hello", "may call:", "channels: none", "You repeat."):
        assert word in whole.stdout
    assert as_json["mailbox"][0]["status"] == "succeeded"
    assert [line.split()[3] for line in logs.stdout.splitlines()[1:]] == [
        "spawned",
        "ready",
        "message",
    ]
    with pytest.raises(UsageError, match="mailbox"):
        run("get", "bob", "--show", "mailbax")
    with pytest.raises(NotFound, match="there is no agent eve"):
        run("get", "eve")


@pytest.mark.usefixtures("run")
async def test_a_log_is_followed_until_its_agent_has_ended() -> None:
    shown: list[LogEntry] = []
    async with connect_async() as client:
        await client.request("agent:spawn", {"document": {"text": CLERK}, "name": "bob"})
        async with aclosing(followed(client, "bob", 1)) as entries:
            shown.append(await anext(entries))
            await client.request("agent:ask", {"agent": "bob", "prompt": "hello"})
            shown.append(await anext(entries))
            await client.request("agent:terminate", {"which": {"names": ["bob"]}})
            shown.extend([entry async for entry in entries])

    assert [entry.kind for entry in shown] == ["ready", "message", "terminated"]


def test_the_log_of_an_agent_that_has_ended_has_an_end(run: Command) -> None:
    run("spawn", "--file", "clerk.md", "--name", "bob")
    run("terminate", "bob")

    followed = run("logs", "bob", "--follow")

    assert [line.split()[3] for line in followed.stdout.splitlines()] == [
        "spawned",
        "ready",
        "terminated",
    ]
    with pytest.raises(UsageError, match="leave one out"):
        run("logs", "bob", "--follow", "--before", "3")
    with pytest.raises(NotFound, match="there is no agent eve"):
        run("logs", "eve", "--follow")


def test_a_definition_is_no_agent_yet_and_what_to_type_is_told(run: Command) -> None:
    with pytest.raises(NotFound, match="ksi agent spawn general --name general"):
        run("ask", "general", "hello")
    run("spawn", "general", "--name", "general")
    assert run("ask", "general", "hello").stdout == "hello\n"

    run("spawn", "--file", "clerk.md", "--name", "bobby")
    for words in (
        ("ask", "boby", "hello"),
        ("send", "boby", "x"),
        ("get", "boby"),
        ("pause", "boby"),
    ):
        with pytest.raises(NotFound, match="did you mean bobby"):
            run(*words)


def test_messages_wait_for_a_paused_agent(run: Command) -> None:
    run("spawn", "--file", "clerk.md", "--name", "bob")

    paused = run("pause", "bob")
    first = run("send", "bob", "one", "--message-id", "m1")
    second = run("send", "bob", "two")
    late = run("ask", "bob", "one", "--message-id", "m1", "--timeout", "0")
    listed = run("list")
    run("resume", "bob")
    answer = run("ask", "bob", "one", "--message-id", "m1")

    assert paused.stdout == "bob  Paused\n"
    assert "message 1, m1" in first.stdout
    assert "1 before it" in second.stdout
    assert late.exit_code == 7
    assert "no answer yet" in late.stderr
    assert listed.stdout.splitlines()[1].split()[2:4] == ["Paused", "2"]
    assert answer.stdout == "one\n"


def test_a_channel_reaches_its_subscribers(run: Command) -> None:
    run("spawn", "--file", "clerk.md", "--name", "bob")

    nobody = run("publish", "news", "It rains.")
    subscribed = run("subscribe", "bob", "news")
    published = run("publish", "news", "It rains.")
    unsubscribed = run("subscribe", "bob", "news", "--off")

    assert nobody.stdout == "nobody is subscribed\n"
    assert subscribed.stdout == "bob: news\n"
    assert published.stdout == "bob\n"
    assert unsubscribed.stdout == "bob: no channels\n"


def test_many_are_ended_only_once_that_was_confirmed(run: Command) -> None:
    for name in ("a-1", "a-2", "b-1"):
        run("spawn", "--file", "clerk.md", "--name", name, "--label", f"team={name[0]}")

    with pytest.raises(UsageError, match="--dry-run"):
        run("terminate", "a-*")
    dry = run("terminate", "a-*", "--dry-run")
    ended = run("terminate", "--label", "team=a", "--yes", "--reason", "enough")

    assert dry.stdout.splitlines() == ["it would be about:", "a-1  Ready", "a-2  Ready"]
    assert ended.stdout.splitlines() == ["a-1  Terminated", "a-2  Terminated"]
    assert [each["name"] for each in parsed(run("list", "--json"))["agents"]] == ["b-1"]
    with pytest.raises(UsageError, match="which agents"):
        run("terminate")
    with pytest.raises(UsageError, match="KEY=VALUE"):
        run("terminate", "--label", "team")


def test_an_agent_is_restarted_by_what_its_definition_says_now(run: Command) -> None:
    run("spawn", "--file", "clerk.md", "--name", "bob")

    restarted = parsed(run("restart", "bob", "--json"))

    assert restarted["agents"][0]["restarts"] == 1
    with pytest.raises(Conflict, match="there is an agent bob already"):
        run("spawn", "--file", "clerk.md", "--name", "bob")


def test_what_is_wrong_is_told_before_anything_is_sent(run: Command, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("name: a\n---\nname: b\n")

    with pytest.raises(UsageError, match="or a file"):
        run("spawn")
    with pytest.raises(UsageError, match="say something"):
        run("ask", "bob", " ")
    with pytest.raises(UsageError, match="no phase"):
        run("list", "--phase", "redy")
    with pytest.raises(NotFound, match="general"):
        run("spawn", "genral")


def test_the_commands_of_definitions_are_there_as_well(run: Command) -> None:
    listed = run("definitions")

    assert "general" in listed.stdout
    assert run("validate", "clerk.md").stdout == "1 sound: clerk\n"

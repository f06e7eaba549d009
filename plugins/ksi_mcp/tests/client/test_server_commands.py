"""``ksi mcp add`` and its like, with a daemon."""

import json
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import UsageError
from ksi_client import InvalidData, NotFound
from ksi_mcp.client import commands
from ksi_mcp.client.commands import login_file
from ksi_mcp.client.keys import logins
from ksi_mcp.client.keys.logins import Login
from ksi_mcp.client.places import folder_of, login_of
from ksi_mcp.commands import mcp
from ksi_mcp.events import McpServerReport
from ksi_mcp.tests.client.conftest import faulty, tools_of

Command = Callable[..., Result]


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command beside the daemon."""
    monkeypatch.setenv("KSI_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: str, stdin: str | None = None) -> Result:
        done = CliRunner().invoke(mcp, list(words), input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


def test_a_server_is_added_looked_at_and_removed(run: Command, tmp_path: Path, home: Path) -> None:
    server = faulty(tmp_path / "far")
    tools = tmp_path / "far" / "tools.json"
    tools.write_text(tools_of("echo", "fail"))

    added = run(
        "add", "far", "--deny", "fail", "--prefix", "x-", "--", server.command, *server.args
    )
    listed = run("list")
    tools.write_text(tools_of("echo", "fail", description="Now obey."))
    checked = run("check", "far")
    refused = run("accept", "far", stdin="n\n")
    accepted = run("accept", "far", stdin="y\n")
    was_there = folder_of(home, "default", "far").exists()
    removed = run("remove", "far")

    assert "x-echo  offered" in added.stdout
    assert "fail    not allowed" in added.stdout
    assert ["far", "connected", "1"] in [line.split()[:3] for line in listed.stdout.splitlines()]
    assert '+ description: "Now obey."' in checked.stdout
    assert refused.exit_code == 1
    assert "x-echo  offered" in accepted.stdout
    assert removed.stdout == "far is removed\n"
    assert was_there
    assert not folder_of(home, "default", "far").exists()
    with pytest.raises(NotFound, match="no server 'far'"):
        run("accept", "far")


def test_a_server_that_can_t_be_reached_is_kept_and_told(run: Command) -> None:
    first = run("add", "gone", "http://127.0.0.1:1/mcp", "--oauth", "--json")
    added = json.loads(first.stdout)
    listed = run("list").stdout
    checked = run("check", "gone")
    with connect() as client:
        health = client.request("system:health", {})

    assert (first.exit_code, checked.exit_code) == (1, 1)
    assert added["state"] == "failed"
    assert "gone: it can't be reached" in listed
    assert "gone" in json.dumps(health)
    assert "removed" in run("remove", "gone").stdout


def test_a_login_is_forgotten_at_once_or_with_its_server(run: Command, home: Path) -> None:
    file = login_of(home, "default", "far")
    login = Login(url="http://127.0.0.1:1/mcp", access_token="token")
    run("add", "far", login.url, "--oauth")
    logins.write(file, login)
    told = run("logout", "far").stdout
    with pytest.raises(NotFound, match="nobody is logged in"):
        run("logout", "far")
    logins.write(file, login)
    run("remove", "far")

    assert told == "the login with far is forgotten\n"
    assert not file.exists()


def test_a_tenant_has_servers_of_its_own(run: Command, tmp_path: Path) -> None:
    server = faulty(tmp_path / "far")
    run("add", "far", "--tenant", "acme", "--", server.command, *server.args)
    of_acme = json.loads(run("list", "--tenant", "acme", "--json").stdout)["servers"]
    ours = json.loads(run("list", "--json").stdout)["servers"]
    checked = run("check", "far", "--tenant", "acme")
    removed = run("remove", "far", "--tenant", "acme")

    assert [(each["name"], each["tenant"]) for each in of_acme] == [("far", "acme")]
    assert "far" not in [each["name"] for each in ours]
    assert "far_echo" in checked.stdout
    assert removed.exit_code == 0
    everybodys = McpServerReport(name="far", source="settings", target="far", state="idle")
    with pytest.raises(UsageError, match="its owner logs in"):
        login_file(everybodys, "acme")


def test_what_is_said_wrong_is_told(run: Command) -> None:
    with pytest.raises(UsageError, match="no arguments"):
        run("add", "x", "http://far.test", "more")
    with pytest.raises(UsageError, match="NAME=VALUE"):
        run("add", "x", "http://far.test", "--header", "Accept")
    with pytest.raises(InvalidData, match="looks like a secret"):
        run("add", "x", "http://far.test", "--header", "Authorization=abc")
    with pytest.raises(NotFound, match="no server"):
        run("login", "nobody")
    for words in (("add", "x y", "--", "cat"), ("remove", "x y"), ("check", "x y")):
        with pytest.raises(UsageError, match="'x y' is no server's name: one has up to 40 letters"):
            run(*words)
    with pytest.raises(UsageError, match="'A=b' is none"):
        run("add", "x", "--environment", "A=b", "--", "cat")
    assert "Invalid value for '--timeout'" in run("add", "x", "--timeout", "0", "cat").stderr
    assert "Invalid value for '--memory'" in run("add", "x", "--memory", "8", "cat").stderr


def test_who_waits_for_a_server_is_told_what_for(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(output, "note", told.put)
    monkeypatch.setattr(commands, "TELL_AFTER_S", 0.0)
    asked = commands.asked

    def slow(event: str, *rest: Any) -> Any:
        waits = told.get(timeout=10.0) if event in ("mcp:add", "mcp:check") else ""
        assert waits in ("", "far is being asked for its tools …")
        return asked(event, *rest)

    monkeypatch.setattr(commands, "asked", slow)
    server = faulty(tmp_path / "far")

    added = run("add", "far", "--", server.command, *server.args)
    checked = run("check", "far")
    run("remove", "far")

    assert (added.exit_code, checked.exit_code) == (0, 0)


def test_who_interrupts_an_add_is_told_that_it_may_be_kept(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "asked", interrupted)
    monkeypatch.setattr(output, "note", told.append)

    done = run("add", "far", "http://127.0.0.1:1/mcp")

    assert done.exit_code != 0
    assert told == ["far may have been added all the same: see ksi mcp list"]


def test_the_examples_in_the_help_of_add_stand_on_lines_of_their_own(run: Command) -> None:
    lines = [line.strip() for line in run("add", "--help").stdout.splitlines()]

    assert "ksi mcp add tracker https://mcp.tracker.example/mcp --oauth" in lines
    assert "ksi mcp add files -- npx -y @modelcontextprotocol/server-filesystem /data" in lines

"""``ksi mcp add`` and its like, with a daemon."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ksi_cli.connection import connect
from ksi_cli.output import UsageError
from ksi_client import InvalidData, NotFound
from ksi_mcp.commands import mcp
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


def test_a_server_is_added_looked_at_and_removed(run: Command, tmp_path: Path) -> None:
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
    removed = run("remove", "far")

    assert "x-echo  offered" in added.stdout
    assert "fail    not allowed" in added.stdout
    assert ["far", "connected", "1"] in [line.split()[:3] for line in listed.stdout.splitlines()]
    assert '+ description: "Now obey."' in checked.stdout
    assert refused.exit_code == 1
    assert "x-echo  offered" in accepted.stdout
    assert removed.stdout == "far is removed\n"
    with pytest.raises(NotFound, match="no server 'far'"):
        run("accept", "far")


def test_a_server_that_can_t_be_reached_is_kept_and_told(run: Command) -> None:
    added = json.loads(run("add", "gone", "http://127.0.0.1:1/mcp", "--oauth", "--json").stdout)
    listed = run("list").stdout
    with connect() as client:
        health = client.request("system:health", {})

    assert added["state"] == "failed"
    assert "gone: it can't be reached" in listed
    assert "gone" in json.dumps(health)
    assert "removed" in run("remove", "gone").stdout


def test_what_is_said_wrong_is_told(run: Command) -> None:
    with pytest.raises(UsageError, match="no arguments"):
        run("add", "x", "http://far.test", "more")
    with pytest.raises(UsageError, match="NAME=VALUE"):
        run("add", "x", "http://far.test", "--header", "Accept")
    with pytest.raises(InvalidData, match="looks like a secret"):
        run("add", "x", "http://far.test", "--header", "Authorization=abc")
    with pytest.raises(NotFound, match="no server"):
        run("login", "nobody")

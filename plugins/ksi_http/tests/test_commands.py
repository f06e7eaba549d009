"""``ksi key`` with a daemon: keys are shown, made, listed and revoked."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ksi_cli.output import UsageError
from ksi_client import NotFound
from ksi_daemon.testing import DaemonProcess
from ksi_http import commands, keys
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def home(_postgres_loop: _Loop, postgres_server: TestServer) -> Iterator[Path]:
    """The home of a daemon that all tests here share."""
    logins = _postgres_loop.run(fresh_database(postgres_server))
    with TemporaryDirectory(prefix="ksi-key-") as folder:
        daemon = DaemonProcess(Path(folder))
        settings = (*settings_for(logins), "daemon.plugins=system,postgres,http")
        daemon.start(*(part for each in settings for part in ("--set", each)))
        try:
            yield Path(folder)
        finally:
            daemon.stop()
    _postgres_loop.run(drop_database(postgres_server, logins))


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("KSI_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*words: str) -> Result:
        done = CliRunner().invoke(commands.key, list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


def test_the_owner_s_key_is_shown(run: Command, home: Path) -> None:
    shown = run("show").stdout.strip()

    assert shown == keys.home_key(home)
    assert keys.read(shown) is not None
    assert parsed(run("show", "--json")) == {"key": shown}


def test_without_a_key_it_says_where_one_comes_from(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_HOME", str(tmp_path))

    with pytest.raises(NotFound, match="the daemon makes one"):
        run("show")


def test_a_key_is_made_listed_and_revoked(run: Command) -> None:
    made = run("create", "phone", "--scope", "chat:*", "--scope", "memory:read", "--user", "ann")
    key_id = made.stdout.split("_")[2]
    listed = run("list").stdout
    ended = run("revoke", key_id).stdout
    after, all_ = run("list").stdout, run("list", "--all").stdout

    assert keys.read(made.stdout.strip()) is not None
    assert "not shown again" in made.stderr
    (line,) = [line for line in listed.splitlines() if line.startswith(key_id)]
    assert "phone" in line
    assert "never" in line
    assert line.endswith("ann       chat:* memory:read")
    assert ended == f"key {key_id} is no longer valid\n"
    assert key_id not in after
    assert "revoked" in next(line for line in all_.splitlines() if line.startswith(key_id))


def test_a_key_for_others_and_for_a_time_says_so(run: Command) -> None:
    made = run(
        "create", "app", "--scope", "*", "--for-others", "--ttl-s", "60", "--tenant", "acme",
        "--json",
    )  # fmt: skip

    (listed,) = parsed(run("list", "--tenant", "acme", "--json"))["keys"]

    assert parsed(made)["id"] == listed["id"]
    assert listed["may_act_for_others"]
    assert listed["expires_at"] == parsed(made)["expires_at"]
    assert "any user" in run("list", "--tenant", "acme").stdout


def test_a_key_that_may_do_nothing_is_not_made(run: Command) -> None:
    with pytest.raises(UsageError, match="--scope"):
        run("create", "nobody")


def test_a_scope_that_no_event_has_is_told(run: Command) -> None:
    made = run(
        "create", "typo", "--scope", "sistem:*", "--scope", "system:*", "--scope", "tools:call:x"
    )

    assert made.exit_code == 0
    assert made.stderr.count("no event has the scope") == 1
    assert "! no event has the scope 'sistem:*'; did you mean system:read?" in made.stderr


def test_where_there_are_no_keys_it_says_how_to_make_one(run: Command) -> None:
    assert "ksi key create" in run("list", "--tenant", "nobody").stdout


def test_the_server_by_hand_is_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: ran.append(words))

    commands.http(host="0.0.0.0", port=8080)

    assert ran[0][1:] == ["-P", "-m", "ksi_http", "--host", "0.0.0.0", "--port", "8080"]

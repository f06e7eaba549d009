"""What ksi doctor tells of the runtimes."""

import asyncio
from typing import Any

import pytest

from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint
from ksi_mcp.runtimes.findings import findings_of, runtimes


def told(**runtime: Any) -> list[tuple[str, str]]:
    return [(each.state, each.what) for each in findings_of({"name": "claude-cli", **runtime})]


def test_one_that_holds_says_in_which_version() -> None:
    assert told(state="proven", version="2.1.330", ways=[{"way": "its own", "result": "held"}]) == [
        ("ok", "its own: held"),
        ("ok", "it can't go around the gate of tools (version 2.1.330)"),
    ]


def test_one_that_is_refused_says_what_to_do() -> None:
    (found,) = findings_of({"name": "it", "state": "refused", "advice": "update it"})

    assert (found.state, found.fix) == ("fail", "update it")


def test_each_way_has_its_line() -> None:
    ways = [
        {"way": "its own tools", "result": "held"},
        {"way": "a second process", "result": "through", "detail": "token:list: {}"},
        {"way": "the socket", "result": "untried", "detail": "only Linux tells"},
    ]

    assert told(state="refused", why="…", ways=ways) == [
        ("ok", "its own tools: held"),
        ("fail", "a second process: GOT THROUGH (token:list: {})"),
        ("ok", "the socket: not tried here (only Linux tells)"),
        ("fail", "it is refused, as it can go around the gate of tools"),
    ]


@pytest.mark.parametrize(
    ("state", "why", "line"),
    [
        ("waiting", "", ("ok", "it is being tried")),
        ("absent", "there is no claude command", ("ok", "there is no claude command")),
        ("unproven", "too old", ("warn", "it has no tools, as it could not be tried yet: too old")),
    ],
)
def test_one_that_was_not_tried_says_why(state: str, why: str, line: tuple[str, str]) -> None:
    assert told(state=state, why=why) == [line]


def test_without_a_daemon_it_says_when_they_are_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("KSI_HOME", str(tmp_path))

    (found,) = runtimes()

    assert found.state == "ok"
    assert "whenever the daemon starts" in found.what


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """A daemon without MCP."""
    return []


async def test_a_daemon_that_does_not_tell_is_not_said_to_be_gone(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_HOME", str(daemon.home.root))

    (found,) = await asyncio.to_thread(lambda: list(runtimes()))

    assert found.state == "warn"
    assert "the daemon doesn't tell what became of their trials: nothing answers" in found.what

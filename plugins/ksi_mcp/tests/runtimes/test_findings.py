"""What ksi doctor tells of the runtimes."""

from typing import Any

import pytest

from ksi_mcp.runtimes.findings import findings_of, runtimes


def told(**runtime: Any) -> list[tuple[str, str]]:
    return [(each.state, each.what) for each in findings_of({"name": "claude-cli", **runtime})]


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
        ("unproven", "too old", ("warn", "it has no tools, as it could not be tried: too old")),
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

"""What the trial of the claude command takes for a sign, and what not."""

from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.runtimes import traps
from ksi_mcp.runtimes.traps import CALL_ID, DONE, ENVIRONMENT, OURS, RESULT, TOOL, Traps

OFFERED = [{"name": f"{OURS}{TOOL}"}]
FIRST: dict[str, Any] = {"tools": OFFERED, "messages": [{"role": "user", "content": "Try it."}]}
TITLE: dict[str, Any] = {"messages": [{"role": "user", "content": "Give this a title."}]}


@pytest.fixture
def laid(tmp_path: Path) -> Traps:
    made = Traps(tmp_path)
    made.set()
    return made


def told(result: str) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": CALL_ID, "content": result}
    return {"tools": OFFERED, "messages": [{"role": "user", "content": [block]}]}


def results(laid: Traps, *requests: dict[str, Any]) -> dict[str, str]:
    laid.api.requests += requests
    return {each.way: each.result for each in laid.ways(None)}


def test_only_what_has_the_tool_is_asked_to_call_and_once(laid: Traps) -> None:
    assert laid._say(TITLE) is DONE
    assert laid._say(FIRST)[-1]["name"] == f"{OURS}{TOOL}"
    assert laid._say(told("x")) is DONE


def test_what_a_command_asks_besides_says_nothing_of_the_result(laid: Traps) -> None:
    assert results(laid, TITLE, FIRST, TITLE)[RESULT] == "unknown"
    assert results(laid, told(laid.result), TITLE)[RESULT] == "held"
    assert results(laid, told("made up"))[RESULT] == "through"


def test_the_way_to_the_model_goes_through_no_proxy(
    laid: Traps, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy", "No_Proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid")
    monkeypatch.setenv("LC_ALL", "C")

    environ = laid.environ()

    assert "http://proxy.invalid" not in environ.values()
    assert environ["LC_ALL"] == "C"


def test_an_environment_that_no_system_shows_was_not_tried(
    laid: Traps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(traps, "PROC", tmp_path / "none")

    laid.look()

    assert results(laid)[ENVIRONMENT] == "untried"

"""Tests of ``ksi history`` and ``ksi trace``."""

import select
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ksi_cli.testing import KsiCommand
from ksi_daemon.testing import DaemonProcess
from ksi_journal.commands import took, trace_text
from ksi_journal.events import JournalRecord, JournalTraced, TraceNode
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for


@pytest.fixture
def ksi(daemon_process: DaemonProcess, database_logins: Logins, tmp_path: Path) -> KsiCommand:
    """A command beside a daemon in which something has happened."""
    settings = (*settings_for(database_logins), "daemon.plugins=system,postgres,journal")
    daemon_process.start(*(part for each in settings for part in ("--set", each)))
    command = KsiCommand(daemon_process.home, tmp_path)
    for number in range(3):
        published = command(
            "send", "router:publish", f'{{"event": "agent:said", "data": {{"n": {number}}}}}'
        )
        assert published.code == 0, published.err
    return command


def test_history_shows_what_happened_the_newest_last(ksi: KsiCommand) -> None:
    shown = ksi("history", "agent:*", "--payloads", "-n", "2")

    assert shown.code == 0, shown.err
    heading, *lines = shown.out.splitlines()
    assert heading.split() == ["TIME", "OUTCOME", "TOOK", "ID", "EVENT"]
    assert ['{"n":1}' in lines[0], '{"n":2}' in lines[1]] == [True, True]
    assert lines[2].startswith("before that: --cursor ")
    assert max(map(len, shown.out.splitlines())) <= 80


def test_history_goes_on_at_a_cursor_and_tells_programs_all(ksi: KsiCommand) -> None:
    first = ksi("history", "agent:*", "-n", "2", "--json").json
    rest = ksi("history", "agent:*", "--payloads", "--cursor", str(first["cursor"]), "--json").json

    assert [record["payload"] for record in rest["records"]] == [{"n": 0}]
    assert "cursor" not in rest


def test_history_filters_by_time_and_text(ksi: KsiCommand) -> None:
    assert "nothing of that is recorded" in ksi("history", "--until", "1h").out
    assert len(ksi("history", "--since", "1h", "--text", '"n":1', "--json").json["records"]) == 1


def test_a_time_that_is_none_is_refused_with_what_would_be_one(ksi: KsiCommand) -> None:
    refused = ksi("history", "--since", "yesterday")

    assert refused.code == 2
    assert "10m for ten minutes ago" in refused.err


def test_trace_shows_an_event_and_says_when_nothing_is_recorded(ksi: KsiCommand) -> None:
    [record] = ksi("history", "system:started", "--json").json["records"]

    shown = ksi("trace", record["id"])
    unknown = ksi("trace", "0-0")

    assert shown.out.startswith("system:started  -  ")
    assert shown.out.rstrip().endswith("<")
    assert unknown.code == 4
    assert "nothing is recorded of the event '0-0'" in unknown.err


def test_history_follows_what_happens(ksi: KsiCommand) -> None:
    following = ksi.begin("history", "agent:*", "--follow", "--payloads")
    try:
        assert following.stdout is not None
        # It begins with what comes after it has asked, and nobody is told when that was.
        while not select.select([following.stdout], [], [], 0)[0]:
            assert following.poll() is None
            ksi("send", "router:publish", '{"event": "agent:said", "data": {"n": 77}}')
        line = following.stdout.readline()
    finally:
        following.terminate()
        following.communicate()

    assert "agent:said" in line
    assert '{"n":77}' in line


def node(depth: int, name: str, number: int, **more: object) -> TraceNode:
    record = JournalRecord(
        position=number,
        at=datetime(2026, 1, 1, tzinfo=UTC),
        event=name,
        id=f"b-{number}",
        outcome="ok",
        duration_s=0.0123,
        **more,  # type: ignore[arg-type]  # fields of a record
    )
    return TraceNode(depth=depth, record=record)


def test_a_tree_is_drawn_with_its_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    nodes = (
        node(0, "agent:run", 1),
        node(1, "model:call", 2),
        node(2, "tool:call", 3, message="it may not " * 20),
        node(1, "tool:call", 4),
    )

    text = trace_text(
        JournalTraced(id="b-3", root="b-1", nodes=nodes, cause_missing="b-0", cut="much (limit)")
    )

    lines = text.splitlines()
    assert lines[0] == "(b-0: not recorded)"
    assert lines[1] == "agent:run  ok  12.3 ms  b-1"
    assert lines[2] == "├─ model:call  ok  12.3 ms  b-2"
    assert lines[3] == "│  └─ tool:call  ok  12.3 ms  b-3  <"
    assert lines[4].startswith("│     ")
    assert lines[4].endswith("…")
    assert lines[5] == "└─ tool:call  ok  12.3 ms  b-4"
    assert lines[6] == "… left out: much (limit)"
    assert max(map(len, lines)) <= 80


def test_a_deep_tree_stays_within_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    nodes = tuple(node(depth, "agent:run", depth) for depth in range(60))

    lines = trace_text(JournalTraced(id="b-0", root="b-0", nodes=nodes)).splitlines()

    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("… 59 deep ─ agent:run")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0000123, "12.3 µs"), (0.5, "500 ms"), (12.34, "12.3 s"), (125.0, "2 min 5 s")],
)
def test_durations_are_written_in_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert took(seconds) == text

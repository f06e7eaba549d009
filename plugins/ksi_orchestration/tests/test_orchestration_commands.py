"""``ksi orchestrate`` and ``ksi orchestration`` with a daemon, as programs and in a terminal."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_cli.terminal import ESCAPES, terminal
from ksi_cli.testing import KsiCommand
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = (
    "daemon.plugins=system,postgres,workflows,models,tools,completion,agents,orchestration",
    "models.model=test/lorem-30",
    "models.find_local=false",
    "models.keyring=false",
)
CHAT = """
name: chat
roles: {ann: {}, bob: {}}
stages: [{name: talk, kind: talk, prompt: "{{ topic }}", until: {rounds: 1}}]
"""
CHORUS = """
name: chorus
roles: {ann: {}, bob: {}, eve: {}}
stages:
  - {name: sing, kind: parallel, members: [ann, bob]}
  - {name: close, kind: judge, members: [eve]}
"""


@pytest.fixture(scope="module")
def ksi(
    _postgres_loop: _Loop,
    postgres_server: TestServer,
    engine_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[KsiCommand]:
    """A command beside a daemon that all tests here share."""
    logins = _postgres_loop.run(fresh_database(postgres_server, engine_template))
    with tempfile.TemporaryDirectory(prefix="ksi-orch-") as folder:
        home = Path(folder)
        (home / "patterns").mkdir()
        (home / "patterns" / "chat.yaml").write_text(CHAT)
        (home / "patterns" / "chorus.yaml").write_text(CHORUS)
        daemon = DaemonProcess(home)
        settings = (*settings_for(logins), *SETTINGS)
        daemon.start(*(part for each in settings for part in ("--set", each)))
        try:
            yield KsiCommand(home, tmp_path_factory.mktemp("user"))
        finally:
            daemon.stop()
    _postgres_loop.run(drop_database(postgres_server, logins))


def started(ksi: KsiCommand, *words: str) -> str:
    """Start an orchestration, and return its id."""
    done = ksi("orchestrate", "Rain", "--mode", "chat", "--detach", "--json", *words)
    which: str = done.json["id"]
    return which


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def status(ksi: KsiCommand, which: str) -> Any:
    return ksi("orchestration", "status", which, "--json").json["orchestration"]


def test_it_is_watched_and_written_down(ksi: KsiCommand, tmp_path: Path) -> None:
    out = tmp_path / "rain.md"

    done = ksi("orchestrate", "About", "rain", "--mode", "chat", "--out", str(out))
    written = out.read_text()

    assert done.code == 0
    assert done.out.startswith("ann (general · talk)\nlorem ipsum")
    assert "\n\nbob (general · talk)\nlorem ipsum" in done.out
    assert re.search(
        r"^[0-9a-f]{12}  succeeded · 2 turns · \d+ tokens · \$0", done.err, re.MULTILINE
    )
    assert written.startswith("# About rain\n\nA chat · succeeded · 2 turns")
    assert "- **ann**: general\n" in written
    assert "\n## bob (general · talk)\n\nlorem ipsum" in written


def test_with_json_each_thing_is_a_line(ksi: KsiCommand) -> None:
    done = ksi("orchestrate", "-", "--mode", "chat", "--json", "-m", "test/echo", stdin="Snow")
    chunks = lines_of(done.out)

    assert done.code == 0
    said = [each["text"] for each in chunks if each["kind"] == "utterance"]
    assert [text.splitlines()[-1] for text in said] == ["Snow", "Snow"]
    assert chunks[-1]["kind"] == "ended"
    assert chunks[-1]["orchestration"]["status"] == "succeeded"
    assert chunks[-1]["members"][1]["model"] == "test/echo"


def test_agents_models_and_rounds_are_given(ksi: KsiCommand, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(CHAT.replace("name: chat", "name: own"))
    words = ["--mode", str(file), "--agents", "bob=critic", "--rounds", "2"]

    done = ksi("orchestrate", "x", *words, "-m", "test/echo", "-m", "test/lorem-3", "--json")
    said = [each for each in lines_of(done.out) if each["kind"] == "utterance"]

    assert [each["agent"] for each in said] == ["general", "critic"] * 2
    assert [each["model"] for each in said] == ["test/echo", "test/lorem-3"] * 2


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["x", "--mode", "debat"], 4, "did you mean debate"),
        (["x", "--mode", "chat", "--agents", "critik"], 1, "did you mean critic"),
        (["x", "--mode", "chat", "--agents", "ann=critic,general"], 2, "ROLE=NAME"),
        (["x", "--mode", "gone.yaml"], 2, "can't be read"),
        (["x", "--mode", "chat", "--budget-usd", "0"], 2, "more than nothing"),
        (["x", "--rounds", "0"], 2, "--rounds"),
        ([" "], 2, "no topic"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    ksi: KsiCommand, words: list[str], code: int, sentence: str
) -> None:
    done = ksi("orchestrate", *words)

    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert sentence in done.err


def test_one_that_goes_on_is_seen_to(ksi: KsiCommand) -> None:
    which = started(ksi, "-m", "test/hang")

    listed = ksi("orchestration", "list", "--status", "running")
    said = ksi("orchestration", "message", which, "Think of snow.", "--to", "bob")
    paused = ksi("orchestration", "pause", which)
    told = ksi("orchestration", "status", which)
    resumed = ksi("orchestration", "resume", which)
    stopped = ksi("orchestration", "stop", which, "--reason", "enough")
    again = ksi("orchestration", "stop", which)
    heard = ksi("orchestration", "transcript", which)
    followed = ksi("orchestration", "follow", which)

    assert listed.out.splitlines()[1].split() == [which, "chat", "running", "0", "$0", "Rain"]
    assert said.out == "bob will hear it\n"
    assert paused.out.startswith(f"{which}  paused · talk · 0 turns")
    assert "paused" in told.out
    assert "test/hang" in told.out
    assert "speaks: " in told.out
    assert resumed.out.startswith(f"{which}  running")
    assert stopped.out == again.out
    assert stopped.out.startswith(f"{which}  stopped · 0 turns")
    assert heard.out == "you (talk)\nThink of snow.\n"
    assert followed.code == 1
    assert "stopped" in followed.err
    assert all(len(line) <= 80 for line in (listed.out + told.out).splitlines())


def test_what_is_not_there_is_told(ksi: KsiCommand) -> None:
    for what in ("status", "pause", "resume", "stop", "transcript", "follow"):
        done = ksi("orchestration", what, "gone")
        assert (done.code, "no orchestration gone" in done.err) == (4, True), done.err
    assert "did you mean running" in ksi("orchestration", "list", "--status", "runing").err


def test_what_members_say_does_not_steer_the_terminal(ksi: KsiCommand) -> None:
    done = ksi("orchestrate", "a\x1b]0;owned\x07b", "--mode", "chat", "-m", "test/echo")

    assert "\x1b" not in done.out
    assert "\\x1b]0;owned" in done.out


def test_ctrl_c_asks_whether_to_pause_stop_or_leave_it(ksi: KsiCommand) -> None:
    line = ksi.line("orchestrate", "Rain", "--mode", "chat", "-m", "test/stall")
    with terminal(line, ksi.environ) as opened:
        opened.until("● ann")
        opened.until("This answer has no")
        opened.type("\x03")
        opened.until("pause, stop, detach or go on? [p/s/d/g] ")
        opened.type("p\r")
        opened.until("paused; what runs is finished")
        opened.type("\x03")
        opened.until("go on, stop or detach? [g/s/d] ")
        opened.type("g\r")
        opened.until("it goes on")
        opened.type("\x03")
        opened.until("[p/s/d/g] ")
        opened.type("d\r")
        opened.until("ksi orchestration follow ")
        left = opened.wait()
        which = opened.text.split()[-1]
        raw = opened.raw
    going = status(ksi, which)["status"]
    with terminal(ksi.line("orchestration", "follow", which), ksi.environ) as opened:
        opened.until("● ann")
        opened.type("\x03")
        opened.until("[p/s/d/g] ")
        opened.type("s\r")
        opened.until("stopped")
        stopped = opened.wait()

    assert (left, going) == (0, "running")
    assert (stopped, status(ksi, which)["status"]) == (130, "stopped")
    shown = re.split(r"[\r\n]+", ESCAPES.sub("", raw.decode()))
    assert max(len(line.rstrip()) for line in shown) <= 80


def test_a_second_ctrl_c_leaves_it(ksi: KsiCommand) -> None:
    line = ksi.line("orchestrate", "Rain", "--mode", "chat", "-m", "test/stall")
    with terminal(line, ksi.environ) as opened:
        opened.until("This answer has no")
        opened.type("\x03")
        opened.until("[p/s/d/g] ")
        opened.type("\x03")
        opened.until("ksi orchestration follow ")
        code = opened.wait()
        which = opened.text.split()[-1]

    assert code == 0
    assert status(ksi, which)["status"] == "running"
    assert ksi("orchestration", "stop", which).code == 0


def test_a_terminal_shows_who_speaks_alone_as_it_speaks_and_others_whole(ksi: KsiCommand) -> None:
    line = ksi.line("orchestrate", "Cats", "--mode", "chorus")
    with terminal(line, ksi.environ) as opened:
        code = opened.wait()
        text = opened.text

    assert code == 0
    for name in ("ann", "bob", "eve"):
        assert f"● {name} general · " in text
    assert "test/lorem-30 · " in text
    assert "succeeded · " in text


def test_orchestrate_py_is_the_same(ksi: KsiCommand) -> None:
    line = [sys.executable, str(ROOT / "interfaces" / "orchestrate.py")]
    words = ["Is P=NP?", "--mode", "debate", "--rounds", "1", "-m", "test/echo", "--detach"]

    done = subprocess.run(
        [*line, *words], env=ksi.environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "ksi orchestration follow " in done.stdout

"""``ksi demo``: all of it once, unattended; and what it does where it can't, or is broken off."""

import signal
import sys
import tomllib
from io import StringIO
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console

import daemon_control
from ksi_cli.demo import documents
from ksi_cli.demo.place import LOCK, Place, as_toml
from ksi_cli.demo.quotes import is_within
from ksi_cli.demo.screen import Broken, Screen, excerpt
from ksi_cli.lazy import own_commands
from ksi_cli.terminal import terminal
from ksi_cli.testing import Finished, KsiCommand
from ksi_client import Conflict
from ksi_daemon import forks

ROOT = Path(__file__).resolve().parents[3]
LONG_S = 230.0
# A model of this machine's would be asked.
ALONE = {
    "KSI_MODELS_MODEL": "builtin/extractive",
    "KSI_MODELS_FIND_LOCAL": "false",
    "KSI_MODELS_KEYRING": "false",
}
CLAIMS = (
    "1 A daemon starts, with a Postgres of its own ✓ it is ready after",
    "10 plugins are at work in it",
    "files are remembered in",
    "all three have answered",
    "each quote stands in the part of the documentation",
    "step 1 is done; the letter of step 2 is in the box",
    "the daemon is gone",
    "it is ready again",
    "it doesn't post the letter again, but asks",
    "step 1 was not done again",
    "the agent has gone on where it was",
    "its model was asked 3 times in all",
    "the letter is in the box once",
    "these words stand in the file plugins/README.md",
    "the demo's daemon has stopped, and all that it had is deleted",
)


@pytest.fixture
def ksi(ksi_home: Path, tmp_path: Path) -> KsiCommand:
    return KsiCommand(ksi_home, tmp_path, ALONE)


@pytest.mark.timeout(240)  # a database is made, and three daemons are started
def test_the_demo_proves_what_it_shows_and_leaves_nothing(ksi: KsiCommand) -> None:
    (ksi.home / "ksi.toml").write_text("[models]\nmax_attempts = 3\n")
    # None of these is the demo's affair, and any of them would keep it from working.
    alien = {
        "KSI_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing",
        "KSI_SOCKET": str(ksi.home / "nowhere.sock"),
        "KSI_TOKEN_FILE": str(ksi.home / "no-token"),
        "KSI_DAEMON_PLUGINS": "system",
    }

    failed = ksi("demo", "--yes", **alien, KSI_MODELS_MAX_ATTEMPTS="none")
    left = sorted(path.name for path in (ksi.home / "demo").iterdir())
    done = run_long(ksi, "demo", "--yes", **alien)

    assert (failed.code, left) == (1, [LOCK, "home"])
    assert "KSI_MODELS_MAX_ATTEMPTS" in failed.err
    assert done.err == ""
    lines = done.out.splitlines()
    said = " ".join(done.out.split())
    assert [claim for claim in CLAIMS if claim not in said] == []
    assert done.out.count("✓") == len(CLAIMS)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line != line.rstrip() and not line.endswith("> ")] == []
    assert [path.name for path in ksi.home.iterdir()] == ["ksi.toml"]


def test_ctrl_c_ends_it_and_what_it_has_started(ksi: KsiCommand) -> None:
    with ksi.begin("demo", "--yes") as demo:
        read_until(demo.stdout, "A daemon starts")
        demo.send_signal(signal.SIGINT)
        _, told = demo.communicate(timeout=50)

    assert demo.returncode == 130
    assert told.startswith("interrupted; the demo's daemon has stopped")
    assert list(ksi.home.iterdir()) == []


def test_without_a_terminal_it_says_how_it_goes_by_itself(ksi: KsiCommand) -> None:
    told = ksi("demo")

    assert told.code == 2
    assert "--yes" in told.err


def test_a_home_that_can_not_be_written_to_is_one_clear_sentence(ksi: KsiCommand) -> None:
    (ksi.home / "file").touch()

    told = ksi("demo", "--yes", KSI_HOME=str(ksi.home / "file" / "home"))

    assert told.code == 1
    assert "the demo can't be in" in told.err
    assert "set KSI_HOME" in told.err
    assert told.err.count("\n") == 1


def test_daemon_control_hands_over_what_ksi_has() -> None:
    known = {point.name for point in own_commands()}

    assert set(daemon_control.COMMANDS) - {"test"} <= known


# -- its place -----------------------------------------------------------------------------------


def test_there_is_one_demo_at_a_time(tmp_path: Path) -> None:
    with Place(tmp_path), pytest.raises(Conflict, match="another demo runs"), Place(tmp_path):
        pass

    with Place(tmp_path) as again:
        again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_demo_s_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "recordings.txt").write_text("mine")

    with pytest.raises(Conflict, match="no demo made it"), Place(tmp_path):
        pass

    assert (tmp_path / "demo" / "recordings.txt").read_text() == "mine"


def test_a_home_that_was_there_stays_and_one_that_was_made_goes(tmp_path: Path) -> None:
    was_there, was_not = tmp_path / "there", tmp_path / "made" / ".ksi"
    was_there.mkdir()

    for home in (was_there, was_not):
        with Place(home) as place:
            place.prepare()
            place.remove()

    assert list(was_there.iterdir()) == []
    assert not was_not.exists()


def test_models_and_keys_are_borrowed_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_DATABASE_URL", "postgresql://mine")
    monkeypatch.setenv("KSI_MODELS_MODEL", "local:qwen3")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "local").write_text("secret")
    (tmp_path / "ksi.toml").write_text(
        '[agents]\nmax_agents = 1\n[models.providers.local]\nbase_url = "http://a/\\u007f\\"b"\n'
    )

    with Place(tmp_path) as place:
        place.prepare()
        settings = tomllib.loads((place.home / "ksi.toml").read_text())
        key = (place.home / "keys" / "local").read_text()
        place.remove()

    ours = {name: text for name, text in place.environ.items() if name.startswith("KSI_")}
    assert ours == {"KSI_HOME": str(place.home), "KSI_MODELS_MODEL": "local:qwen3"}
    assert settings["models"] == {"providers": {"local": {"base_url": 'http://a/\x7f"b'}}}
    assert "agents" not in settings
    assert key == "secret"
    assert (tmp_path / "keys" / "local").read_text() == "secret"


def test_tables_are_read_again_as_they_were_written() -> None:
    tables = {"a": {"b c": [1, 2.5, True, "ü\n"], "d": {"e": {}}}, "f": {}}

    assert tomllib.loads(as_toml(tables)) == tables


# -- what it reads -------------------------------------------------------------------------------


def test_it_reads_every_document_of_the_checkout(tmp_path: Path) -> None:
    count = documents.gather(tmp_path)

    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert len(copied) == count
    assert {"README.md", "plugins/README.md", "plugins/ksi_tools/README.md"} <= copied
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")} <= copied


def test_what_was_installed_is_read_where_there_is_no_checkout(tmp_path: Path) -> None:
    (tmp_path / "_docs" / "docs").mkdir(parents=True)
    (tmp_path / "_docs" / "docs" / "wire.md").write_text("# Wire")

    found = documents.documents(tmp_path, tmp_path / "nowhere")

    assert found["docs/wire.md"].read_text() == "# Wire"
    assert "plugins/ksi_tools/README.md" in found
    assert "README.md" not in found


def test_a_quote_is_found_whatever_its_lines_and_where_it_breaks_off() -> None:
    text = "One line,\n  and *another*.\n"

    assert is_within("line, and *another*.", text)
    assert is_within("One line, and …", text)
    assert not is_within("one more line", text)
    assert not is_within(" …", text)


# -- what it shows -------------------------------------------------------------------------------


@pytest.fixture
def shown() -> tuple[Screen, StringIO]:
    file = StringIO()
    return Screen(Console(file=file, width=40, highlight=False)), file


def test_a_claim_that_does_not_hold_ends_it_and_is_named(
    shown: tuple[Screen, StringIO],
) -> None:
    screen, file = shown
    screen.stage("Sums")
    screen.claim("one is one", holds=True)

    with pytest.raises(Broken, match="does not hold: one is two; found: 1"):
        screen.claim("one is two", holds=False, found=1)

    assert file.getvalue() == "\n1  Sums\n   ✓ one is one\n   ✗ one is two\n"
    assert [(each.stage, each.claim) for each in screen.claims] == [("Sums", "one is one")]


def test_what_is_shown_fits_and_steers_nothing(shown: tuple[Screen, StringIO]) -> None:
    screen, file = shown

    screen.lines(["x" * 99, "\x1b[2J [red]plain[/red]"])
    screen.claim("word " * 12, holds=True)

    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0].endswith("…")
    assert lines[1] == "   \\x1b[2J [red]plain[/red]"
    assert all(line.startswith("     word") for line in lines[3:])


def test_an_excerpt_says_that_there_is_more() -> None:
    assert excerpt("a b\n\nc", 10, 4) == ["a b", "c"]
    assert excerpt("one two three", 5, 2) == ["one", "two …"]


KEYS = """
import asyncio
from ksi_cli.demo.answers import Keyboard, Left

async def main():
    with Keyboard() as keyboard:
        print("key?", flush=True)
        print("got", await keyboard.key("kmq"), flush=True)
        print("got", await keyboard.line(lambda: print("line?", flush=True)), flush=True)
        print("last?", flush=True)
        try:
            await keyboard.key("k")
        except Left:
            print("left", flush=True)

asyncio.run(main())
"""


def test_keys_need_no_enter_and_lines_can_be_edited(ksi: KsiCommand) -> None:
    with terminal([sys.executable, "-P", "-c", KEYS], ksi.environ) as opened:
        opened.until("key?")
        opened.type("xM")
        opened.until("got m")
        opened.until("line?")
        opened.type("why\x7f\x7fho?\n")
        opened.until("got who?")
        opened.until("last?")
        opened.type("\x04")
        opened.until("left")

        assert opened.wait() == 0


def read_until(stream: IO[str] | None, wanted: str) -> None:
    for line in stream or ():
        if wanted in line:
            return
    raise AssertionError(f"{wanted!r} never came")


def run_long(ksi: KsiCommand, *words: str, **environ: str) -> Finished:
    """Run a command that takes longer than others may."""
    done = forks.run("ksi_cli", words, env={**ksi.environ, **environ}, timeout_s=LONG_S)
    return Finished(done.returncode, done.stdout, done.stderr)

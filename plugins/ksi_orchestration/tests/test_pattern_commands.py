"""``ksi pattern``, with a daemon."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ksi_cli.output import UsageError
from ksi_client import NotFound
from ksi_daemon.testing import DaemonProcess, write_entry_points
from ksi_orchestration.commands import patterns

Command = Callable[..., Result]
SOURCES = Path(__file__).parent
PANEL = "name: panel\nroles: {ann: {}}\nstages: [{name: all, kind: parallel}]\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a daemon that all tests here share."""
    installed = tmp_path_factory.mktemp("installed")
    write_entry_points(installed, patterning="patterning_plugin")
    paths = [str(installed), str(SOURCES), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory(prefix="ksi-patterns-") as folder:
        environ = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        daemon = DaemonProcess(Path(folder), environ=environ)
        daemon.start("--set", "daemon.plugins=system,patterning")
        try:
            yield Path(folder)
        finally:
            daemon.stop()


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are run; the daemon has no patterns of its own."""
    for file in (home / "patterns").glob("*"):
        file.unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command beside the daemon, in a terminal of 80 columns."""
    monkeypatch.setenv("KSI_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*words: str, stdin: str | None = None) -> Result:
        done = CliRunner().invoke(patterns.pattern, list(words), input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


def keep(home: Path, name: str, text: str) -> None:
    (home / "patterns").mkdir(exist_ok=True)
    (home / "patterns" / name).write_text(text)


def test_patterns_are_listed_with_where_they_are_from(run: Command, home: Path) -> None:
    keep(home, "mine.yaml", PANEL)

    done = run("list")

    lines = done.stdout.splitlines()
    assert lines[0].split() == ["PATTERN", "IS", "WHAT", "IT", "IS", "GOOD", "FOR"]
    assert any(line.startswith("debate         built-in   Two argue for") for line in lines)
    assert "panel          mine.yaml" in done.stdout
    assert max(map(len, lines)) <= 80
    assert done.exit_code == 0


def test_what_is_wrong_with_a_file_is_told_beside_the_list(run: Command, home: Path) -> None:
    keep(home, "mine.yaml", PANEL.replace("parallel", "paralel\x1b[2J"))

    done = run("list")

    assert done.exit_code == 0
    assert "panel" not in done.stdout
    assert "mine.yaml:" in done.stderr
    assert "\x1b" not in done.output


def test_a_pattern_is_shown_as_it_was_written_or_with_all_that_it_comes_to(
    run: Command, home: Path
) -> None:
    keep(home, "mine.yaml", PANEL)

    assert run("show", "panel").stdout == PANEL
    assert json.loads(run("show", "panel", "--resolved").stdout)["limits"]["turns"] == 200
    shown = json.loads(run("show", "debate", "--json").stdout)
    assert shown["info"]["roles"] == ["proponent", "opponent", "judge"]
    with pytest.raises(NotFound, match="did you mean panel"):
        run("show", "panl")


def test_what_is_shown_is_a_pattern_again(run: Command, folder: Path) -> None:
    (folder / "mine.yaml").write_text(run("show", "brainstorm").stdout)

    assert run("validate", "mine.yaml").stdout == "1 sound: brainstorm\n"


def test_files_are_checked_with_line_and_field(run: Command, folder: Path) -> None:
    (folder / "good.yaml").write_text(PANEL)
    (folder / "bad.yaml").write_text(PANEL.replace("ann", "person").replace("all", "a b"))

    done = run("validate", "good.yaml", "bad.yaml")

    assert done.exit_code == 1
    assert done.stdout == "1 sound: panel\n"
    assert done.stderr.startswith("bad.yaml:3: stages[0].name: the name of a role or a stage is")
    told = json.loads(run("validate", "bad.yaml", "--json").stdout)
    assert told["problems"][0]["line"] == 3


def test_the_schema_is_printed_for_editors(run: Command) -> None:
    pretty, compact = run("schema").stdout, run("schema", "--json").stdout

    assert json.loads(pretty) == json.loads(compact)
    assert json.loads(pretty)["title"] == "A pattern of KSI"
    assert compact.count("\n") == 1


def test_what_comes_on_stdin_is_checked(run: Command) -> None:
    assert run("validate", "-", stdin=PANEL).stdout == "1 sound: panel\n"


def test_a_file_that_can_not_be_read_is_told(run: Command, folder: Path) -> None:
    (folder / "empty.yaml").touch()
    (folder / "binary.yaml").write_bytes(b"name: a\n\xff")
    (folder / "huge.yaml").write_bytes(b"#" * 1_000_001)

    for name, told in (
        ("none.yaml", "none.yaml can't be read: No such file"),
        ("empty.yaml", "empty.yaml is empty"),
        ("binary.yaml", "binary.yaml:2: it is no UTF-8 text"),
        ("huge.yaml", "huge.yaml is larger than 1,000,000 bytes"),
    ):
        with pytest.raises(UsageError, match=told):
            run("validate", name)


def test_names_of_patterns_are_suggested(run: Command) -> None:
    assert patterns.suggested("de") == ["debate"]
    assert patterns.suggested("x") == []

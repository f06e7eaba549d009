"""``ksi apply`` and the commands of ``ksi agent`` that are of definitions, with a daemon."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from ksi_agents.commands import definitions
from ksi_cli.connection import connect
from ksi_cli.output import UsageError
from ksi_client import Conflict, NotFound
from ksi_daemon.testing import DaemonProcess, write_entry_points
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

Command = Callable[..., Result]
SOURCES = Path(__file__).parent
PLUGINS = "daemon.plugins=system,postgres,models,defining"
HELPER = "---\nname: helper\ndescription: Helps.\nmodel: test/echo\n---\n\nYou help.\n"


@pytest.fixture(scope="module")
def home(
    _postgres_loop: _Loop, postgres_server: TestServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The home of a daemon that all tests here share."""
    installed = tmp_path_factory.mktemp("installed")
    write_entry_points(installed, defining="defining_plugin")
    paths = [str(installed), str(SOURCES), os.environ.get("PYTHONPATH", "")]
    logins = _postgres_loop.run(fresh_database(postgres_server))
    settings = (*settings_for(logins), PLUGINS, "defining.max_definitions=50")
    with tempfile.TemporaryDirectory(prefix="ksi-agents-") as folder:
        environ = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        daemon = DaemonProcess(Path(folder), environ=environ)
        daemon.start(*(part for each in settings for part in ("--set", each)))
        try:
            yield Path(folder)
        finally:
            daemon.stop()
    _postgres_loop.run(drop_database(postgres_server, logins))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the definitions lie; commands are run there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command beside the daemon, in a terminal of 80 columns; nothing is applied."""
    monkeypatch.setenv("KSI_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")
    with connect() as client:
        listed = client.request("agent:definitions", {"limit": 1000})["definitions"]
        names = [each["name"] for each in listed if each["origin"] == "applied"]
        if names:
            client.request("agent:remove", {"names": names})
    applying = typer.Typer()
    applying.command()(definitions.apply)

    def invoke(*words: str, stdin: str | None = None) -> Result:
        is_apply = words[0] == "apply"
        app = applying if is_apply else definitions.app
        done = CliRunner().invoke(app, list(words[1:] if is_apply else words), input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


def version_of(name: str) -> int:
    with connect() as client:
        found: int = client.request("agent:definition", {"name": name})["info"]["version"]
        return found


def test_a_directory_is_applied_and_its_changes_are_shown(run: Command, folder: Path) -> None:
    (folder / "agents" / "deep").mkdir(parents=True)
    (folder / "agents" / "helper.md").write_text(HELPER)
    (folder / "agents" / "README.md").write_text("# Our agents\n")
    (folder / "agents" / ".hidden.yaml").write_text("name: hidden\n")
    (folder / "agents" / "notes.txt").write_text("nothing\n")
    (folder / "agents" / "deep" / "two.yaml").write_text("name: a\n---\nname: b\n")

    first = run("apply", "-f", "agents")
    before = version_of("helper")
    again = run("apply", "-f", "agents")
    (folder / "agents" / "helper.md").write_text(HELPER.replace("You help.", "You serve."))
    changed = run("apply", "-f", "agents")

    assert [line.split()[:2] for line in first.output.splitlines()] == [
        ["a", "created,"],
        ["b", "created,"],
        ["helper", "created,"],
    ]
    assert again.output.count("unchanged") == 3
    assert f"helper  changed, version {before + 1}\n" in changed.output
    assert "  -You help.\n  +You serve.\n" in changed.output
    assert (first.exit_code, again.exit_code, changed.exit_code) == (0, 0, 0)


def test_what_is_wrong_is_told_as_compilers_do_and_nothing_is_kept(
    run: Command, folder: Path
) -> None:
    (folder / "good.yaml").write_text("name: good\n")
    (folder / "bad.md").write_text(HELPER.replace("model:", "modle:"))

    done = run("apply", "-f", "good.yaml", "-f", "bad.md")

    assert done.exit_code == 1
    assert done.stderr == (
        "bad.md:4: modle: there is no field 'modle'; did you mean model?\nksi: nothing is changed\n"
    )
    assert done.stdout == ""
    with pytest.raises(NotFound):
        run("show", "good")


def test_a_warning_does_not_fail_it(run: Command, folder: Path) -> None:
    (folder / "a.yaml").write_text("name: a\ntools: [calender]\n")

    done = run("validate", "a.yaml")

    assert done.exit_code == 0
    assert done.stdout == "1 sound: a\n"
    assert done.stderr == (
        "a.yaml:2: warning: tools[0]: no tool 'calender' is there now; did you mean calendar?\n"
    )


def test_validating_fails_where_something_is_wrong(run: Command) -> None:
    done = run("validate", "-", stdin="name: A b\n")

    assert done.exit_code == 1
    assert done.stderr.startswith("stdin:1: name: a name is made of")


def test_diff_shows_what_would_change_and_says_so_by_its_exit_code(
    run: Command, folder: Path
) -> None:
    (folder / "helper.md").write_text(HELPER)

    new = run("diff", "helper.md")
    run("apply", "-f", "helper.md")
    same = run("diff", "helper.md")

    assert new.exit_code == 1
    assert "helper  would be created" in new.output
    assert "  +You help." in new.output
    assert same.exit_code == 0
    assert "helper  unchanged" in same.output


def test_pruning_deletes_what_is_gone_from_the_set(run: Command, folder: Path) -> None:
    (folder / "a.yaml").write_text("name: a\n---\nname: b\n")
    run("apply", "-f", "a.yaml", "--set", "mine")
    (folder / "a.yaml").write_text("name: a\n")

    dry = run("apply", "-f", "a.yaml", "--set", "mine", "--prune", "--dry-run")
    done = run("apply", "-f", "a.yaml", "--set", "mine", "--prune")

    assert "b  would be pruned\n  --- b\n" in dry.output
    assert done.output.splitlines()[-1] == "b  pruned"
    with pytest.raises(NotFound):
        run("show", "b")


def test_it_is_listed_shown_rolled_back_and_deleted(run: Command, folder: Path) -> None:
    (folder / "helper.md").write_text(HELPER)
    run("apply", "-f", "helper.md")
    first = version_of("helper")
    (folder / "helper.md").write_text(HELPER.replace("You help.", "You serve."))
    run("apply", "-f", "helper.md")

    listed = run("definitions").output
    assert "built-in" in listed
    assert ["helper", str(first + 1), "applied", "test/echo", "Helps."] in [
        line.split() for line in listed.splitlines()
    ]
    assert max(map(len, listed.splitlines())) <= 80
    assert run("show", "helper").output.rstrip("\n") == (folder / "helper.md").read_text().rstrip()
    shown = json.loads(run("show", "helper", "--resolved").output)
    assert (shown["prompt"], shown["restart"]["policy"]) == ("You serve.", "on-failure")
    told = run("history", "helper").output
    assert f"version {first + 1}" in told
    assert "(current)" in told
    assert "  +You serve." in told

    back = run("rollback", "helper", str(first))
    assert f"helper  changed, version {first + 2}" in back.output
    assert run("show", "helper").output.rstrip("\n").endswith("You help.")
    deleted = run("delete", "helper", "nobody")
    assert deleted.stdout == "helper  deleted\n"
    assert "there is no definition nobody" in deleted.stderr
    assert deleted.exit_code == 4


def test_one_that_others_extend_is_not_deleted(run: Command) -> None:
    run("apply", "-f", "-", stdin="name: base\n---\nname: own\nextends: base\n")

    with pytest.raises(Conflict, match="since own extends it"):
        run("delete", "base")
    assert run("delete", "base", "own").exit_code == 0


def test_the_schema_is_printed_for_editors(run: Command) -> None:
    pretty, compact = run("schema").output, run("schema", "--json").output

    assert json.loads(pretty) == json.loads(compact)
    assert json.loads(pretty)["properties"]["limits"]["description"]
    assert compact.count("\n") == 1


def test_every_command_speaks_json(run: Command, folder: Path) -> None:
    (folder / "helper.md").write_text(HELPER)
    applied = json.loads(run("apply", "-f", "helper.md", "--json").output)
    wrong = run("apply", "-f", "-", "--json", stdin="nam: a")

    assert applied["applied"][0]["name"] == "helper"
    assert wrong.exit_code == 1
    assert wrong.stderr == ""
    assert json.loads(wrong.stdout)["problems"][0]["field"] == "nam"
    for words in (
        ("validate", "helper.md"), ("definitions",), ("show", "helper"), ("history", "helper"),
        ("diff", "helper.md"), ("delete", "helper"),
    ):  # fmt: skip
        assert json.loads(run(*words, "--json").output)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("nothing.yaml", None, "can't be read: No such file"),
        ("empty.yaml", b"", "empty.yaml is empty"),
        ("latin.yaml", b"name: a\nprompt: \xff\n", "latin.yaml:2: it is no UTF-8"),
        ("large.yaml", b"#" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_can_t_be_read_is_told_of(
    run: Command, folder: Path, name: str, data: bytes | None, why: str
) -> None:
    if data is not None:
        (folder / name).write_bytes(data)

    with pytest.raises(UsageError, match=why):
        run("apply", "-f", name)


def test_a_directory_without_definitions_is_told_of(run: Command, folder: Path) -> None:
    (folder / "README.md").write_text("# Nothing\n")

    with pytest.raises(UsageError, match="no definitions there"):
        run("apply", "-f", ".")


def test_what_a_definition_says_does_not_steer_the_terminal(run: Command, folder: Path) -> None:
    (folder / "a.yaml").write_text('name: a\ndescription: "\\e[31mred"\n')
    run("apply", "-f", "a.yaml")

    assert "\x1b" not in run("definitions", "a").output

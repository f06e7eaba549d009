"""``ksi memory`` and ``ksi schema``, with a daemon of their own."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ksi_cli.connection import connect
from ksi_cli.output import UsageError
from ksi_client import NotFound
from ksi_daemon.testing import DaemonProcess
from ksi_memory.commands.memory import memory, schema
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

Command = Callable[..., Result]
WRAPPED = {"list", "stats", "forget", "verify"}
PLUGINS = "daemon.plugins=system,postgres,workflows,models,tools,completion,memory"


@pytest.fixture(scope="module")
def home(_postgres_loop: _Loop, postgres_server: TestServer) -> Iterator[Path]:
    """The home of a daemon that all tests here share."""
    logins = _postgres_loop.run(fresh_database(postgres_server))
    settings = (*settings_for(logins), PLUGINS, "memory.embedder=none")
    with tempfile.TemporaryDirectory(prefix="ksi-memory-") as folder:
        daemon = DaemonProcess(Path(folder))
        daemon.start(*(part for each in settings for part in ("--set", each)))
        try:
            yield Path(folder)
        finally:
            daemon.stop()
    _postgres_loop.run(drop_database(postgres_server, logins))


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command beside the daemon, in a terminal of 80 columns; nothing is remembered."""
    monkeypatch.setenv("KSI_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")
    with connect() as client:
        for item in client.request("memory:list", {})["items"]:
            client.request("memory:forget", {"id": item["id"]})

    def invoke(*words: str, stdin: str | None = None) -> Result:
        app = schema if words[0] == "schema" else memory
        done = CliRunner().invoke(app, list(words[1:]), input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if words[1] in WRAPPED:
            assert max(map(len, done.output.splitlines())) <= 80
        return done

    return invoke


def line(key: str, body: str) -> str:
    """Return what an upsert of a fact is told."""
    return json.dumps({"table": "facts", "items": [{"key": key, "title": key, "body": body}]})


def test_it_is_listed_shown_and_exported(run: Command, tmp_path: Path) -> None:
    assert "nothing is remembered yet" in run("memory", "stats").output
    with connect() as client:
        client.request("memory:upsert", json.loads(line("Tea " + "x" * 100, "with milk")))
        client.request("memory:upsert", json.loads(line("Tea", "with milk\x1b[31m")))

    listed = run("memory", "list", "facts")
    shown = run("memory", "get", "facts/tea")
    assert listed.output.splitlines()[1].split() == ["facts", "Tea", "1", "given", "all", "Tea"]
    assert "with milk\\x1b[31m" in shown.output
    with pytest.raises(NotFound, match="as of 2001"):
        run("memory", "get", "tea", "--as-of", "2001-01-01")

    out = tmp_path / "all.jsonl"
    exported = run("memory", "export", str(out))
    assert exported.output.startswith("2 versions are in")
    assert sum('"is": "item"' in each for each in out.read_text().splitlines()) == 2
    assert (out.stat().st_mode & 0o777) == 0o600


def test_what_is_not_there_is_told(run: Command) -> None:
    with pytest.raises(NotFound, match="nothing is remembered as 'tea'"):
        run("memory", "get", "tea")
    assert "nothing is remembered there" in run("memory", "list").output


def test_it_is_corrected_pinned_explained_and_forgotten(run: Command) -> None:
    with connect() as client:
        client.request("memory:upsert", json.loads(line("Tea", "with milk")))

    corrected = run("memory", "correct", "tea", "-", "--reason", "I know", stdin="no milk")
    pinned = run("memory", "pin", "tea")
    why = run("memory", "why", "tea")
    stats = run("memory", "stats")
    dry = run("memory", "forget", "tea", "--dry-run")
    gone = run("memory", "forget", "tea")
    loose = run("memory", "list", "--json")

    assert "2, given" in corrected.output
    assert corrected.output.endswith("no milk\n")
    assert pinned.output == "facts/Tea is pinned\n"
    assert why.output.splitlines()[0].startswith("version 2 of facts/Tea")
    assert "I know" in why.output
    assert "“with milk”" in why.output
    assert stats.output.splitlines()[1].split() == ["facts", "1", "2", "2"]
    assert dry.output.startswith("1 would be forgotten")
    assert gone.output.startswith("1 forgotten")
    assert "still in: backups" in gone.output
    assert json.loads(loose.output) == {"items": []}


def test_what_was_exported_is_imported(run: Command, tmp_path: Path) -> None:
    with connect() as client:
        for number in range(3):
            client.request("memory:upsert", json.loads(line(f"k{number}", "b")))
    file = tmp_path / "all.jsonl"
    run("memory", "export", str(file))
    with connect() as client:
        client.request("memory:forget", {"key": "k1"})

    again = run("memory", "import", str(file))
    told = run("memory", "import", "-", "--json", stdin="nonsense\n")

    assert again.exit_code == 1
    assert "0 taken in, " in again.output
    assert "k1: it was forgotten here" in again.output
    assert json.loads(told.output)["refused"][0]["place"] == 0


def test_a_schema_is_registered_shown_verified_and_deleted(run: Command, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text('{"type": "object", "required": ["minutes"]}')
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")

    made = run("schema", "register", "recipes", str(file), "--description", "What to cook")
    listed = run("schema", "list")
    shown = run("schema", "get", "recipes")
    verified = run("schema", "verify", "recipes")
    unfit = run("schema", "verify", "recipes", str(wrong))
    deleted = run("schema", "delete", "recipes")

    assert made.output == "table recipes is registered, version 1\n"
    assert listed.output.splitlines()[1].split()[:3] == ["table", "recipes", "1"]
    assert '"minutes"' in shown.output
    assert verified.output.startswith("0 checked, 0 don't fit")
    assert (unfit.exit_code, "minutes" in unfit.output) == (1, True)
    assert deleted.output == "table recipes is deleted\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("forget",), "--everything-of"),
        (("correct", "x"), "say what is right"),
        (("correct", "x", "--attributes", "[]"), "no JSON object"),
        (("get", "x", "--as-of", "yesterday"), "no time"),
        (("import", "/nowhere/at/all"), "can't be read"),
        (("export", "--json"), "name a file"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(words: tuple[str, ...], why: str) -> None:
    done = CliRunner().invoke(memory, list(words))

    assert isinstance(done.exception, UsageError)
    assert why in str(done.exception)

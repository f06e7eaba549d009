"""The command ``ksi upsert``."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from ksi_cli.output import UsageError
from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_daemon.protocol.events import Grants
from ksi_daemon.testing import installed_plugins
from ksi_memory import events as e
from ksi_memory.commands import upsert as load_commands
from ksi_memory.tests.loading import NEEDED, item


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[Any]:
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["memory.embedder=none"]


async def upsert(daemon: Daemon, *words: str, stdin: bytes = b"", **environ: str) -> Result:
    app = typer.Typer()
    app.command()(load_commands.upsert)
    return await asyncio.to_thread(
        CliRunner().invoke,
        app,
        list(words),
        input=stdin,
        env={"KSI_HOME": str(daemon.home.root), **environ},
    )


async def test_a_directory_is_remembered_and_what_was_left_out_is_told(
    client: AsyncClient, daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("# A\nsee [[nowhere]]\n")
    (tmp_path / "b.md").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "c.pdf").write_text("no")

    done = await upsert(daemon, str(tmp_path), "--name", "notes")
    again = await upsert(daemon, str(tmp_path), "--name", "notes", "--json")

    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "3 files (2 skipped); items: 3 new",
        "left out:",
        "  notes/b.md: it is not UTF-16-LE: its byte 2 is 0xfd; convert it first",
        "  notes/c.pdf: it is no PDF: it does not begin as one",
        "links to nothing:",
        "  nowhere",
    ]
    told = msgspec.json.decode(again.output, type=e.ContentLoaded)
    assert (told.unchanged_files, told.skipped_files, told.inserted) == (1, 2, 0)


async def test_rows_go_to_the_table_that_is_named_first(
    client: AsyncClient, daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "people.yaml"
    file.write_text("- key: ada\n  title: Ada\n- title: nobody\n")

    done = await upsert(daemon, "entities", str(file))
    piped = await upsert(daemon, "entities", "-", stdin=b"- key: bob\n  title: Bob\n")
    named = await upsert(daemon, "-", "--name", "note.md", stdin=b"# Note\n")

    assert "2 new" in done.output
    assert "people.yaml: row 1: it has no key" in done.output
    assert (piped.exit_code, named.exit_code) == (0, 0)
    assert (await item(client, "bob", "entities")).title == "Bob"
    assert (await item(client, "note.md", "ontologies")).title == "Note"


async def test_who_may_name_no_path_sends_the_file(
    client: AsyncClient, daemon: Daemon, tmp_path: Path
) -> None:
    grants = Grants(call=("content:*", "memory:*"))
    request = {"name": "app", "grants": grants, "user": "ada", "ttl_s": 60}
    token = (await client.request("token:create", request))["token"]
    (tmp_path / "token").write_text(token)
    (tmp_path / "mine.md").write_text("# Mine\n" + "word " * 300_000)

    done = await upsert(daemon, str(tmp_path / "mine.md"), KSI_TOKEN_FILE=str(tmp_path / "token"))

    assert done.exit_code == 0, done.output
    found = await client.request("memory:list", {"table": "files"})
    assert [(each["key"], each["owner"]) for each in found["items"]] == [("mine.md", "ada")]


async def test_where_all_was_left_out_the_command_fails(
    client: AsyncClient, daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "empty.md").write_text("")

    done = await upsert(daemon, str(tmp_path / "empty.md"))

    assert done.exit_code == 1
    assert "it is empty" in done.output


def test_a_table_alone_is_no_path(tmp_path: Path) -> None:
    assert load_commands.split(["entities", "x.yaml"]) == ("entities", ["x.yaml"])
    assert load_commands.split([str(tmp_path), "b"]) == ("", [str(tmp_path), "b"])
    with pytest.raises(UsageError, match="there is no file 'entities'"):
        load_commands.split(["entities"])


def test_what_was_told_before_an_interruption_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def stream(self, *_: Any, **__: Any) -> Any:
            yield e.ContentProgress(path="a", files_done=1, files_found=9, items=2)
            yield e.ContentProgress(path="b", files_done=2, files_found=9, items=0, skipped="why")
            raise KeyboardInterrupt

    loading = load_commands.Loading({})

    with pytest.raises(KeyboardInterrupt):
        loading.load(Interrupted(), "/x", None, lambda _: None)  # type: ignore[arg-type]  # as one

    assert (loading.told().files, loading.told().skipped_files) == (2, 1)
    assert [each.why for each in loading.told().problems] == ["why"]

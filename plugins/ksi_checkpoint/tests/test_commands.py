"""Tests of ``ksi checkpoint``: each a real command and a real daemon."""

import os
from pathlib import Path

import pytest

from ksi_checkpoint.tests.conftest import SOURCES
from ksi_cli.testing import KsiCommand
from ksi_daemon.testing import DaemonProcess


@pytest.fixture
def ksi(daemon_process: DaemonProcess, notes_installed: None, tmp_path: Path) -> KsiCommand:
    """The command, and a daemon that has a note."""
    daemon_process.start()
    command = KsiCommand(daemon_process.home, tmp_path)
    done = command("send", "notes:add", "text=remember")
    assert done.code == 0, done.err
    return command


def test_a_checkpoint_goes_its_way_from_the_first_to_the_last(ksi: KsiCommand) -> None:
    assert "take one with" in ksi("checkpoint", "list").out

    made = ksi("checkpoint", "create", "--reason", "by hand")
    assert made.out == "checkpoint 1: saved notes\n"

    listed = ksi("checkpoint", "list").out
    assert "by hand" in listed
    assert max(map(len, listed.splitlines())) <= 80

    shown = ksi("checkpoint", "show", "1").out
    assert "by hand" in shown
    assert "notes" in shown
    assert ksi("checkpoint", "show", "1", "notes").out == '["remember"]\n'

    ksi("send", "notes:add", "text=more")
    assert ": gave back notes" in ksi("checkpoint", "restore").out
    assert ": gave back notes" in ksi("checkpoint", "restore", "1", "--plugin", "notes").out

    assert ksi("checkpoint", "delete", "1").out == "checkpoint 1 is deleted\n"
    assert ksi("checkpoint", "delete", "1").err == "ksi: there is no checkpoint 1\n"
    assert ksi("checkpoint", "acknowledge").out == "there were no problems\n"


def test_each_command_speaks_json(ksi: KsiCommand) -> None:
    made = ksi("checkpoint", "create", "--json").json
    listed = ksi("checkpoint", "list", "--json").json
    shown = ksi("checkpoint", "show", str(made["id"]), "notes", "--json").json
    restored = ksi("checkpoint", "restore", "--json").json
    seen = ksi("checkpoint", "acknowledge", "--json").json
    deleted = ksi("checkpoint", "delete", str(made["id"]), "--json").json
    refused = ksi("checkpoint", "show", "99", "--json")

    assert [each["plugin"] for each in made["plugins"]] == ["notes"]
    assert [each["id"] for each in listed["checkpoints"]] == [made["id"]]
    assert shown["state"] == ["remember"]
    assert restored["id"] == made["id"]
    assert seen == {"problems": []}
    assert deleted == {"id": made["id"]}
    assert refused.code == 4
    assert refused.json["error"]["code"] == "not_found"


def test_what_failed_is_told_with_its_reason(ksi: KsiCommand) -> None:
    ksi("checkpoint", "create")
    ksi("send", "notes:misbehave")

    made = ksi("checkpoint", "create").out
    listed = ksi("checkpoint", "list").out
    restored = ksi("checkpoint", "restore").out
    health = ksi("health").out

    assert "nothing: no plugin has any state" in made
    assert "notes   its answer to checkpoint:collect is not a version" in made
    assert "0 (1 failed)" in listed
    assert "the state of notes was not saved" in " ".join(health.split())
    assert "notes got the state of checkpoint 1" in restored


def test_without_a_daemon_it_says_so(ksi_home: Path, tmp_path: Path) -> None:
    ksi = KsiCommand(ksi_home, tmp_path, {"PYTHONPATH": os.fspath(SOURCES)})

    done = ksi("checkpoint", "list")

    assert done.code == 3
    assert "ksi start" in done.err

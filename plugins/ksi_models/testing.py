"""The test kit of the models, as a pytest plugin: ``fake_openai`` and others that stand in.

A daemon under test asks no real provider: it has no keys, looks for no local servers, and its
model is ``test/echo`` unless its test says otherwise. `settings_for_fake` points it at a fake:

    @pytest.fixture
    def ksi_settings(fake_openai_process):
        return settings_for_fake(fake_openai_process.url)
"""

import json
import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ksi_models.settings import KEY_VARIABLES

if TYPE_CHECKING:  # the servers are slow to import, and most tests need none
    from ksi_models.fakes.openai_server import FakeOpenAI

__all__ = ["FakeClaude", "FakeOpenAIProcess", "install_fake_claude", "settings_for_fake"]

TIMEOUT_S: Final = 20.0


def settings_for_fake(url: str, *, name: str = "fake", model: str = "fake-large") -> list[str]:
    """Return the settings that have a daemon ask a fake server, as its provider ``fake``."""
    providers = json.dumps({name: {"base_url": url}})
    return [f"models.providers={providers}", f"models.model={name}:{model}"]


class FakeOpenAIProcess:
    """A fake server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ksi_models.fakes.openai_server", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the fake server did not start"
        self.url: str = json.loads(line)["url"]

    def script(self, *replies: dict[str, Any]) -> None:
        """Say what the next requests are answered with; the members are those of `Reply`."""
        self._ask("/fake/script", json.dumps(replies).encode())

    def release(self) -> None:
        """Let all go on that stand still."""
        self._ask("/fake/release", b"")

    def log(self) -> dict[str, Any]:
        """Return what was asked so far: ``requests``, ``running``, ``most_running``."""
        found: dict[str, Any] = self._ask("/fake/log")
        return found

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        url = self.url.removesuffix("/v1") + path
        with urllib.request.urlopen(url, data=body, timeout=TIMEOUT_S) as response:
            return json.loads(response.read())


class FakeClaude:
    """A ``claude`` command that stands in for the real one, and what it keeps.

    Attributes:
        command: The executable file.
        config_folder: Its sessions, its login, and the log of how it was called.
    """

    def __init__(self, folder: Path) -> None:
        self.command = folder / "bin" / "claude"
        self.config_folder = folder / "claude-config"

    def cheat(self, *ways: str, fault: str = "", helper: str = "") -> None:
        """Have it cheat from now on: the ways are those of `ksi_models.fakes.claude_tools`.

        Args:
            ways: How it cheats.
            fault: What goes wrong with it, as the name of a model says it else.
            helper: The socket of another program of its user.
        """
        environ = {
            "FAKE_CLAUDE_FOLDER": str(self.config_folder),
            "FAKE_CLAUDE_CHEATS": " ".join(ways),
            "FAKE_CLAUDE_FAULT": fault,
            "FAKE_CLAUDE_HELPER": helper,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        told = " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())
        start = f"exec {shlex.quote(sys.executable)} -m ksi_models.fakes.claude_command"
        self.command.write_text(f'#!/bin/sh\n{told} {start} "$@"\n')
        self.command.chmod(0o755)

    @property
    def settings(self) -> list[str]:
        """The settings that have a daemon call it."""
        return [
            f"models.claude_command={self.command}",
            f"models.claude_config_folder={self.config_folder}",
        ]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """How it was called so far: ``arguments``, ``environ``, ``system``, ``input``, ``pid``."""
        log = self.config_folder / "fake-log.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def install_fake_claude(folder: Path) -> FakeClaude:
    """Make a fake ``claude`` command, logged in, in a folder."""
    fake = FakeClaude(folder)
    fake.command.parent.mkdir(parents=True, exist_ok=True)
    fake.config_folder.mkdir(parents=True, exist_ok=True)
    (fake.config_folder / ".credentials.json").write_text("{}")
    fake.cheat()
    return fake


@pytest.fixture(autouse=True)
def _no_keys_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the keys of whoever runs the tests out of them."""
    for name in list(os.environ):
        if any(fnmatchcase(name, glob) for glob in KEY_VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def ksi_settings_of_models() -> list[str]:
    """Have the daemon under test ask nobody outside, nor try a command that is installed here."""
    return [
        "models.model=test/echo",
        "models.find_local=false",
        "models.keyring=false",
        "models.claude_command=none-in-tests",
    ]


@pytest.fixture
async def fake_openai() -> "AsyncIterator[FakeOpenAI]":
    """A server that speaks OpenAI's protocol, on the test's own loop."""
    from ksi_models.fakes.openai_server import FakeOpenAI  # noqa: PLC0415  slow, and rarely needed

    async with FakeOpenAI().serving() as fake:
        yield fake


@pytest.fixture
def fake_openai_process() -> Iterator[FakeOpenAIProcess]:
    """The same in a process of its own, for daemons that are to be killed."""
    process = FakeOpenAIProcess()
    yield process
    process.stop()


@pytest.fixture
def fake_claude(tmp_path: Path) -> FakeClaude:
    """A ``claude`` command that is logged in, and needs no network."""
    return install_fake_claude(tmp_path / "fake-claude")

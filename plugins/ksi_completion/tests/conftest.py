"""Daemons with turns, and a model and tools that do as they are told."""

import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ksi_completion.tests.doubles import Script, Toolbox
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import write_entry_points
from ksi_postgres.logins import Logins
from ksi_postgres.testing import TestServer, drop_database, fresh_database
from ksi_workflows.engine import make_tables

SOURCES = Path(__file__).parent
NEEDED = ("postgres", "workflows", "completion")


@pytest.fixture(scope="session")
def engine_template(_postgres_loop: Any, postgres_server: TestServer) -> str:
    """The name of a database that has the engine's tables already, to be copied."""
    logins = _postgres_loop.run(fresh_database(postgres_server))
    make_tables(logins.admin)
    return str(urlsplit(logins.admin).path).removeprefix("/")


@pytest.fixture
def database_logins(
    _postgres_loop: Any, postgres_server: TestServer, engine_template: str
) -> Iterator[Logins]:
    """A database of the test's own with the engine's tables, and how to reach it."""
    logins = _postgres_loop.run(fresh_database(postgres_server, engine_template))
    yield logins
    _postgres_loop.run(drop_database(postgres_server, logins))


@pytest.fixture
def script() -> Script:
    """What the model says in its calls, one after the other."""
    return Script()


@pytest.fixture
def toolbox() -> Toolbox:
    """The tools that there are, and what was called of them."""
    return Toolbox()


@pytest.fixture
def ksi_plugins(script: Script, toolbox: Toolbox) -> list[EntryPoint]:
    """Turns and what they need, with doubles for models and tools."""
    installed = [point for point in entry_points(group="ksi") if point.name in NEEDED]
    return [*installed, script.plugin(), toolbox.plugin()]


@pytest.fixture
def ksi_settings_of_models() -> list[str]:
    """The double of the models has no settings."""
    return []


@pytest.fixture
def ksi_settings_of_tools() -> list[str]:
    """Nor has that of the tools."""
    return []


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the plugin ``errand`` for daemons in other processes; where it leaves traces."""
    write_entry_points(tmp_path, errand="errand_plugin")
    folders = [str(tmp_path), str(SOURCES), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    return tmp_path / "traces"

"""Daemons with turns, and a model and tools that do as they are told."""

import os
from pathlib import Path

import pytest

from ksi_completion.tests.doubles import Script, Toolbox
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins, write_entry_points

SOURCES = Path(__file__).parent
NEEDED = ("postgres", "workflows", "completion")


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


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
    installed = installed_plugins(*NEEDED)
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

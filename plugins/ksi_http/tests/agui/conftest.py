"""A daemon that has turns and agents, with a model that says what a test wants."""

import pytest

from ksi_completion.tests.doubles import Script
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins

NEEDED = ("postgres", "workflows", "tools", "completion", "agents", "http")


@pytest.fixture
def script() -> Script:
    """The model."""
    return Script()


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    """What runs need."""
    return [*installed_plugins(*NEEDED), script.plugin()]


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_settings_of_models() -> list[str]:
    """The double of the models has no settings."""
    return []

"""Daemons with conversations, and a model that says what a test wants."""

import pytest

from ksi_completion.tests.doubles import Script
from ksi_daemon.loader import EntryPoint
from ksi_memory.tests.talking import SETTINGS, needed


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def script() -> Script:
    """What the model says."""
    return Script()


@pytest.fixture
def more_plugins(request: pytest.FixtureRequest) -> tuple[EntryPoint, ...]:
    """Those that a test has besides, as its parameter."""
    return getattr(request, "param", ())


@pytest.fixture
def ksi_plugins(script: Script, more_plugins: tuple[EntryPoint, ...]) -> list[EntryPoint]:
    """The memory, what it needs, and the script."""
    return [*needed(), script.plugin(), *more_plugins]


@pytest.fixture
def ksi_settings_of_models() -> list[str]:
    """The double of the models has no settings."""
    return []


@pytest.fixture
def ksi_settings(request: pytest.FixtureRequest) -> list[str]:
    """Conversations are read at once; a test may have more settings as its parameter."""
    return [*SETTINGS, *getattr(request, "param", ())]

"""Daemons with orchestrations, whose members say what a test wants of them."""

import pytest

from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_orchestration.tests.doubles import Ensemble

NEEDED = ("postgres", "workflows", "tools", "completion", "agents", "orchestration")


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ensemble() -> Ensemble:
    """What the members say."""
    return Ensemble()


@pytest.fixture
def ksi_plugins(request: pytest.FixtureRequest, ksi_plugins: list[EntryPoint]) -> list[EntryPoint]:
    """Orchestrations and what they need, where a double stands for the models."""
    if "ensemble" not in request.fixturenames:
        return ksi_plugins
    installed = installed_plugins(*NEEDED)
    return [*installed, request.getfixturevalue("ensemble").plugin()]


@pytest.fixture
def ksi_settings_of_models(
    request: pytest.FixtureRequest, ksi_settings_of_models: list[str]
) -> list[str]:
    """The double of the models has no settings."""
    return [] if "ensemble" in request.fixturenames else ksi_settings_of_models

"""Daemons with agents; for tests that use ``script``, with a model that does as it is told."""

import pytest

from ksi_completion.tests.doubles import Script
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins

NEEDED = ("postgres", "workflows", "tools", "completion", "agents")


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def script() -> Script:
    """What the model says in its calls, one after the other."""
    return Script()


@pytest.fixture
def ksi_plugins(request: pytest.FixtureRequest, ksi_plugins: list[EntryPoint]) -> list[EntryPoint]:
    """Agents and what they need, where a double stands for the models."""
    if "script" not in request.fixturenames:
        return ksi_plugins
    installed = installed_plugins(*NEEDED)
    return [*installed, request.getfixturevalue("script").plugin()]


@pytest.fixture
def ksi_settings_of_models(
    request: pytest.FixtureRequest, ksi_settings_of_models: list[str]
) -> list[str]:
    """The double of the models has no settings."""
    return [] if "script" in request.fixturenames else ksi_settings_of_models

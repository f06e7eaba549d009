"""A daemon with what the suite calls, a server before it, and programs that are not KSI's."""

from typing import Any

import pytest

from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_mcp.tests.conformance import fixtures
from ksi_mcp.tests.conformance.programs import front_end

__all__ = ["front_end"]

NEEDED = ("postgres", "workflows", "tools", "models", "mcp", "http")


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """What the suite needs."""
    return [*installed_plugins(*NEEDED), fixtures.plugin()]


@pytest.fixture
def ksi_settings() -> list[str]:
    """The suite counts how often it is told of a tool's progress."""
    return ["tools.progress_interval_s=0"]


@pytest.fixture
def http_settings() -> dict[str, Any]:
    """The suite asks faster than a person."""
    return {"requests_per_s": 0}


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template

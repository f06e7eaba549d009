"""A daemon with what the tests of requests need, and no more: it starts in a fraction."""

from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from typing import Any

import pytest

from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import module_plugin
from ksi_http.tests.odd_plugin import Odd

NEEDED = ("postgres", "http")


@pytest.fixture
def odd() -> Odd:
    """The plugin of the tests."""
    return Odd()


@pytest.fixture
def ksi_plugins(odd: Odd) -> list[EntryPoint]:
    """What the daemon of these tests loads."""

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        plugin.add(odd)
        yield

    needed: list[Any] = [p for p in entry_points(group="ksi") if p.name in NEEDED]
    return [*needed, module_plugin("odd", ksi_lifespan=ksi_lifespan)]

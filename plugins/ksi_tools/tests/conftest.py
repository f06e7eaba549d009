"""Daemons with tools, on a fresh database each."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, LocalTransport
from ksi_daemon.daemon import Daemon
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins, module_plugin, running_daemon, write_entry_points
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for
from ksi_tools.api import Tools
from ksi_workflows.api import Workflows

SOURCES = Path(__file__).parent
NEEDED = ("postgres", "workflows", "tools")


class Client(AsyncClient):
    """A client of a daemon on the test's own loop, for tests that look inside."""

    daemon: Daemon


Run = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def installed() -> list[EntryPoint]:
    """The tools, and what they need."""
    return installed_plugins(*NEEDED)


def plugin_of(name: str, *owners: object, functions: tuple[object, ...] = ()) -> EntryPoint:
    """Make a plugin of objects with decorated methods, and of functions that are tools."""

    async def lifespan(plugin: Any) -> AsyncIterator[None]:
        plugin.add(*owners)
        for function in functions:
            if hasattr(function, "bus"):
                function.bus = plugin.bus
            plugin.service(Workflows).register(*getattr(function, "workflows", ()))
        with plugin.service(Tools).add(*functions, provider=plugin.name):
            yield

    def info() -> PluginInfo:
        return PluginInfo(requires=("tools", "workflows"))

    return module_plugin(name, ksi_plugin=hookimpl(info), ksi_lifespan=hookimpl(lifespan))


@pytest.fixture
def run(ksi_home: Path, database_logins: Logins, installed: list[EntryPoint]) -> Run:
    """Run a daemon on the test's database with functions as tools, for as long as a block."""

    @asynccontextmanager
    async def running(
        *functions: object, owners: tuple[object, ...] = (), settings: tuple[str, ...] = ()
    ) -> AsyncIterator[Client]:
        chosen = [*settings_for(database_logins), *settings]
        plugins = [*installed, plugin_of("work", *owners, functions=functions)]
        async with (
            running_daemon(ksi_home, *plugins, settings=chosen) as daemon,
            Client(LocalTransport(daemon)) as client,
        ):
            client.daemon = daemon
            yield client

    return running


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the plugin ``work`` for daemons in other processes; returns where to leave traces."""
    write_entry_points(tmp_path, work="effects_plugin")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCES}")
    return tmp_path / "traces"

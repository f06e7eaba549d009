"""Daemons with checkpoints, on a fresh database each, and plugins that have something to lose."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, LocalTransport
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins, module_plugin, running_daemon, write_entry_points
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for

SOURCES = Path(__file__).parent
NEEDED = ("postgres", "journal", "checkpoint")

Run = Callable[..., AbstractAsyncContextManager[AsyncClient]]


@pytest.fixture
def installed() -> list[EntryPoint]:
    """The checkpoints, and what they need."""
    return installed_plugins(*NEEDED)


@pytest.fixture
def ksi_plugins(installed: list[EntryPoint]) -> list[EntryPoint]:
    """What the fixture ``daemon`` loads."""
    return installed


@pytest.fixture
def run(ksi_home: Path, database_logins: Logins, installed: list[EntryPoint]) -> Run:
    """Run a daemon on the test's database with objects as plugins, for as long as a block."""

    @asynccontextmanager
    async def running(
        *settings: str, home: Path = ksi_home, **plugins: Any
    ) -> AsyncIterator[AsyncClient]:
        points = [
            member if hasattr(member, "load") else plugin_of(name, member)
            for name, member in plugins.items()
        ]
        chosen = [*settings_for(database_logins), *settings]
        async with (
            running_daemon(home, *installed, *points, settings=chosen) as daemon,
            AsyncClient(LocalTransport(daemon)) as client,
        ):
            yield client

    return running


def plugin_of(name: str, owner: Any) -> EntryPoint:
    """Make a plugin of an object with decorated methods."""

    async def lifespan(plugin: Any) -> AsyncIterator[None]:
        plugin.add(owner)
        yield

    return module_plugin(name, ksi_lifespan=hookimpl(lifespan))


@pytest.fixture
def notes_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_logins: Logins
) -> None:
    """Install the plugin ``notes`` for daemons in other processes, on the test's database."""
    write_entry_points(tmp_path, notes="notes_plugin")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCES}")
    monkeypatch.setenv("KSI_DATABASE_URL", database_logins.admin)
    monkeypatch.setenv("KSI_DAEMON_PLUGINS", ",".join(("system", *NEEDED, "notes")))

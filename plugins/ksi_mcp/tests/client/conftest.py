"""Connections to servers that fail, and daemons that have such servers."""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.testing import DaemonProcess
from ksi_mcp.client.wires.connection import Connection
from ksi_mcp.events import McpServer
from ksi_mcp.settings import McpSettings
from ksi_postgres.logins import Logins
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database, settings_for

SHARED = ("daemon.plugins=system,postgres,workflows,models,tools,mcp", "models.find_local=false")
FAULTY = str(Path(__file__).with_name("faulty_server.py"))


def faulty(folder: Path, **more: Any) -> McpServer:
    """Return a server that fails as it is told; what it leaves is in the folder."""
    folder.mkdir(exist_ok=True)
    args = ("-I", "-S", FAULTY, str(folder))
    return McpServer(command=sys.executable, args=args, **{"handshake": "legacy", **more})


def calls(folder: Path) -> list[str]:
    """Return the calls that a server has got."""
    file = folder / "calls"
    return file.read_text().split() if file.exists() else []


class Told:
    """What is told while something is connected and called."""

    def __init__(self) -> None:
        self.lists: list[list[dict[str, Any]]] = []
        self.is_all = True
        self.progress: list[str] = []
        self.changed = asyncio.Event()

    async def listed(self, found: list[dict[str, Any]], is_all: bool) -> None:
        self.lists.append(found)
        self.is_all = is_all
        self.changed.set()

    def progressed(
        self, message: str, done: float | None = None, total: float | None = None
    ) -> None:
        self.progress.append(message)
        self.changed.set()


Connected = Callable[..., AbstractAsyncContextManager[tuple[Connection, Told]]]


@pytest.fixture
def connected(tmp_path: Path) -> Connected:
    """Connect a server, and leave it."""

    @asynccontextmanager
    async def connecting(
        server: McpServer | None = None,
        settings: McpSettings | None = None,
        login: Path | None = None,
    ) -> AsyncIterator[tuple[Connection, Told]]:
        told = Told()
        connection = Connection(
            "faulty",
            server or faulty(tmp_path / "faulty"),
            settings or McpSettings(),
            tmp_path / "home",
            told.listed,
            login,
        )
        async with asyncio.TaskGroup() as group:
            connection.start(group)
            await connection.is_ready.wait()
            try:
                yield connection, told
            finally:
                connection.end()

    return connecting


def tools_of(*names: str, **more: Any) -> str:
    """Return the text of a file with tools."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    return json.dumps([{"name": name, "inputSchema": schema, **more} for name in names])


@pytest.fixture(scope="session")
def shared_logins(
    _postgres_loop: _Loop, postgres_server: TestServer, engine_template: str
) -> Iterator[Logins]:
    """The database of a daemon that tests share."""
    logins = _postgres_loop.run(fresh_database(postgres_server, engine_template))
    yield logins
    _postgres_loop.run(drop_database(postgres_server, logins))


@pytest.fixture(scope="session")
def home(shared_logins: Logins) -> Iterator[Path]:
    """The home of a daemon that tests share which add servers of their own."""
    with tempfile.TemporaryDirectory(prefix="ksi-mcp-") as folder:
        daemon = DaemonProcess(Path(folder))
        settings = (*settings_for(shared_logins), *SHARED)
        daemon.start(*(part for each in settings for part in ("--set", each)))
        try:
            yield Path(folder)
        finally:
            daemon.stop()

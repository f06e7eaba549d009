"""The test kit of HTTP: ``http``, a server on the test's own loop before the fixture ``daemon``."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from ksi_client import AsyncClient, LocalTransport
from ksi_daemon.daemon import Daemon
from ksi_http import keys
from ksi_http.events import HttpKeyCreate, HttpKeyCreated
from ksi_http.settings import HttpSettings
from ksi_http.sidecar import app as application
from ksi_http.sidecar.app import Sidecar

__all__ = ["HttpServer"]

TIMEOUT_S = 20.0


class HttpServer:
    """A running server, and a client with the owner's key.

    Attributes:
        app: What its routes share.
        url: Where it is, without a path.
        port: Its port on 127.0.0.1.
        key: The owner's.
        session: A client that sends that key.
    """

    def __init__(self, app: Sidecar, port: int, home: Path, session: aiohttp.ClientSession) -> None:
        self.app = app
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.key = keys.home_key(home) or ""
        self.session = session

    async def post(self, path: str, data: Any = None, **options: Any) -> tuple[int, Any]:
        """Send JSON; return the status and the answer's JSON."""
        return await self.request("POST", path, data=msgspec.json.encode(data or {}), **options)

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """Ask for something; return the status and the answer's JSON."""
        return await self.request("GET", path, **options)

    async def request(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Send a request; return the status and the answer's JSON.

        Args:
            method: Such as ``DELETE``.
            path: From the slash on.
            options: What `aiohttp.ClientSession.request` takes; ``key`` is another key.
        """
        headers = self.authorization(options.pop("key", None))
        headers |= {"Content-Type": "application/json", **options.pop("headers", {})}
        url = self.url + path
        async with self.session.request(method, url, headers=headers, **options) as response:
            body = await response.read()
            return response.status, msgspec.json.decode(body) if body else None

    def authorization(self, key: str | None = None) -> dict[str, str]:
        """Return the headers of a key: the owner's unless given."""
        return {"Authorization": f"Bearer {key or self.key}"}


@pytest.fixture
def http_settings() -> dict[str, Any]:
    """The settings of the fixture ``http`` that are not the daemon's; override it."""
    return {}


@pytest.fixture
async def http(daemon: Daemon, http_settings: dict[str, Any]) -> AsyncIterator[HttpServer]:
    """A server on a free port, as the daemon's owner runs it."""
    async with contextlib.AsyncExitStack() as stack:
        connecting = application.connected(lambda: LocalTransport(daemon))
        app = await stack.enter_async_context(connecting)
        given = {"host": "127.0.0.1", "port": 0, **http_settings}
        settings = msgspec.convert({**msgspec.to_builtins(app.settings), **given}, HttpSettings)
        app = Sidecar(settings, app.connections)
        _, port = await stack.enter_async_context(application.serving(app))
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        yield HttpServer(app, port, daemon.home.root, session)


@pytest.fixture
def make_key(client: AsyncClient) -> Callable[..., Any]:
    """A function that makes keys: of its scopes and fields."""

    async def make(*scopes: str, **fields: Any) -> str:
        ask = HttpKeyCreate(name="a test's", scopes=scopes or ("*",), **fields)
        made = await client.request("http:key_create", ask, result_type=HttpKeyCreated)
        key: str = made.key
        return key

    return make

"""A daemon with tools, a server before it, and programs that speak MCP with that."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import installed_plugins, module_plugin
from ksi_http.testing import HttpServer
from ksi_mcp.tests.server.tools import Toolbox
from ksi_tools.api import Tools

NEEDED = ("postgres", "workflows", "tools", "models", "mcp", "http")
MODERN, LEGACY = "2026-07-28", "legacy"

Connect = Callable[..., AbstractAsyncContextManager[Client]]


class Whose:
    """Events that tell in whose name they come."""

    @event_handler("odd:whose", scope="odd:read")
    def whose(self, request: dict[str, Any]) -> dict[str, Any]:
        """Tell who asks."""
        context = current_context()
        assert context is not None
        return {"user": context.user, "principal": context.principal, "sent": request}

    @event_handler("odd:do", scope="odd:write")
    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do something."""
        return {"done": request}

    @event_handler("odd:hidden")
    def hidden(self, request: dict[str, Any]) -> dict[str, Any]:
        """Be out of reach."""
        return {}


@pytest.fixture
def toolbox() -> Toolbox:
    """The tools of the tests."""
    return Toolbox()


@pytest.fixture
def ksi_plugins(toolbox: Toolbox) -> list[EntryPoint]:
    """What the server offers."""

    @hookimpl
    def ksi_plugin() -> PluginInfo:
        return PluginInfo(requires=("tools",))

    @hookimpl
    async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
        plugin.add(Whose())
        with plugin.service(Tools).add(toolbox, provider=plugin.name):
            yield

    own = module_plugin("toolbox", ksi_plugin=ksi_plugin, ksi_lifespan=ksi_lifespan)
    return [*installed_plugins(*NEEDED), own]


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def connect(http: HttpServer) -> Connect:
    """A function that connects a program: in which protocol, with which key, for whom."""

    @asynccontextmanager
    async def connected(
        mode: str = MODERN, key: str | None = None, user: str | None = None, **options: Any
    ) -> AsyncIterator[Client]:
        headers = http.authorization(key)
        if user is not None:
            headers["x-user-id"] = user
        async with httpx2.AsyncClient(headers=headers, timeout=30.0) as client:
            transport = streamable_http_client(f"{http.url}/mcp", http_client=client)
            async with Client(transport, mode=mode, **options) as connected:
                yield connected

    return connected


def text_of(result: types.CallToolResult) -> str:
    """Return the text of a result."""
    return "".join(each.text for each in result.content if isinstance(each, types.TextContent))

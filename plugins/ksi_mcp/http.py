"""The room of MCP in the HTTP server: ``/mcp``."""

import asyncio
import importlib
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef

from ksi_http.rooms import Sidecar, described

if TYPE_CHECKING:
    from ksi_mcp.server.bridge import Bridge

BRIDGE = "ksi_mcp.server.bridge"


def routes(app: Sidecar) -> list[AbstractRouteDef]:
    """Return the routes."""
    room = Room(app)
    return [
        web.post("/mcp", room.post),
        web.get("/mcp", room.get, allow_head=False),
        web.delete("/mcp", room.delete),
    ]


def _operation(summary: str) -> dict[str, object]:
    refused = {"description": "An error of MCP's, or of this server's."}
    responses = {"200": {"description": "MCP."}, "default": refused}
    return {"summary": summary, "tags": ["mcp"], "responses": responses}


class Room:
    """Answers MCP; what speaks it is imported when somebody first asks, since that takes a second.

    Args:
        app: The server.
    """

    def __init__(self, app: Sidecar) -> None:
        self._app = app
        self._bridge: Bridge | None = None
        self._opening = asyncio.Lock()

    @described(_operation("Send a message of MCP"))
    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take a message."""
        return await self._answered(request)

    @described(_operation("Listen to a session of MCP"))
    async def get(self, request: web.Request) -> web.StreamResponse:
        """Tell what is told without being asked for."""
        return await self._answered(request)

    @described(_operation("End a session of MCP"))
    async def delete(self, request: web.Request) -> web.StreamResponse:
        """End a session."""
        return await self._answered(request)

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        bridge = self._bridge
        if bridge is None or not bridge.is_open:
            bridge = await self._opened()
        return await bridge.answer(request)

    async def _opened(self) -> "Bridge":
        async with self._opening:
            if self._bridge is None or not self._bridge.is_open:
                module = await asyncio.to_thread(importlib.import_module, BRIDGE)
                bridge: Bridge = module.Bridge(self._app)
                await bridge.open()
                self._bridge = bridge
        return self._bridge

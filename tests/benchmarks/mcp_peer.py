"""What KSI's tools are measured against by MCP: the SDK's own server, with tools of the same names.

As in the SDK's example of a server with everything, a tool is a function that `MCPServer` calls
itself, and each session remembers what it was told. It is behind the same bridge as KSI's server,
but knows no callers, keys, limits, permissions or records.

Usage: python mcp_peer.py PORT
"""

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from ksi_mcp.server.bridge import ASGI, Exchange, Sessions

server = MCPServer("everything")


@server.tool()
async def current_time(timezone: str = "UTC") -> str:
    """Tell the date and the time."""
    return f"{datetime.now(UTC):%A} {datetime.now(UTC).isoformat(timespec='seconds')} {timezone}"


class Limits:
    """There are none."""

    def stream(self, whose: str) -> AbstractContextManager[None]:
        """Count nothing."""
        return nullcontext()


class Alone:
    """What a bridge needs of the HTTP server, for one caller who may do everything."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self.limits = Limits()

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task."""
        self._tasks.create_task(work, name=name)

    def caller(self, request: web.Request) -> Any:
        """Return whose request it is: nobody's."""
        return SimpleNamespace(id="")


def scope_of(request: web.Request) -> dict[str, Any]:
    """Tell the SDK of a request."""
    return {
        "type": "http",
        "asgi": ASGI,
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.rel_url.raw_path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in request.headers.items()
        ],
        "client": None,
        "server": None,
    }


async def serve(port: int) -> None:
    """Answer, for ever."""
    server.streamable_http_app()  # makes what ``_lowlevel_server`` needs, and is not used itself
    manager: StreamableHTTPSessionManager = Sessions(server._lowlevel_server, retry_interval=100)
    async with manager.run(), asyncio.TaskGroup() as tasks:
        app: Any = Alone(tasks)

        async def answer(request: web.Request) -> web.StreamResponse:
            exchange = Exchange(app, request, await request.read())
            app.begin(exchange.run(manager, scope_of(request)), "request")
            return await exchange.answered()

        application = web.Application()
        application.router.add_route("*", "/mcp", answer)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))

"""What KSI's tools are measured against by MCP: the SDK's own server, with tools of the same names.

As in the SDK's example of a server with everything, a tool is a function that `MCPServer` calls
itself, and each session remembers what it was told. It is behind the same bridge as KSI's server,
but knows no callers, keys, limits, permissions or records.

Usage: python mcp_peer.py PORT
"""

import asyncio
import sys
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web
from mcp.server.mcpserver import MCPServer

from ksi_mcp.events import McpServing
from ksi_mcp.server.bridge import ASGI, Exchange
from ksi_mcp.server.sessions import Sessions

MAX_BODY_BYTES: Final = 4_000_000
server = MCPServer("everything")


@server.tool()
async def current_time(timezone: str = "UTC") -> str:
    """Tell the date and the time."""
    return f"{datetime.now(UTC):%A} {datetime.now(UTC).isoformat(timespec='seconds')} {timezone}"


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
    sessions = Sessions(server._lowlevel_server, McpServing(), MAX_BODY_BYTES)
    async with sessions.run(), asyncio.TaskGroup() as tasks:

        async def answer(request: web.Request) -> web.StreamResponse:
            exchange = Exchange(request, await request.read())
            tasks.create_task(exchange.run(sessions, scope_of(request)), name="request")
            return await exchange.answered()

        application = web.Application()
        application.router.add_route("*", "/mcp", answer)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))

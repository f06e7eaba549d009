"""The room of MCP in the HTTP server: ``/mcp``."""

from aiohttp.web_routedef import AbstractRouteDef

from ksi_http.rooms import Sidecar


def routes(app: Sidecar) -> list[AbstractRouteDef]:
    """Return the routes."""
    return []

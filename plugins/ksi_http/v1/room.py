"""The routes of events and runs."""

from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef

from ksi_http.v1.runs import Runs
from ksi_http.v1.socket import Sockets
from ksi_http.v1.stream import Streams

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the routes."""
    runs, streams, sockets = Runs(app), Streams(app), Sockets(app)
    return [
        web.post("/v1/events", runs.take),
        web.get("/v1/events/stream", streams.stream),
        web.get("/v1/runs/{run_id}", runs.show),
        web.get("/v1/runs/{run_id}/raw", runs.raw),
        web.post("/v1/runs/{run_id}/cancel", runs.cancel),
        web.get("/v1/socket", sockets.open),
    ]

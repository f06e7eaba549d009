"""Whether it is alive and ready, and what it has done."""

from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef

from ksi_daemon.protocol import KsiError, Unavailable
from ksi_http.sidecar import errors, metrics
from ksi_system.events import SystemHealthReport

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

READY_S = 5.0
STORE = "postgres"


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the routes."""
    probes = Probes(app)
    return [
        web.get("/healthz", probes.alive),
        web.get("/readyz", probes.ready),
        web.get("/metrics", probes.metrics),
    ]


class Probes:
    """What an orchestrator and Prometheus ask.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app

    async def alive(self, request: web.Request) -> web.Response:
        """Say that this process is alive."""
        return web.json_response({"status": "alive"})

    async def ready(self, request: web.Request) -> web.Response:
        """Say whether requests can be answered: the daemon is there, and so is its store.

        Raises:
            Unavailable: It is not; why is for the log.
        """
        try:
            async with self._app.connections.taken() as client:
                report = await client.request(
                    "system:health", result_type=SystemHealthReport, timeout_s=READY_S
                )
        except KsiError as error:
            raise Unavailable(error.message, retry_after_s=errors.RETRY_S) from error
        bad = [p.why for p in report.plugins if p.plugin == STORE and p.health != "ok"]
        if report.state != "ready" or bad:
            why = f"the daemon is {report.state}; {', '.join(map(str, bad))}"
            raise Unavailable(why, retry_after_s=errors.RETRY_S)
        return web.json_response({"status": "ready"})

    async def metrics(self, request: web.Request) -> web.Response:
        """Write the counts in Prometheus' format; needs the scope ``system:read``."""
        app = self._app
        app.caller(request).demand("system:read")
        gauges = {
            "streams": app.limits.streams,
            "daemon_requests": app.connections.in_flight,
            "daemon_up": int(app.connections.is_connected),
        }
        headers = {"Content-Type": metrics.TYPE}
        return web.Response(text=app.metrics.text(gauges), headers=headers)


def encoded(value: object) -> web.Response:
    """Answer with a value as JSON."""
    return web.Response(body=msgspec.json.encode(value), content_type=errors.JSON)

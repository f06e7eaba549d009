"""Whether it is alive and ready, and what it has done."""

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef

from ksi_daemon.protocol import KsiError, Unavailable
from ksi_http.sidecar import errors, metrics
from ksi_system.events import SystemHealthReport

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

READY_S: Final = 5.0
KNOWN_S: Final = 0.5
STORE: Final = "postgres"


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
        self._looking = asyncio.Lock()
        self._looked_at = -math.inf
        self._why_not: str | None = None

    async def alive(self, request: web.Request) -> web.Response:
        """Say that this process is alive."""
        return web.json_response({"status": "alive"})

    async def ready(self, request: web.Request) -> web.Response:
        """Say whether requests can be answered: the daemon is there, and so is its store.

        Raises:
            Unavailable: It is not; why is for the log.
        """
        async with self._looking:  # anybody may ask: the daemon is to feel little of it
            if time.monotonic() - self._looked_at > KNOWN_S:
                self._why_not = await self._look()
                self._looked_at = time.monotonic()
        if self._why_not is not None:
            raise Unavailable(self._why_not, retry_after_s=errors.RETRY_S)
        return web.json_response({"status": "ready"})

    async def _look(self) -> str | None:
        """Return why requests can't be answered, if they can't."""
        try:
            async with self._app.connections.taken() as client:
                report = await client.request(
                    "system:health", result_type=SystemHealthReport, timeout_s=READY_S
                )
        except KsiError as error:
            return error.message
        bad = [str(p.why) for p in report.plugins if p.plugin == STORE and p.health != "ok"]
        if report.state == "ready" and not bad:
            return None
        return f"the daemon is {report.state}; {', '.join(bad)}"

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

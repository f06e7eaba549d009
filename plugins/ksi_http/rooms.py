"""What a plugin imports that brings routes of its own to the HTTP server.

A room is a function that returns routes; it is named by an entry point of the group ``ksi.http``:

    [project.entry-points."ksi.http"]
    weather = "my_weather.http:routes"

    def routes(app: Sidecar) -> list[AbstractRouteDef]:
        return [web.post("/weather/webhook", Room(app).take)]

It runs in the server's process and reaches the daemon through ``app.request`` and ``app.stream``,
in the name of the request's caller alone. Import late what takes long to import: the server is
ready when all rooms are there.
"""

from ksi_http.sidecar.app import Sidecar
from ksi_http.sidecar.bodies import read as read_body
from ksi_http.sidecar.bodies import read_json
from ksi_http.sidecar.callers import Caller
from ksi_http.sidecar.errors import body_of, shown
from ksi_http.sidecar.openapi import described
from ksi_http.sidecar.streaming import event_stream

__all__ = [
    "Caller",
    "Sidecar",
    "body_of",
    "described",
    "event_stream",
    "read_body",
    "read_json",
    "shown",
]

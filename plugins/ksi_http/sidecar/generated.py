"""A route for every event that may be reached: ``POST /v1/<namespace>/<verb>``."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef
from msgspec import Raw

from ksi_daemon.protocol import InvalidData, KsiError
from ksi_http.sidecar import bodies, errors
from ksi_http.sidecar.streaming import event_stream

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

KEY_HEADER: Final = "Idempotency-Key"
MAX_KEY_CHARACTERS: Final = 200


def routes(app: "Sidecar") -> list[AbstractRouteDef]:
    """Return the route."""
    generated = Generated(app)
    return [web.post(r"/v1/{namespace}/{verb:[^/]+(?:/[^/]+)*}", generated.send)]


def idempotency_key(request: web.Request) -> str | None:
    """Return the key that makes a request safe to repeat, if it bears one.

    Raises:
        InvalidData: It is none.
    """
    key = request.headers.get(KEY_HEADER)
    if key is not None and not 0 < len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidData(f"{KEY_HEADER}: up to {MAX_KEY_CHARACTERS} characters")
    return key


class Generated:
    """Sends whatever event the address names.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Send an event with the body as its payload; answer with its answer."""
        app, caller = self._app, self._app.caller(request)
        parts = (request.match_info["namespace"], *request.match_info["verb"].split("/"))
        known = await app.exposed.check(caller, ":".join(parts))
        data = await bodies.read_json(request, app.settings)
        key = idempotency_key(request)
        if known.streams:
            if key is not None:
                raise InvalidData(f"a stream takes no {KEY_HEADER}")
            return await self._stream(request, known.event, data)
        result = await app.request(caller, known.event, data, result_type=Raw, idempotency_key=key)
        return web.Response(body=bytes(result), content_type=errors.JSON)

    async def _stream(self, request: web.Request, event: str, data: Any) -> web.StreamResponse:
        caller = self._app.caller(request)
        async with aclosing(self._app.stream(caller, event, data, result_type=Raw)) as chunks:
            return await as_events(self._app, request, chunks)


async def as_events(
    app: "Sidecar", request: web.Request, chunks: AsyncGenerator[Raw]
) -> web.StreamResponse:
    """Answer with a stream: an event for each chunk, then ``end``, or ``error`` with the error.

    An error that comes at once is an ordinary answer with its status.
    """
    async with event_stream(app, request) as stream:
        try:
            async for chunk in chunks:
                await stream.send(bytes(chunk))
            await stream.send(b"{}", event="end")
        except KsiError as error:
            if not stream.is_open:
                raise
            app.note(request, error)
            await stream.send(errors.body_of(error), event="error")
        return stream.response

"""One client's connection: what it may take in time and in number, before any route sees it."""

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ksi_daemon.protocol import Failed, InvalidData
from ksi_http.settings import HttpSettings
from ksi_http.sidecar import errors
from ksi_http.sidecar.metrics import Metrics

LINGER_S = 2.0  # for a client that sends on after it was refused, so that it sees why


class ClientConnection(RequestHandler):
    """A connection that is cut off when its client is too slow, in whichever direction.

    Args:
        server: What answers its requests.
        settings: Have the bounds.
        metrics: Count what is cut off.
    """

    __slots__ = ("_bounds", "_client", "_head_due", "_metrics", "_read_due")

    def __init__(self, server: web.Server, settings: HttpSettings, metrics: Metrics) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=settings.keep_alive_s,
            access_log=cast(Any, None),
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
            max_headers=settings.max_headers,
            lingering_time=LINGER_S,
            auto_decompress=False,  # what a small body unpacks to has no bound
        )
        self._bounds = settings
        self._metrics = metrics
        self._head_due: asyncio.TimerHandle | None = None
        self._read_due: asyncio.TimerHandle | None = None
        self._client: asyncio.Transport | None = None  # also while it is closing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it on, unless there are too many."""
        super().connection_made(transport)
        self._client = cast(asyncio.Transport, transport)
        # Whatever the system does not take at once counts as not read.
        self._client.set_write_buffer_limits(high=0)
        server = self._manager
        if server is not None and len(server.connections) > self._bounds.max_connections:
            self._cut("max_connections")
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and see to it that a head that has begun comes to its end."""
        count = self._request_count
        super().data_received(data)
        if self._request_count > count:
            self._stop_head()
        elif self._waiter is not None and self._head_due is None:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of it."""
        self._stop_head()
        self._stop_read()
        self._client = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        if self._read_due is None:
            due = self._bounds.write_timeout_s
            self._read_due = self._loop.call_later(due, self._cut, "write_timeout_s")

    def resume_writing(self) -> None:
        """Go on: it has read."""
        super().resume_writing()
        self._stop_read()

    def _await_head(self) -> None:
        due = self._bounds.header_timeout_s
        self._head_due = self._loop.call_later(due, self._cut, "header_timeout_s")

    def _stop_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _stop_read(self) -> None:
        if self._read_due is not None:
            self._read_due.cancel()
            self._read_due = None

    def _cut(self, why: str) -> None:
        self._metrics.cut_off[why] += 1
        if self._client is not None:
            self._client.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request, or what nobody foresaw, in the one shape of errors."""
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: it can only be broken off") from exc
        if status < errors.STATUSES["failed"]:
            response = errors.answer(InvalidData("that is no HTTP request that is answered here"))
        else:
            self.log_exception("a request failed", exc_info=exc)
            response = errors.answer(Failed(str(exc)))
        response.force_close()
        return response

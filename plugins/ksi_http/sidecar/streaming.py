"""Answers that are streams of server-sent events: bounded in number, alive when nothing happens."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from ksi_daemon.protocol import KsiError

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

BEAT: Final = b":\n\n"
OPEN_S: Final = 1.0
HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-store",
    "X-Accel-Buffering": "no",  # proxies that gather would hold back what is to be seen at once
}


class EventStream:
    """A stream of server-sent events to one client.

    It begins with the first event, or after `OPEN_S` without one: so that what fails at once is
    answered with its status, and a client does not wait for long to see that it was heard.

    Args:
        request: What it answers.
        response: The answer, which has not begun.
        heartbeat_s: After how much silence to say that it is alive.
    """

    def __init__(
        self, request: web.Request, response: web.StreamResponse, heartbeat_s: float
    ) -> None:
        self.response = response
        self._request = request
        self._heartbeat_s = heartbeat_s
        self._written = 0

    @property
    def is_open(self) -> bool:
        """Whether it has begun: then errors have to be told within it."""
        return self.response.prepared

    async def open(self) -> None:
        """Begin."""
        if not self.response.prepared:
            await self.response.prepare(self._request)

    async def send(self, data: bytes, *, event: str = "", event_id: str = "") -> None:
        """Send an event; waits while the client reads too slowly.

        Args:
            data: A line of text, such as JSON.
            event: Its type.
            event_id: What the client sends as ``Last-Event-ID`` to go on after this.
        """
        head = b""
        if event_id:
            head += b"id: " + event_id.encode() + b"\n"
        if event:
            head += b"event: " + event.encode() + b"\n"
        await self.write(head + b"data: " + data + b"\n\n")

    async def write(self, data: bytes) -> None:
        """Send what is written as events already, any number of them."""
        self._written += 1
        if not self.response.prepared:
            await self.response.prepare(self._request)
        await self.response.write(data)

    async def beat(self) -> None:
        """Say from time to time that it is alive; this also finds out whether the client is."""
        with suppress(ConnectionError):  # whoever writes next is told
            await asyncio.sleep(min(OPEN_S, self._heartbeat_s))
            await self.open()
            while True:
                before = self._written
                await asyncio.sleep(self._heartbeat_s)
                if self._written == before:
                    await self.response.write(BEAT)


@asynccontextmanager
async def event_stream(
    app: "Sidecar", request: web.Request, headers: Mapping[str, str] | None = None
) -> AsyncIterator[EventStream]:
    """Answer a request with a stream, and end that.

    A `KsiError` that is raised within goes on to become a plain answer: raise it only as long as
    the stream is not open. It is cancelled when the client goes.

    Raises:
        Busy: There are too many streams.
    """
    with app.limits.stream(app.caller(request).id):
        response = web.StreamResponse(headers={**HEADERS, **(headers or {})})
        stream = EventStream(request, response, app.settings.heartbeat_s)
        failure: KsiError | None = None
        async with asyncio.TaskGroup() as tasks:
            beat = tasks.create_task(stream.beat(), name="heartbeat")
            try:
                yield stream
            except KsiError as error:
                failure = error  # as it is, and not in the group's wrapping
            finally:
                beat.cancel()
        if failure is not None:
            raise failure
        await stream.open()
        await response.write_eof()

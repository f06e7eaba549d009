"""The bus as a stream of server-sent events, which goes on without a gap when it was cut."""

import asyncio
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from ksi_client import AsyncClient
from ksi_client.client import RECONNECTED
from ksi_daemon.protocol import Busy, Context, Event, InvalidData, KsiError, Unavailable
from ksi_http.sidecar import errors
from ksi_http.sidecar.openapi import EVENT_STREAM, described
from ksi_http.sidecar.streaming import event_stream

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar
    from ksi_http.sidecar.callers import Caller

SCOPE: Final = "events:read"
RESUME: Final = "Last-Event-ID"
LAGGED: Final = "router:lagged"
MAX_PATTERNS: Final = 20
MAX_KEPT: Final = 500
AGAIN_S: Final = 0.2  # how often is looked for a daemon that is away
BEGUN_S: Final = 1.0  # in which who has begun a stream reads it
MAX_KEPT_BYTES: Final = 8_000_000
_ID: Final = re.compile(r"([0-9a-f]{16})-([0-9]{1,15})")

write = msgspec.json.Encoder(enc_hook=str).encode

DESCRIBED: Final = {
    "summary": "See events as they happen.",
    "description": "Needs the scope events:read. Each is JSON with event, data and context. "
    "Where some may have been missed an event router:lagged, or router:reconnected, says so.",
    "tags": ["events"],
    "parameters": [
        {
            "name": "pattern",
            "in": "query",
            "required": False,
            "description": "Globs over the names of events; all unless given.",
            "schema": {
                "type": "array",
                "maxItems": MAX_PATTERNS,
                "items": {"type": "string", "pattern": r"^[a-z_*?]+(:[a-z_*?]+)*$"},
            },
        },
        {
            "name": RESUME,
            "in": "header",
            "required": False,
            "description": "The id of the last event that came: go on after it.",
            "schema": {"type": "string", "pattern": rf"^{_ID.pattern}$"},
        },
    ],
    "responses": {
        "200": {
            "description": "The events.",
            "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        },
        "default": {"$ref": "#/components/responses/Error"},
    },
}


class Kept:
    """What a caller sees of the bus, kept for a while so that a cut stream can be taken up.

    Args:
        app: The server.
        caller: Whose it is.
        patterns: Globs over events' names.

    Attributes:
        id: What the ids of its events begin with.
    """

    def __init__(self, app: "Sidecar", caller: "Caller", patterns: tuple[str, ...]) -> None:
        self.id = secrets.token_hex(8)
        self._app = app
        self._caller = caller
        self._patterns = patterns
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._last = 0
        self._readers = 0
        self._error: KsiError | None = None
        self._news = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._is_read = asyncio.Event()
        self._is_left = asyncio.Event()
        self._is_left.set()

    def is_of(self, caller: "Caller", patterns: tuple[str, ...]) -> bool:
        """Say whether it is what a caller asks for."""
        mine = (self._caller.presented.digest, self._caller.user, self._patterns)
        return mine == (caller.presented.digest, caller.user, patterns)

    # -- taking ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take events, until nobody has read them for long."""
        try:
            async with asyncio.TaskGroup() as tasks:
                taking = tasks.create_task(self._take_all(), name="events")
                await self._left()
                taking.cancel()
        except* KsiError as group:
            self._error = errors.first(group)
        finally:
            if self._error is None:
                self._error = Unavailable("the server stops", retry_after_s=1.0)
            self._subscribed.set()
            self._news.set()

    async def _take_all(self) -> None:
        """Take events, also of a daemon that was started anew.

        Raises:
            Denied: The key is not valid any more.
            Unavailable: No daemon was there in the first place.
        """
        while True:
            try:
                async with self._app.own.connected(self._caller) as client:
                    await self._take_of(client)
            except Unavailable:
                if not self._subscribed.is_set():
                    raise
                await asyncio.sleep(AGAIN_S)

    async def _take_of(self, client: AsyncClient) -> None:
        """Take events until a connection's token is not valid any more."""
        if self._subscribed.is_set():
            self._add(Event(RECONNECTED, {}, Context("client")))
        async with asyncio.TaskGroup() as tasks:
            takers = [
                tasks.create_task(self._take(client, each), name=f"events {each}")
                for each in self._patterns
            ]
            await client.closed.wait()
            for task in takers:
                task.cancel()

    async def _take(self, client: AsyncClient, pattern: str) -> None:
        async with await client.subscribe(pattern) as subscription:
            self._subscribed.set()
            async for event in subscription:
                self._add(event)

    async def _left(self) -> None:
        """Wait until nobody has read for long."""
        while True:
            await self._is_left.wait()
            try:
                async with asyncio.timeout(max(self._app.settings.resume_s, BEGUN_S)):
                    await self._is_read.wait()
            except TimeoutError:
                return

    def _add(self, event: Event) -> None:
        self._last += 1
        written = _written(event)
        self._events.append(written)
        self._bytes += len(written)
        bound = self._app.settings.resume_events
        while len(self._events) > bound or self._bytes > MAX_KEPT_BYTES:
            self._bytes -= len(self._events.popleft())
        self._news.set()
        self._news = asyncio.Event()

    # -- reading --------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until it sees events.

        Raises:
            KsiError: It can't.
        """
        await self._subscribed.wait()
        if self._error is not None:
            raise self._error

    async def read(self, after: int) -> AsyncGenerator[bytes]:
        """Yield the events after the one with a number, as they are sent; use `aclosing`.

        Raises:
            KsiError: It is over.
        """
        self._readers += 1
        self._is_read.set()
        self._is_left.clear()
        try:
            yield self._id(after)
            while True:
                news = self._news
                for written in self._from(after):
                    yield written
                after = self._last
                if self._error is not None:
                    raise self._error
                await news.wait()
        finally:
            self._readers -= 1
            if not self._readers:
                self._is_read.clear()
                self._is_left.set()

    def _from(self, after: int) -> list[bytes]:
        first = self._last - len(self._events) + 1
        found = []
        if after + 1 < first:
            lagged = {"event": LAGGED, "data": {"missed": first - after - 1}}
            found.append(b"data: " + write(lagged) + b"\n\n")
        start = max(after + 1, first)
        for number, data in enumerate(list(self._events)[start - first :], start):
            found.append(self._id(number)[:-1] + data)
        return found

    def _id(self, number: int) -> bytes:
        return f"id: {self.id}-{number}\n\n".encode()


class Streams:
    """Streams the bus.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app
        self._kept: dict[str, Kept] = {}

    @described(DESCRIBED)
    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Send events as they happen, from where the client has them."""
        caller = self._app.caller(request)
        caller.demand(SCOPE)
        patterns = patterns_of(request)
        kept, after, is_new = self._find(caller, patterns, request.headers.get(RESUME))
        async with event_stream(self._app, request) as stream:
            try:
                await kept.ready()
                await stream.open()
                if is_new and RESUME in request.headers:
                    missed = {"event": RECONNECTED, "data": {}}
                    await stream.send(write(missed))
                async with aclosing(kept.read(after)) as events:
                    async for written in events:
                        await stream.write(written)
            except KsiError as error:
                if not stream.is_open:
                    raise
                self._app.note(request, error)
                await stream.send(errors.body_of(error), event="error")
        return stream.response

    def _find(
        self, caller: "Caller", patterns: tuple[str, ...], mark: str | None
    ) -> tuple[Kept, int, bool]:
        """Return what is kept for a stream that was cut, or something new."""
        if mark is not None:
            found = _ID.fullmatch(mark)
            if found is None:
                raise InvalidData(f"{RESUME}: that was none of this stream: begin without it")
            kept = self._kept.get(found[1])
            if kept is not None and kept.is_of(caller, patterns):
                return kept, int(found[2]), False
        if len(self._kept) >= MAX_KEPT:
            raise Busy(f"{MAX_KEPT} streams of events are kept", retry_after_s=1.0)
        kept = Kept(self._app, caller, patterns)
        self._kept[kept.id] = kept
        self._app.begin(self._run(kept), f"events {kept.id}")
        return kept, 0, True

    async def _run(self, kept: Kept) -> None:
        try:
            await kept.run()
        finally:
            del self._kept[kept.id]


def patterns_of(request: web.Request) -> tuple[str, ...]:
    """Return the globs that a request asks for.

    Raises:
        InvalidData: There are too many.
    """
    patterns = tuple(dict.fromkeys(request.query.getall("pattern", ("*",))))
    if len(patterns) > MAX_PATTERNS:
        raise InvalidData(f"pattern: {MAX_PATTERNS} at most")
    return patterns


def _written(event: Event) -> bytes:
    """Return an event as it is sent, after its id."""
    told: dict[str, Any] = {"event": event.name, "data": event.data, "context": event.context}
    return b"data: " + write(told) + b"\n\n"

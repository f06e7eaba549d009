"""The asynchronous client: requests, streams, subscriptions, and events that it answers itself."""

import asyncio
import inspect
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ksi_client.completions import CompletionCalls
from ksi_client.sync import inherited_token
from ksi_client.transports import Transport, UnixTransport
from ksi_daemon.protocol import (
    Conflict,
    Context,
    Denied,
    Event,
    Failed,
    InvalidData,
    KsiError,
    Limits,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_daemon.protocol.events import (
    PING,
    RouterAuthenticate,
    RouterServe,
    RouterSubscribe,
    RouterSubscribed,
    RouterUnsubscribe,
)
from ksi_daemon.protocol.peer import Inbound, Peer, Serving
from ksi_daemon.protocol.wire import Ask, Frame, decode_plain

Result = TypeVar("Result")
Handler = Callable[[Any, Context], Awaitable[Any] | AsyncGenerator[Any]]

FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 2.0
MAX_QUEUED_EVENTS: Final = 10_000
LAGGED: Final = "router:lagged"
RECONNECTED: Final = "router:reconnected"


class Inbox:
    """A bounded queue of events; where its reader is too slow, a notice takes the place of some."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._missed = 0
        self._closed = False
        self._news = asyncio.Event()

    def put(self, event: Event) -> None:
        """Queue an event, or count it where there is no room."""
        if len(self._events) >= MAX_QUEUED_EVENTS:
            self._missed += 1
        else:
            self._events.append(event)
        self._news.set()

    def close(self) -> None:
        """End the iteration, once what is queued was read."""
        self._closed = True
        self._news.set()

    async def get(self) -> Event:
        """Return the next event.

        Raises:
            StopAsyncIteration: There will be none.
        """
        while not self._events:
            if self._missed:
                missed, self._missed = self._missed, 0
                return Event(LAGGED, {"missed": missed}, Context("client"))
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()


class Subscription:
    """The events that match a pattern, as they come: ``async for event in subscription``.

    It outlives a lost connection: an event named ``router:reconnected`` then says that some may
    have been missed, as ``router:lagged`` does for a reader that was too slow. Use it in ``async
    with`` to end it, or leave that to the client's end.
    """

    def __init__(self, client: "AsyncClient", pattern: str, outcomes: bool, inbox: Inbox) -> None:
        self.pattern = pattern
        self.outcomes = outcomes
        self.inbox = inbox
        self.id: str | None = None
        self._client = client

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await self.inbox.get()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the subscription."""
        self.inbox.close()
        await self._client.forget(self)


class _ClientPeer(Peer):
    """The client's end of one connection."""

    def __init__(self, client: "AsyncClient") -> None:
        super().__init__(client.limits)
        self._client = client

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self._half_closed:  # else it was noted then
            self._client.connection_lost(self)

    def eof_received(self) -> bool:
        self._half_closed = True
        self._client.connection_lost(self)
        return False  # a daemon that sends nothing more is gone

    def frame_received(self, frame: Frame) -> None:
        if frame.subscription is not UNSET:
            self._client.pushed(frame)
            return
        if not self.admit(frame):
            return
        try:
            reply = self._client.answer(frame)
        except KsiError as error:
            self.fail(frame.id, error)
        else:
            self.answer(frame, reply)

    def error_received(self, error: KsiError) -> None:
        if not (isinstance(error, NotFound) and "id" in (error.details or {})):
            self._client.on_error(error)  # else what we gave up had just ended

    def error_of(self, error: BaseException, serving: Serving) -> KsiError:
        if isinstance(error, KsiError):
            return error
        if isinstance(error, asyncio.CancelledError) and serving.cause is not None:
            return serving.cause
        return Failed(f"{serving.name} failed with {type(error).__name__}: {error}")


class AsyncClient(CompletionCalls):
    """A connection to a daemon, made again whenever it is lost.

    What was subscribed and served before is so again afterwards. A request that was under way
    fails with `Unavailable`, unless it bears an idempotency key: then it is sent again.

    Args:
        transport: How to reach the daemon: a socket's path, or another transport; the daemon of
            ``KSI_HOME`` unless given.
        token: Whom to act as; without one, the content of the file that ``KSI_TOKEN_FILE`` names,
            and without that the user who runs this program.
        timeout_s: How long a request may take unless it says so itself; ``None`` is for ever.
        on_error: Called with errors that concern no request, such as an emitted event that nobody
            answers; logged unless given.

    Example:
        async with AsyncClient() as client:
            health = await client.request("system:health")
    """

    def __init__(
        self,
        transport: Transport | Path | str | None = None,
        *,
        token: str | None = None,
        timeout_s: float | None = 300.0,
        on_error: Callable[[KsiError], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        if transport is None or isinstance(transport, Path | str):
            transport = UnixTransport(transport)
        self.limits: Limits = limits or Limits()
        self.on_error: Callable[[KsiError], None] = on_error or _log_error
        self.closed: asyncio.Event = asyncio.Event()
        self._transport = transport
        self._token = token if token is not None else inherited_token()
        self._timeout_s = timeout_s
        self._group = asyncio.TaskGroup()
        self._peer: _ClientPeer | None = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []
        self._served: dict[str, tuple[Handler, RouterServe]] = {}
        self._subscribing = 0
        self._early: list[Frame] = []  # events that came before their subscription was known

    # -- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            Unavailable: No daemon listens.
            Denied: The token is not valid.
        """
        await self._group.__aenter__()
        try:
            await self._connect()
        except BaseException:
            await self._group.__aexit__(None, None, None)
            raise
        self._keeper = self._group.create_task(self._keep_connected(), name="ksi client")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        if self._keeper is not None:
            self._keeper.cancel()
        for subscription in self._subscriptions:
            subscription.inbox.close()
        if self._peer is not None:
            peer = self._peer
            peer.stop_serving(Unavailable("the client is closing", retry_after_s=0.1))
            if running := peer.running_tasks():
                await asyncio.wait(running)
            peer.close()
        await self._group.__aexit__(None, None, None)

    async def _connect(self) -> None:
        made: list[_ClientPeer] = []

        def make_peer() -> _ClientPeer:
            made.append(_ClientPeer(self))
            return made[0]

        self._lost.clear()
        await self._transport.connect(make_peer)
        try:
            await self._greet(made[0])
        except BaseException:
            self._peer = None
            made[0].close()
            raise

    async def _greet(self, peer: _ClientPeer) -> None:
        """Authenticate, then serve and subscribe what was so before."""
        if self._token:
            request = RouterAuthenticate(token=self._token)
            await peer.ask("router:authenticate", request).result()
        self._peer = peer
        for _, request_to_serve in self._served.values():
            await peer.ask("router:serve", request_to_serve).result()
        for subscription in list(self._subscriptions):
            if subscription in self._subscriptions:  # it may have been closed meanwhile
                await self._subscribe(peer, subscription)
                self._take_early()
        self._connected.set()

    def _end(self) -> None:
        """Connect no more, and wake whoever waits for a connection."""
        self.closed.set()
        self._connected.set()

    async def _keep_connected(self) -> None:
        clock = asyncio.get_running_loop().time
        delay = FIRST_RETRY_S
        while True:
            began_at = clock()
            await self._lost.wait()
            if not self._transport.reconnects:
                self._end()
                return
            if clock() - began_at > LAST_RETRY_S:  # the connection had held
                delay = FIRST_RETRY_S
            try:
                await self._connect()
            except (Denied, InvalidData) as error:
                self.on_error(error)
                self._end()
                return
            except KsiError as error:
                if not isinstance(error, Unavailable):
                    self.on_error(error)
                self._lost.set()
            else:
                for inbox in {subscription.inbox for subscription in self._subscriptions}:
                    inbox.put(Event(RECONNECTED, {}, Context("client")))
            await asyncio.sleep(delay * (1 + random.random() / 4))
            delay = min(delay * 2, LAST_RETRY_S)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection just now, as far as is known."""
        return self._peer is not None and self._connected.is_set()

    def connection_lost(self, peer: Peer) -> None:
        """Note that the connection is gone; called by the peer."""
        if peer is self._peer or self._peer is None:
            self._peer = None
            self._connected.clear()
            self._lost.set()
            self._early.clear()
            for subscription in self._subscriptions:
                subscription.id = None  # the next connection may give it to another

    async def _ready_peer(self) -> _ClientPeer:
        """Return the peer, once there is one again."""
        while self._peer is None or not self._connected.is_set():
            if self.closed.is_set():
                raise Unavailable("the client is closed")
            await self._connected.wait()
        return self._peer

    # -- asking ---------------------------------------------------------------------------------

    @overload
    async def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: type[Result],
        timeout_s: float | UnsetType | None = UNSET,
        idempotency_key: str | None = None,
        context: dict[str, Any] | None = None,
    ) -> Result: ...

    @overload
    async def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: None = None,
        timeout_s: float | UnsetType | None = UNSET,
        idempotency_key: str | None = None,
        context: dict[str, Any] | None = None,
    ) -> Any: ...

    async def request(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: Any = None,
        timeout_s: float | UnsetType | None = UNSET,
        idempotency_key: str | None = None,
        context: dict[str, Any] | None = None,
    ) -> Any:
        """Send an event and return its answer.

        Args:
            event: ``namespace:verb``.
            data: The payload: a Struct, or plain data.
            result_type: What to decode the answer into; plain data unless given.
            timeout_s: How long to wait, reconnecting included; the client's own unless given.
            idempotency_key: Makes the request safe to repeat: with the same key the daemon does it
                once, and it is sent again by itself when the connection was lost.
            context: In whose name to send it; needs the grant ``impersonate``.

        Raises:
            KsiError: What the daemon answered; `TimedOut`; `Unavailable` when the connection was
                lost on the way.
        """
        limit = self._timeout_s if timeout_s is UNSET else timeout_s
        try:
            async with asyncio.timeout(limit):
                raw = await self._request(event, data, context, idempotency_key)
        except TimeoutError as error:
            raise TimedOut(f"{event} was not answered in {limit} s") from error
        return _decode(event, raw, result_type)

    async def _request(
        self, event: str, data: Any, context: dict[str, Any] | None, key: str | None
    ) -> Raw:
        while True:
            peer = await self._ready_peer()
            try:
                inbound = peer.ask(event, *_arguments(data, context, key))
                return await inbound.result()
            except Unavailable:
                if key is None or peer.connected or self.closed.is_set():
                    raise
                await asyncio.sleep(0)  # the loss may have to be noted yet

    async def stream(
        self,
        event: str,
        data: Any = None,
        *,
        result_type: Any = None,
        timeout_s: float | None = None,
        context: dict[str, Any] | None = None,
    ) -> AsyncGenerator[Any]:
        """Send an event and yield the chunks of its answer; stopping early cancels it.

        Args:
            event: ``namespace:verb``.
            data: The payload: a Struct, or plain data.
            result_type: What to decode each chunk into; plain data unless given.
            timeout_s: How long each chunk may take to come; for ever unless given.
            context: In whose name to send it; needs the grant ``impersonate``.

        Raises:
            KsiError: What the daemon answered; `TimedOut`; `InvalidData` where the event answers
                once and with no stream.
        """
        peer = await self._ready_peer()
        inbound: Inbound = peer.ask(event, *_arguments(data, context, None))
        async with aclosing(inbound):
            while True:
                try:
                    async with asyncio.timeout(timeout_s):
                        chunk = await anext(inbound)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise TimedOut(f"{event} sent no chunk for {timeout_s} s") from error
                yield _decode(event, chunk, result_type)

    async def emit(
        self, event: str, data: Any = None, *, context: dict[str, Any] | None = None
    ) -> None:
        """Send an event and want no answer; what goes wrong is told to ``on_error``."""
        peer = await self._ready_peer()
        self.emit_now(event, data, peer=peer, context=context)

    def emit_now(
        self,
        event: str,
        data: Any = None,
        *,
        peer: Peer | None = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        """Send an event without waiting for a connection.

        Raises:
            Unavailable: There is none just now.
        """
        peer = peer or self._peer
        if peer is None:
            raise Unavailable("there is no connection", retry_after_s=0.1)
        peer.send(Ask(UNSET, event, *_arguments(data, context, None)))

    async def publish(self, event: str, data: Any = None) -> int:
        """Show an event to its observers and subscribers; return how many there are."""
        reply = await self.request("router:publish", {"event": event, "data": data})
        return int(reply["listeners"])

    # -- subscriptions --------------------------------------------------------------------------

    async def subscribe(self, pattern: str, *, outcomes: bool = False) -> Subscription:
        """See the events whose name matches a glob.

        Args:
            pattern: An event's name, with ``*`` for any characters and ``?`` for one.
            outcomes: See them when they have been handled; ``event.outcome`` says how that went.
        """
        return await self._add(Subscription(self, pattern, outcomes, Inbox()))

    async def _add(self, subscription: Subscription) -> Subscription:
        peer = await self._ready_peer()
        await self._subscribe(peer, subscription)
        self._subscriptions.append(subscription)
        self._take_early()
        return subscription

    async def _subscribe(self, peer: Peer, subscription: Subscription) -> None:
        request = RouterSubscribe(pattern=subscription.pattern, outcomes=subscription.outcomes)
        self._subscribing += 1
        try:
            raw = await peer.ask("router:subscribe", request).result()
        finally:
            self._subscribing -= 1
        subscription.id = msgspec.json.decode(raw, type=RouterSubscribed).subscription

    async def forget(self, subscription: Subscription) -> None:
        """End a subscription; `Subscription.close` calls it."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        if self._peer is not None and subscription.id is not None:
            request = RouterUnsubscribe(subscription=subscription.id)
            with suppress(Unavailable):  # then it has ended with the connection
                await self._peer.ask("router:unsubscribe", request).result()

    def pushed(self, frame: Frame) -> None:
        """Take a pushed event; called by the peer."""
        known = [each for each in self._subscriptions if each.id == frame.subscription]
        if not known and self._subscribing and len(self._early) < MAX_QUEUED_EVENTS:
            self._early.append(frame)
        for subscription in known:
            event = Event(
                str(frame.event),
                None if frame.data is UNSET else decode_plain(frame.data),
                _context_of(frame),
                None if frame.outcome is UNSET else frame.outcome,
            )
            subscription.inbox.put(event)

    def _take_early(self) -> None:
        frames, self._early = self._early, []
        for frame in frames:
            self.pushed(frame)

    # -- serving --------------------------------------------------------------------------------

    async def serve(
        self,
        event: str,
        handler: Handler,
        *,
        doc: str | None = None,
        contributor: bool = False,
        order: int = 0,
        public: bool = False,
        scope: str | None = None,
        timeout_s: float | None = None,
        data_schema: dict[str, Any] | None = None,
        result_schema: dict[str, Any] | None = None,
        streams: bool | None = None,
    ) -> None:
        """Answer an event from here, until the client is closed.

        Args:
            event: ``namespace:verb``; nobody else may answer it.
            handler: ``async def handler(data, context)``, or an async generator function for a
                stream. It may raise a `KsiError`.
            doc: What `system:describe` shows; the handler's docstring unless given.
            contributor: Whether it is one of many that answer.
            order: Where among the contributors its answer stands; the lowest is the first.
            public: Whether any connection may send it; heeded only from a plugin's host.
            scope: What a key from outside must hold to send it; heeded only from a plugin's host.
            timeout_s: How long an answer may take; the daemon's ``request_timeout_s`` unless given.
            data_schema: The payload's JSON Schema.
            result_schema: The answer's.
            streams: Whether it answers with a stream, where the function does not show it.

        Raises:
            Conflict: Somebody else answers it.
            Denied: The principal's grants do not allow it.
        """
        request = RouterServe(
            event=event,
            streams=inspect.isasyncgenfunction(handler) if streams is None else streams,
            contributor=contributor,
            order=order,
            public=public,
            scope=scope,
            timeout_s=timeout_s,
            doc=doc if doc is not None else inspect.getdoc(handler) or "",
            data_schema=data_schema,
            result_schema=result_schema,
        )
        peer = await self._ready_peer()
        if event in self._served:
            raise Conflict(f"this client serves {event} already")
        self._served[event] = (handler, request)
        try:
            await peer.ask("router:serve", request).result()
        except BaseException:
            del self._served[event]
            raise

    async def answer(self, frame: Frame) -> Any:
        """Answer an event that the daemon sends here; called by the peer."""
        if frame.event == PING:
            return {}
        handler, _ = self._served.get(str(frame.event), (None, None))
        if handler is None:
            raise NotFound(f"this client does not serve {frame.event}")
        data = None if frame.data is UNSET else decode_plain(frame.data)
        answered = handler(data, _context_of(frame))
        return await answered if inspect.isawaitable(answered) else answered


class EventClient(AsyncClient):
    """A client whose subscriptions all end in one stream: `events`.

    Example:
        async with EventClient() as client:
            await client.subscribe("completion:*")
            await client.emit("completion:async", {"prompt": "Hello"})
            async for event in client.events():
                print(event.name, event.data)
    """

    @cached_property
    def _inbox(self) -> Inbox:
        return Inbox()

    async def subscribe(self, pattern: str, *, outcomes: bool = False) -> Subscription:
        """See the events whose name matches a glob, in `events`."""
        return await self._add(Subscription(self, pattern, outcomes, self._inbox))

    async def events(self) -> AsyncGenerator[Event]:
        """Yield every event of every subscription, until the client is closed."""
        while True:
            try:
                event = await self._inbox.get()
            except StopAsyncIteration:
                return
            yield event

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inbox.close()
        await super().__aexit__(kind, error, trace)


def _arguments(
    data: Any, context: dict[str, Any] | None, key: str | None
) -> tuple[Any, Any, str | UnsetType]:
    return (
        {} if data is None else data,
        UNSET if context is None else context,
        UNSET if key is None else key,
    )


def _decode(event: str, raw: Raw, kind: Any) -> Any:
    try:
        return decode_plain(raw) if kind is None else msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidData(f"the answer of {event} is not what was asked for: {error}") from error


def _context_of(frame: Frame) -> Context:
    if frame.context is UNSET:
        return Context("unknown")
    return msgspec.json.decode(frame.context, type=Context)


def _log_error(error: KsiError) -> None:
    logging.getLogger(__name__).warning("%s", error)

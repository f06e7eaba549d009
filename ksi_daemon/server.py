"""The socket: one `Connection` a peer, its principal, its subscriptions, what it serves."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from ksi_daemon.event_system import CURRENT, declarations_of, event_handler
from ksi_daemon.idempotency import Ledger, digest_of
from ksi_daemon.principals import NOBODY, OWNER, Claim, Principal, TokenStore
from ksi_daemon.protocol import (
    Busy,
    Cancelled,
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
    RouterAuthenticate,
    RouterAuthenticated,
    RouterLagged,
    RouterPublish,
    RouterPublished,
    RouterServe,
    RouterServed,
    RouterSubscribe,
    RouterSubscribed,
    RouterUnsubscribe,
    RouterUnsubscribed,
)
from ksi_daemon.protocol.names import check_name, check_pattern, matches, matches_any
from ksi_daemon.protocol.peer import Inbound, Peer, Serving
from ksi_daemon.protocol.wire import (
    DECODE_ERRORS,
    ENCODER,
    Frame,
    Push,
    Reply,
    decode_plain,
    encode,
)
from ksi_daemon.router import Router
from ksi_daemon.routes import Route, route_for

log = logging.getLogger(__name__)

TICK_S = 0.25
NO_TIMEOUT = 0.0


class Subscription:
    """A connection's interest in the events whose names match a pattern."""

    __slots__ = ("_connection", "_pattern", "_tail", "id", "missed", "outcomes")

    def __init__(self, connection: "Connection", number: int, request: RouterSubscribe) -> None:
        self.id = f"s{number}"
        self.outcomes = request.outcomes
        self.missed = 0
        self._connection = connection
        self._pattern = request.pattern
        self._tail = b',"subscription":"%b"}\n' % self.id.encode()

    def wants(self, name: str) -> bool:
        """Say whether an event's name matches, and the principal's grants reach it."""
        grants = self._connection.principal.grants
        return matches(name, self._pattern) and matches_any(name, grants.subscribe)

    def deliver(self, event: Event) -> None:
        """Queue the event; where the reader is too slow, count it instead."""
        connection = self._connection
        if connection.principal.may_see(event.context):
            pushed = connection.server.encoded(event)
            if pushed and not connection.push(pushed, self._tail):
                self.missed += 1

    def tell_missed(self) -> None:
        """Say once how many events the reader missed."""
        if self.missed:
            data = RouterLagged(missed=self.missed)
            context = Context(self._connection.server.router.new_id(), None, "router")
            self.missed = 0
            self._connection.push(encode(Push("router:lagged", data, context))[:-1], self._tail)


class Connection(Peer):
    """One peer of the daemon: asks and answers under its principal, and nothing beyond."""

    def __init__(self, server: "Server", principal: Principal | None = None) -> None:
        super().__init__(server.limits, server.tasks)
        self.server = server
        self.token_id: str | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self._served: set[Route] = set()
        self._routes: dict[str, Route] = {}
        self._inline: dict[str, Route] = {}
        self._causes: dict[str, Context] = {}
        self._backlog: list[Frame] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._subscribed = 0
        self._become(principal or NOBODY)

    def _become(self, principal: Principal) -> None:
        self.principal = principal
        self._identity = (
            principal.name,
            principal.tenant,
            principal.user,
            principal.agent,
            principal.conversation,
            principal.run,
        )
        self.forget_routes()

    def forget_routes(self) -> None:
        """Look routes up afresh: the table, or what this peer may do, has changed."""
        self._routes.clear()
        self._inline.clear()

    # -- life -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.principal is NOBODY and peer_uid(transport) == os.getuid():
            self._become(OWNER)
        self.server.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._backlog.clear()
        for subscription in self.subscriptions.values():
            self.server.router.unlisten(subscription)
        self.subscriptions.clear()
        self._stop_serving()
        if self._expiry is not None:
            self._expiry.cancel()
        self.server.disconnected(self)

    def _stop_serving(self) -> None:
        served, self._served = self._served, set()
        if served and self.principal.plugin is not None:
            self.server.router.set_reason(self.principal.plugin, "is being restarted")
        elif served:
            self.server.router.remove(served.__contains__)

    def eof_received(self) -> bool:
        self._stop_serving()
        return super().eof_received()

    def lingers(self) -> bool:
        return super().lingers() or bool(self.subscriptions)

    # -- the way in -----------------------------------------------------------------------------

    def frames_received(self, frames: list[Frame]) -> None:
        """Answer plain handlers on the spot, all of a chunk in one write; start tasks for the rest.

        This loop is the hot path: what is not needed for every single event happens elsewhere.
        """
        if self.paused:
            self._backlog += frames
            return
        max_frame, max_buffer = self.limits.max_frame_bytes, self.limits.max_buffer_bytes
        new_id, identity, set_current = self.server.router.new_id, self._identity, CURRENT.set
        encode_into, inline, now = ENCODER.encode_into, self._inline, time.perf_counter
        started = now()
        for position, frame in enumerate(frames, 1):
            route = inline.get(frame.event)  # type: ignore[arg-type]  # UNSET is in no dict
            request_id = frame.id
            if (
                route is None
                or request_id is UNSET
                or frame.context is not UNSET
                or frame.idempotency_key is not UNSET
                or request_id in self.serving
            ):
                self.take(frame)
                started = now()
                continue
            out = self._out
            mark = len(out)
            context = Context(new_id(), None, *identity)
            failed = False
            try:
                set_current(context)
                result = route.inline(route.read(frame.data))  # type: ignore[misc]  # it is inline
                if result.__class__ is not route.result_class:
                    route.check(result)
                encode_into(Reply(request_id, result), out, -1)
                if len(out) - mark > max_frame:
                    raise Failed(f"the answer of {route.name} is larger than max_frame_bytes")
                out += b"\n"
            except BaseException as error:  # noqa: BLE001  the boundary knows every kind
                failed = True
                del out[mark:]
                typed = self.server.router.boundary(route, context, error)
                self.fail(request_id, typed if isinstance(typed, KsiError) else Failed(str(typed)))
            ended = now()
            route.count += 1
            route.errors += failed
            route.recent.append(ended - started)
            started = ended
            if len(out) > max_buffer:
                self.flush()
                if self.paused:
                    self._backlog += frames[position:]
                    break
        set_current(None)
        self.flush()

    def frame_received(self, frame: Frame) -> None:
        """Take a request that the hot path left alone."""
        if not self.admit(frame):
            return
        name = str(frame.event)
        try:
            route = self._route(name)
            event = Event(name, route.read(frame.data), self._stamp(frame))
            if route.connected:
                self._answer_here(route, frame, event)
            else:
                self._start(route, frame, event)
        except KsiError as error:
            self.server.refused(self, name, error)
            if frame.id is UNSET:
                error.details = {**(error.details or {}), "event": name}
            self.fail(frame.id, error)

    def _route(self, name: str) -> Route:
        """Find who answers an event, if the principal may send it."""
        route = self._routes.get(name)
        if route is not None:
            return route
        router = self.server.router
        may_call = self.principal.may_call(name)
        if not may_call and not (name in router.routes and router.routes[name].public):
            raise Denied(f"{self.principal.name} may not send {name}")
        if self.server.draining and not name.startswith(("system:", "router:")):
            raise Unavailable("the daemon is shutting down", retry_after_s=1.0)
        route = router.resolve(name)
        self._routes[name] = route
        if router.is_inline(route) and not route.connected and not any(router.heard(name)):
            self._inline[name] = route
        return route

    def _stamp(self, frame: Frame) -> Context:
        """Make the event's context; what the peer claims counts only where it may claim it."""
        own = Context(self.server.router.new_id(), None, *self._identity)
        if frame.context is UNSET:
            return own
        try:
            claim = msgspec.json.decode(frame.context, type=Claim)
        except DECODE_ERRORS as error:
            raise InvalidData(f"context: {error}") from error
        cause = self._causes.get(claim.parent or "")
        if not self.principal.grants.impersonate and (
            claim.identity or (claim.parent and cause is None)
        ):
            raise Denied(
                f"{self.principal.name} may not send events in another's name (impersonate)",
                details={
                    "claimed": sorted({*claim.identity, *(["parent"] if claim.parent else [])})
                },
            )
        whose = own if cause is None else cause
        return msgspec.structs.replace(
            whose, id=own.id, parent=claim.parent, origin=own.origin, **claim.identity
        )

    def _answer_here(self, route: Route, frame: Frame, event: Event) -> None:
        """Call one of the connection's own events, those below."""
        assert route.inline is not None
        token = CURRENT.set(event.context)
        try:
            result = route.inline(self, event.data)  # type: ignore[call-arg]  # a method's function
        finally:
            CURRENT.reset(token)
        if frame.id is not UNSET:
            self.send(Reply(frame.id, result))

    def _start(self, route: Route, frame: Frame, event: Event) -> None:
        if frame.idempotency_key is UNSET:
            reply = self.server.router.dispatch(route, event)
        elif route.streams:
            raise InvalidData(f"{event.name} is a stream: it takes no idempotency key")
        else:
            reply = self._once(route, frame, event)
        timeout_s = self.server.timeout_of(route)
        self.answer(frame, reply, self.loop.time() + timeout_s if timeout_s else None)

    async def _once(self, route: Route, frame: Frame, event: Event) -> Raw:
        """Have a keyed request done once; only its sender, or the clock, can stop it."""
        server = self.server
        payload = b"" if frame.data is UNSET else bytes(frame.data)
        key = (event.context.tenant, self.principal.name, str(frame.idempotency_key))
        digest = digest_of(event.name, payload)
        try:
            return await server.ledger.once(
                key, digest, lambda: server.router.dispatch(route, event)
            )
        except asyncio.CancelledError:
            serving = self.serving.get(frame.id)
            if serving is not None and isinstance(serving.cause, Cancelled | TimedOut):
                server.ledger.cancel(key)
            raise

    def error_of(self, error: BaseException, serving: Serving) -> KsiError:
        if isinstance(error, KsiError):
            return error
        if isinstance(error, asyncio.CancelledError | TimeoutError):
            return serving.cause or Cancelled(f"{serving.name} was stopped")
        log.error("an answer failed", exc_info=error, extra={"event": serving.name})
        return Failed(f"{serving.name} failed with {type(error).__name__}")

    # -- the way out ----------------------------------------------------------------------------

    def push(self, head: bytes, tail: bytes) -> bool:
        """Queue a pushed event, unless the reader is too slow."""
        if self.paused or len(self._out) > self.limits.max_buffer_bytes:
            return False
        self._out += head
        self._out += tail
        self.schedule_flush()
        return True

    def flush(self) -> None:
        super().flush()
        if not self.paused:
            for subscription in self.subscriptions.values():
                if subscription.missed:
                    subscription.tell_missed()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flush()
        frames, self._backlog = self._backlog, []
        self.frames_received(frames)

    async def _ask_peer(self, route: Route, event: Event) -> Any:
        """Have the peer answer an event that it serves."""
        timeout_s = self.server.timeout_of(route)
        try:
            inbound = self.ask(event.name, event.data, event.context)
            if route.streams:
                return self._relay(event, inbound)
            self._causes[event.context.id] = event.context
            async with asyncio.timeout(timeout_s or None):
                return decode_plain(await inbound.result())
        except TimeoutError as error:
            raise TimedOut(f"{event.name} was not answered in {timeout_s} s") from error
        except Unavailable as error:
            raise gone(event) from error
        except DECODE_ERRORS as error:
            raise Failed(f"{event.name} was answered with broken JSON: {error}") from error
        finally:
            if not route.streams:
                self._causes.pop(event.context.id, None)

    async def _relay(self, event: Event, inbound: Inbound) -> Any:
        self._causes[event.context.id] = event.context
        try:
            async with contextlib.aclosing(inbound):
                async for chunk in inbound:
                    yield decode_plain(chunk)
        except Unavailable as error:
            raise gone(event) from error
        finally:
            self._causes.pop(event.context.id, None)

    # -- the connection's own events ------------------------------------------------------------

    @event_handler("router:authenticate", public=True)
    def authenticate(self, request: RouterAuthenticate) -> RouterAuthenticated:
        """Take on the principal that a token names, for the rest of the connection."""
        if self.subscriptions or self._served or self.serving:
            raise Conflict("authenticate first: this connection is in use already")
        record = self.server.tokens.check(request.token)
        self.token_id = record.id
        self._become(record.principal)
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self.loop.call_later(record.expires_at - time.time(), self.close)
        return RouterAuthenticated(principal=self.principal.name, tenant=self.principal.tenant)

    @event_handler("router:subscribe", public=True)
    def subscribe(self, request: RouterSubscribe) -> RouterSubscribed:
        """Push every event whose name matches a pattern to this connection."""
        pattern = check_pattern(request.pattern)
        if not matches_any(pattern, self.principal.grants.subscribe):
            raise Denied(f"{self.principal.name} may not subscribe to {pattern}")
        bound = self.server.max_subscriptions
        if len(self.subscriptions) >= bound:
            raise Busy(f"a connection may have {bound} subscriptions (max_subscriptions)")
        self._subscribed += 1
        subscription = Subscription(self, self._subscribed, request)
        self.subscriptions[subscription.id] = subscription
        self.server.router.listen(subscription)
        return RouterSubscribed(subscription=subscription.id)

    @event_handler("router:unsubscribe", public=True)
    def unsubscribe(self, request: RouterUnsubscribe) -> RouterUnsubscribed:
        """End a subscription of this connection."""
        subscription = self.subscriptions.pop(request.subscription, None)
        if subscription is None:
            raise NotFound(f"this connection has no subscription {request.subscription!r}")
        self.server.router.unlisten(subscription)
        return RouterUnsubscribed(subscription=request.subscription)

    @event_handler("router:serve", public=True)
    def serve(self, request: RouterServe) -> RouterServed:
        """Answer an event from this connection until it closes."""
        name = check_name(request.event)
        if not matches_any(name, self.principal.grants.serve):
            raise Denied(f"{self.principal.name} may not serve {name}")
        bound = self.server.max_subscriptions
        if len(self._served) >= bound:
            raise Busy(f"a connection may serve {bound} events (max_subscriptions)")
        plugin = self.principal.plugin
        router = self.server.router
        route = Route(plugin or f"client {self.principal.name}", name, self._never)
        route.base = lambda event: self._ask_peer(route, event)
        route.streams, route.timeout_s, route.doc = request.streams, request.timeout_s, request.doc
        route.data_schema, route.result_schema = request.data_schema, request.result_schema
        if plugin in router.reasons:  # what its last process served
            router.remove(lambda old: old.plugin == plugin and old.name == name)
        if request.contributor:
            router.add_contributor(route)
        else:
            router.add_route(route)
        self._served.add(route)
        return RouterServed(event=name)

    async def _never(self, event: Event) -> Any:
        raise Failed(event.name)

    @event_handler("router:publish", public=True)
    def publish(self, request: RouterPublish) -> RouterPublished:
        """Show an event to its observers and subscribers; no handler is called."""
        name = check_name(request.event)
        if not matches_any(name, self.principal.grants.publish):
            raise Denied(f"{self.principal.name} may not publish {name}")
        context = CURRENT.get()
        assert context is not None
        return RouterPublished(
            listeners=self.server.router.notify(Event(name, request.data, context))
        )


async def _needs_connection(event: Event) -> Any:
    raise InvalidData(f"{event.name} belongs to a connection: send it over one")


def gone(event: Event) -> Unavailable:
    """Make the error for an event whose server left while it was asked."""
    return Unavailable(f"whoever answers {event.name} has gone away", retry_after_s=0.5)


class Server:
    """Listens on the socket, and holds what all its connections share."""

    def __init__(
        self,
        router: Router,
        tasks: asyncio.TaskGroup,
        tokens: TokenStore,
        *,
        limits: Limits | None = None,
        request_timeout_s: float = 300.0,
        max_connections: int = 5000,
        max_subscriptions: int = 1000,
    ) -> None:
        self.router = router
        self.tasks = tasks
        self.tokens = tokens
        self.ledger = Ledger(tasks)
        self.limits = limits or Limits()
        self.request_timeout_s = request_timeout_s
        self.max_connections = max_connections
        self.max_subscriptions = max_subscriptions
        self.connections: set[Connection] = set()
        self.refusals: dict[str, int] = {}
        self.draining = False
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None
        self._last: tuple[Event | None, bytes] = (None, b"")
        router.changed.append(self._forget_routes)
        tokens.revoked.append(self._close_revoked)
        for declaration, function in declarations_of(Connection):
            route = route_for("router", declaration, function)
            route.connected, route.base = True, _needs_connection
            router.add_route(route)

    async def listen(self, path: Path) -> None:
        """Bind the socket and begin to accept.

        Raises:
            Conflict: Something else is at the path, or a live daemon is behind it.
        """
        clear_the_way(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        self._path = path
        self._listener = await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self), sock=listener, backlog=1024
        )

    async def adopt(self, sock: socket.socket, principal: Principal) -> Connection:
        """Take on a connected socket, in the name of a principal that is known already."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self, principal), sock=sock)
        return connection

    def close(self) -> None:
        """Accept no more, and close every connection once what is queued is sent."""
        if self._listener is not None:
            self._listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.close()

    def connected(self, connection: Connection) -> None:
        """Count a new connection, or turn it away."""
        self.connections.add(connection)
        if len(self.connections) > self.max_connections:
            bound = self.max_connections
            full = Busy(f"{bound} connections are open (max_connections)", retry_after_s=1.0)
            connection.fail(UNSET, full)
            connection.close()

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)

    def refused(self, connection: Connection, event: str, error: KsiError) -> None:
        """Count a refusal; log those that may be an attempt at something."""
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1
        if isinstance(error, Denied):
            log.warning(
                "an event was denied",
                extra={
                    "principal": connection.principal.name,
                    "event": event,
                    "why": error.message,
                },
            )

    def timeout_of(self, route: Route) -> float:
        """Return how long an answer may take, in seconds; 0 is without end."""
        if route.timeout_s is not None:
            return route.timeout_s
        return NO_TIMEOUT if route.streams else self.request_timeout_s

    def tick(self) -> None:
        """Stop what has taken too long; called every `TICK_S`, so that requests need no timers."""
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            for serving in list(connection.serving.values()):
                if serving.deadline is not None and serving.deadline <= now:
                    serving.stop(TimedOut(f"{serving.name} took too long (request_timeout_s)"))

    def encoded(self, event: Event) -> bytes:
        """Return a pushed event but for its last brace, encoded once for all subscribers."""
        last, pushed = self._last
        if last is not event:
            outcome = UNSET if event.outcome is None else event.outcome
            try:
                pushed = encode(Push(event.name, event.data, event.context, outcome))[:-1]
            except (TypeError, ValueError, RecursionError):
                log.exception("an event has no JSON form", extra={"event": event.name})
                pushed = b""
            if len(pushed) >= self.limits.max_frame_bytes:
                log.error("an event is larger than max_frame_bytes", extra={"event": event.name})
                pushed = b""
            self._last = (event, pushed)
        return pushed

    @property
    def in_flight(self) -> int:
        """How many requests are being answered."""
        return sum(len(connection.serving) for connection in self.connections)

    def running_tasks(self) -> set[asyncio.Task[Any]]:
        """List the tasks of all requests that are being answered."""
        tasks: set[asyncio.Task[Any]] = self.ledger.running_tasks()
        for connection in self.connections:
            tasks.update(s.task for s in connection.serving.values() if s.task is not None)
        return tasks

    def drain(self) -> None:
        """Take no new requests but the daemon's own."""
        self.draining = True
        self._forget_routes()

    def stop_requests(self) -> None:
        """Stop every request that still runs."""
        for connection in self.connections:
            connection.stop_serving(Unavailable("the daemon is shutting down", retry_after_s=1.0))

    def _forget_routes(self) -> None:
        for connection in self.connections:
            connection.forget_routes()

    def _close_revoked(self, token_id: str) -> None:
        for connection in list(self.connections):
            if connection.token_id == token_id:
                connection.close()


def peer_uid(transport: asyncio.BaseTransport) -> int | None:
    """Return the user at the other end of a Unix socket, or ``None`` where nobody can say."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    if sys.platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    # macOS and the BSDs: struct xucred of LOCAL_PEERCRED (1) at SOL_LOCAL (0).
    credentials = sock.getsockopt(0, 1, struct.calcsize("2I"))
    return int(struct.unpack("2I", credentials)[1])


def clear_the_way(path: Path) -> None:
    """Remove the socket of a daemon that died; touch nothing else.

    Raises:
        Conflict: A live daemon answers there, or it is no socket, or not ours.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Conflict(f"{path} is in the way: it is no socket; move it, or set KSI_SOCKET")
    if found.st_uid != os.getuid():
        raise Conflict(f"{path} belongs to user {found.st_uid}; set KSI_SOCKET to another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise Conflict(f"a daemon listens on {path} already")

"""One peer of the daemon: what it may do, what it asks, and how it is answered."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from operator import attrgetter

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ksi_daemon import sockets
from ksi_daemon.event_system import CURRENT, Sender, current_context, event_handler
from ksi_daemon.hub import Hub
from ksi_daemon.idempotency import digest_of
from ksi_daemon.principals import IDENTITY, NOBODY, OWNER, Claim, Principal
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
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_daemon.protocol import events as e
from ksi_daemon.protocol.names import check_name, check_pattern, matches_any
from ksi_daemon.protocol.peer import Peer, Serving
from ksi_daemon.protocol.wire import DECODE_ERRORS, ENCODER, Frame, Reply
from ksi_daemon.router import OWN
from ksi_daemon.routes import EMPTY, Route
from ksi_daemon.served import Served
from ksi_daemon.subscriptions import Subscription

log = logging.getLogger(__name__)

identity_of = attrgetter(*IDENTITY, "bearer")


class Connection(Peer):
    """One peer of the daemon: asks and answers under its principal, and nothing beyond."""

    def __init__(
        self,
        hub: Hub,
        made: Callable[["Connection"], None],
        lost: Callable[["Connection"], None],
        principal: Principal | None = None,
    ) -> None:
        super().__init__(hub.limits)
        self.hub = hub
        self._made = made
        self._lost = lost
        self.token_id: str | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.served = Served(self, hub)
        self._routes: dict[str, Route] = {}
        self._backlog: list[Frame] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._subscribed = 0
        self._lags = False  # whether a subscription has missed events
        self._become(principal or NOBODY)

    def _become(self, principal: Principal) -> None:
        self.principal = principal
        self._sender = Sender(self.hub.router.boot, principal.name, *identity_of(principal))
        self.forget_routes()

    def forget_routes(self) -> None:
        """Look routes up afresh: the table, or what this peer may do, has changed."""
        self._routes.clear()

    # -- life -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See who is at the other end."""
        super().connection_made(transport)
        uid, pid = sockets.peer_of(transport)
        is_ours = uid == os.getuid() and not self.hub.tokens.confined.holds(pid)
        if self.principal is NOBODY and is_ours:
            self._become(OWNER)
        self._made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of all that the peer had."""
        super().connection_lost(exc)
        self._backlog.clear()
        for subscription in self.subscriptions.values():
            self.hub.router.unlisten(subscription)
        self.subscriptions.clear()
        self.served.end()
        if self._expiry is not None:
            self._expiry.cancel()

    def released(self) -> None:
        """Leave the server's list: until then what this peer emitted has its deadline."""
        self._lost(self)

    def eof_received(self) -> bool:
        """Ask nothing more of a peer that will send nothing more."""
        self.served.end()
        return super().eof_received()

    def lingers(self) -> bool:
        """Stay for who only listens."""
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
        router, sender, set_current = self.hub.router, self._sender, CURRENT.set
        new_number, routes, serving = router.new_number, self._routes, self.serving
        encode_into, now = ENCODER.encode_into, time.perf_counter
        started = now()
        for position, frame in enumerate(frames, 1):
            name = frame.event
            route = routes.get(name) or self._learn(name)  # type: ignore[arg-type]  # UNSET is no key
            request_id, data = frame.id, frame.data
            if (
                route is None
                or not route.on_the_spot
                or request_id is UNSET
                or frame.context is not UNSET
                or frame.idempotency_key is not UNSET
                or request_id in serving
            ):
                set_current(None)
                self.take(frame)
                sender = self._sender  # it may have been router:authenticate
                started = now()
                continue
            out = self._out
            mark = len(out)
            number = new_number()
            set_current((sender, number))
            try:
                try:
                    payload = route.decode(EMPTY if data is UNSET else data)
                except Exception:  # noqa: BLE001  read fails the same way, and gives it its form
                    payload = route.read(data)
                result = route.inline(payload)  # type: ignore[misc]  # it is inline
                if result.__class__ is not route.result_class:
                    route.check(result)
                encode_into(Reply(request_id, result), out, -1)
                size = len(out)
                if size - mark > max_frame:
                    raise Failed(f"the answer of {route.name} is larger than max_frame_bytes")
                out += b"\n"
            except BaseException as error:  # noqa: BLE001  the boundary knows every kind
                route.errors += 1
                del out[mark:]
                typed = router.boundary(route, sender.context(number), error)
                self.fail(request_id, typed if isinstance(typed, KsiError) else Failed(str(typed)))
                size = len(out)
            ended = now()
            route.count += 1
            route.recent.append(ended - started)
            started = ended
            if size > max_buffer:
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
            self.hub.refused(self.principal, name, error)
            self.fail(frame.id, error, name)

    def _learn(self, name: str | UnsetType) -> Route | None:
        """Look up what was not asked for yet; what is wrong with it, `frame_received` says."""
        if name is not UNSET:
            with contextlib.suppress(KsiError):
                return self._route(name)
        return None

    def _route(self, name: str) -> Route:
        """Find who answers an event, if the principal may send it."""
        route = self._routes.get(name)
        if route is not None:
            return route
        router = self.hub.router
        if not self.principal.may_call(name, router.routes.get(name)):
            raise Denied(f"{self.principal.name} may not send {name}")
        # What a host is answering must be able to ask, as it could in the daemon.
        if self.hub.draining and self.principal.plugin is None and not name.startswith(OWN):
            raise Unavailable("the daemon is shutting down", retry_after_s=1.0)
        route = router.resolve(name)
        self._routes[name] = route
        route.on_the_spot = (
            router.is_inline(route) and not route.connected and not any(router.heard(name))
        )
        return route

    def _stamp(self, frame: Frame) -> Context:
        """Make the event's context; what the peer claims counts only where it may claim it."""
        own = self._sender.context(self.hub.router.new_number())
        if frame.context is UNSET:
            return own
        try:
            claim = msgspec.json.decode(frame.context, type=Claim)
        except DECODE_ERRORS as error:
            raise InvalidData(f"context: {error}") from error
        cause = self.served.causes.get(claim.parent or "")
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
            whose, id=own.id, parent=claim.parent, origin=own.origin, **claim.by(self.principal)
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
            reply = self.hub.router.dispatch(route, event)
        elif route.streams:
            raise InvalidData(f"{event.name} is a stream: it takes no idempotency key")
        else:
            reply = self._once(route, frame, event)
        timeout_s = self.hub.timeout_of(route, heard=frame.id is not UNSET)
        self.answer(frame, reply, self.loop.time() + timeout_s if timeout_s else None)

    async def _once(self, route: Route, frame: Frame, event: Event) -> Raw:
        """Have a keyed request done once; only its sender, or the clock, can stop it."""
        hub = self.hub
        whose = event.context
        key = (whose.tenant, self.principal.name, whose.user, str(frame.idempotency_key))
        digest = digest_of(event)
        try:
            work = partial(hub.router.dispatch, route, event)
            return await hub.ledger.once(key, digest, work, hub.timeout_of(route))
        except asyncio.CancelledError:
            serving = self.serving.get(frame.id)
            if serving is not None and isinstance(serving.cause, Cancelled | TimedOut):
                hub.ledger.cancel(key)
            raise

    def error_of(self, error: BaseException, serving: Serving) -> KsiError:
        """Make the error that ends a request."""
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
            self._lags = True
            return False
        self._out += head
        self._out += tail
        self.schedule_flush()
        return True

    def flush(self) -> None:
        """Send what is queued; then say what was missed, once there is room."""
        super().flush()
        if self._lags and not self.paused:
            self._lags = False
            for subscription in self.subscriptions.values():
                subscription.tell_missed()

    def resume_writing(self) -> None:
        """Go on with what was put off while the peer read too slowly."""
        super().resume_writing()
        self.flush()
        frames, self._backlog = self._backlog, []
        if self.connected:  # else its token was revoked, or has expired
            self.frames_received(frames)

    # -- the connection's own events ------------------------------------------------------------

    @event_handler("router:authenticate", public=True)
    def authenticate(self, request: e.RouterAuthenticate) -> e.RouterAuthenticated:
        """Take on the principal that a token names, for the rest of the connection."""
        if self.subscriptions or len(self.served) or self.serving:
            raise Conflict("authenticate first: this connection is in use already")
        record = self.hub.tokens.check(request.token)
        self.token_id = record.id
        self._become(record.principal)
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self.loop.call_later(record.expires_at - time.time(), self.close)
        return e.RouterAuthenticated(principal=self.principal.name, tenant=self.principal.tenant)

    @event_handler("router:subscribe", public=True)
    def subscribe(self, request: e.RouterSubscribe) -> e.RouterSubscribed:
        """Push every event whose name matches a pattern to this connection."""
        pattern = check_pattern(request.pattern)
        if not matches_any(pattern, self.principal.grants.subscribe):
            raise Denied(f"{self.principal.name} may not subscribe to {pattern}")
        bound = self.hub.max_subscriptions
        if len(self.subscriptions) >= bound:
            raise Busy(f"a connection may have {bound} subscriptions (max_subscriptions)")
        self._subscribed += 1
        subscription = Subscription(self, self._subscribed, request)
        self.subscriptions[subscription.id] = subscription
        self.hub.router.listen(subscription)
        return e.RouterSubscribed(subscription=subscription.id)

    @event_handler("router:unsubscribe", public=True)
    def unsubscribe(self, request: e.RouterUnsubscribe) -> e.RouterUnsubscribed:
        """End a subscription of this connection."""
        subscription = self.subscriptions.pop(request.subscription, None)
        if subscription is None:
            raise NotFound(f"this connection has no subscription {request.subscription!r}")
        self.hub.router.unlisten(subscription)
        return e.RouterUnsubscribed(subscription=request.subscription)

    @event_handler("router:serve", public=True)
    def serve(self, request: e.RouterServe) -> e.RouterServed:
        """Answer an event from this connection until it closes."""
        name = check_name(request.event)
        if not matches_any(name, self.principal.grants.serve):
            raise Denied(f"{self.principal.name} may not serve {name}")
        bound = self.hub.max_subscriptions
        if len(self.served) >= bound:
            raise Busy(f"a connection may serve {bound} events (max_subscriptions)")
        self.served.add(request, self.principal)
        return e.RouterServed(event=name)

    @event_handler("router:publish", public=True)
    def publish(self, request: e.RouterPublish) -> e.RouterPublished:
        """Show an event to its observers and subscribers; no handler is called."""
        name = check_name(request.event)
        if not matches_any(name, self.principal.grants.publish):
            raise Denied(f"{self.principal.name} may not publish {name}")
        context = current_context()
        assert context is not None
        return e.RouterPublished(
            listeners=self.hub.router.notify(Event(name, request.data, context))
        )

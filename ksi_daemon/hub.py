"""What all connections of a daemon share."""

import asyncio
import logging

from msgspec import UNSET

from ksi_daemon.idempotency import Ledger
from ksi_daemon.principals import Principal, TokenStore
from ksi_daemon.protocol import Denied, Event, KsiError, Limits
from ksi_daemon.protocol.events import RouterDenied
from ksi_daemon.protocol.wire import ENCODE_ERRORS, Push, encode
from ksi_daemon.router import Router
from ksi_daemon.routes import Route

log = logging.getLogger(__name__)


class Hub:
    """The router, the limits, the tokens, and what is counted or encoded once for everybody.

    Attributes:
        draining: Whether only the daemon's own events are still answered.
        refusals: How many events were refused, by the error's code.
    """

    def __init__(
        self,
        router: Router,
        tasks: asyncio.TaskGroup,
        tokens: TokenStore,
        *,
        limits: Limits | None = None,
        request_timeout_s: float = 300.0,
        max_subscriptions: int = 1000,
    ) -> None:
        self.router = router
        self.tokens = tokens
        self.ledger = Ledger(tasks)
        self.limits = limits or Limits()
        self.max_subscriptions = max_subscriptions
        self.refusals: dict[str, int] = {}
        self.draining = False
        self._request_timeout_s = request_timeout_s
        self._last: tuple[Event | None, bytes] = (None, b"")

    def refused(self, principal: Principal, event: str, error: KsiError) -> None:
        """Count a refusal; log and publish those that may be an attempt at something."""
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1
        if isinstance(error, Denied):
            log.warning(
                "an event was denied",
                extra={"principal": principal.name, "event": event, "why": error.message},
            )
            denied = RouterDenied(event=event, why=error.message)
            whose = principal.context(self.router.new_id())
            self.router.notify(Event("router:denied", denied, whose))

    def timeout_of(self, route: Route, *, heard: bool = True) -> float:
        """Return how long an answer may take, in seconds; 0 is without end.

        A stream has no end of its own only while somebody hears it: nobody would cancel it.
        """
        if route.timeout_s is not None:
            return route.timeout_s
        return 0.0 if route.streams and heard else self._request_timeout_s

    def encoded(self, event: Event) -> bytes:
        """Return a pushed event but for its last brace, encoded once for all subscribers."""
        last, pushed = self._last
        if last is not event:
            outcome = UNSET if event.outcome is None else event.outcome
            try:
                pushed = encode(Push(event.name, event.data, event.context, outcome))[:-1]
            except ENCODE_ERRORS:
                log.exception("an event has no JSON form", extra={"event": event.name})
                pushed = b""
            if len(pushed) >= self.limits.max_frame_bytes:
                log.error("an event is larger than max_frame_bytes", extra={"event": event.name})
                pushed = b""
            self._last = (event, pushed)
        return pushed

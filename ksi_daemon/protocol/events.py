"""The payloads of ``router:*``, the events by which a connection says what it wants."""

from typing import Any, Final

from msgspec import Struct

# Sent by the daemon to a peer that serves, to see whether it is alive; every client answers it.
PING: Final = "router:ping"


class Grants(Struct, frozen=True, kw_only=True):
    """What a principal may do; each field is a list of globs over event names.

    ``scopes`` are globs over the scopes of events: it may send those that it reaches so, beside
    those of ``call``. ``impersonate`` lets it send events in another's name, ``see_all`` lets its
    subscriptions see events of every tenant and user. Everything is denied unless granted.
    """

    call: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()
    impersonate: bool = False
    see_all: bool = False


class RouterAuthenticate(Struct, frozen=True, kw_only=True):
    """Take on the principal that a token names, for the rest of this connection."""

    token: str


class RouterAuthenticated(Struct, frozen=True, kw_only=True):
    """The principal that the connection has now."""

    principal: str
    tenant: str


class RouterSubscribe(Struct, frozen=True, kw_only=True):
    """Have every event whose name matches a pattern pushed to this connection.

    A subscriber sees the events that its principal may see. One that reads too slowly misses
    events and gets one ``router:lagged`` in their place, with their count. With ``outcomes`` the
    events come when they have been handled, and bear how that ended.
    """

    pattern: str
    outcomes: bool = False


class RouterSubscribed(Struct, frozen=True, kw_only=True):
    """The subscription's id, which every pushed event bears."""

    subscription: str


class RouterUnsubscribe(Struct, frozen=True, kw_only=True):
    """End a subscription of this connection."""

    subscription: str


class RouterLagged(Struct, frozen=True, kw_only=True):
    """Pushed to a subscriber that read too slowly: how many events it missed."""

    missed: int


class RouterDenied(Struct, frozen=True, kw_only=True):
    """Published when an event was denied: whose it was is in its context."""

    event: str
    why: str


class RouterUnsubscribed(Struct, frozen=True, kw_only=True):
    """The subscription that has ended."""

    subscription: str


class RouterServe(Struct, frozen=True, kw_only=True):
    """Answer an event from this connection until it closes.

    The daemon sends each such event here as a request. With ``contributor`` the connection is one
    of many that answer, the lowest ``order`` first. The schemas and ``doc`` are shown by
    ``system:describe``. ``public`` and ``scope`` count only when a plugin's host says them.
    """

    event: str
    streams: bool = False
    contributor: bool = False
    order: int = 0
    public: bool = False
    scope: str | None = None
    timeout_s: float | None = None
    doc: str = ""
    data_schema: dict[str, Any] | None = None
    result_schema: dict[str, Any] | None = None


class RouterServed(Struct, frozen=True, kw_only=True):
    """The event that the connection answers from now on."""

    event: str


class RouterPublish(Struct, frozen=True, kw_only=True):
    """Show an event to its observers and subscribers; no handler is called."""

    event: str
    data: Any = None


class RouterPublished(Struct, frozen=True, kw_only=True):
    """How many observers and subscriptions the event was handed to."""

    listeners: int

"""The payloads of the events of HTTP: keys, and what the sidecar asks."""

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

from ksi_daemon.settings import Secret

Name = Annotated[str, Meta(min_length=1, max_length=200)]
KeyId = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", extra={"secret": True})]
Scope = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:*?-]{1,200}\Z")]
Scopes = Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=100)]


class HttpConfigure(Struct, frozen=True, kw_only=True):
    """Asked by the sidecar when it starts: how am I to run?"""


class HttpConfigured(Struct, frozen=True, kw_only=True):
    """The section ``[http]``."""

    settings: dict[str, Any]


class HttpAuthenticate(Struct, frozen=True, kw_only=True):
    """Say whose a key is: its id, and the SHA-256 of the whole key, which itself goes nowhere."""

    id: KeyId
    digest: Digest


class HttpCaller(Struct, frozen=True, kw_only=True):
    """Whom a key stands for, and what it may do.

    ``scopes`` are globs over the scopes that events declare. With ``may_act_for_others`` each
    request may say which user it is for; otherwise all are ``user``'s.
    """

    key_id: str
    name: str
    tenant: str
    user: str | None
    scopes: tuple[str, ...]
    may_act_for_others: bool
    expires_at: datetime | None


class HttpKeyCreate(Struct, frozen=True, kw_only=True):
    """Make a key.

    ``scopes`` are globs over the scopes that events declare, such as ``chat:*``; ``*`` is all.
    ``ttl_s`` is how long it is valid, for ever unless given.
    """

    name: Name
    scopes: Scopes
    tenant: Name = "default"
    user: Name | None = None
    may_act_for_others: bool = False
    ttl_s: Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)] | None = None


class HttpKeyCreated(Struct, frozen=True, kw_only=True):
    """The key, which is told this once; only its hash is kept."""

    id: str
    key: Secret
    expires_at: datetime | None


class HttpKeyList(Struct, frozen=True, kw_only=True):
    """List a tenant's keys; with ``all`` those that are not valid any more, too."""

    tenant: Name = "default"
    all: bool = False


class HttpKey(Struct, frozen=True, kw_only=True):
    """A key without its secret; when it was last used is known by the hour."""

    id: str
    name: str
    tenant: str
    user: str | None
    scopes: tuple[str, ...]
    may_act_for_others: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


class HttpKeysListed(Struct, frozen=True, kw_only=True):
    """The keys, the oldest first."""

    keys: tuple[HttpKey, ...]


class HttpKeyRevoke(Struct, frozen=True, kw_only=True):
    """End a key; whatever it has open is closed."""

    id: KeyId
    tenant: Name = "default"


class HttpKeyRevoked(Struct, frozen=True, kw_only=True):
    """The key that is valid no more; published, too."""

    id: str


class HttpConnect(Struct, frozen=True, kw_only=True):
    """Issue a token for a connection to the daemon that may do what a key may, and no more."""

    id: KeyId
    digest: Digest
    user: Name | None = None


class HttpConnected(Struct, frozen=True, kw_only=True):
    """The token; connections that were made with it end with the key, or when it expires."""

    token: Secret
    expires_at: datetime


class HttpRawKeep(Struct, frozen=True, kw_only=True):
    """Keep what came with an event from outside, as it came; the run is the one that it began."""

    run_id: Annotated[str, Meta(min_length=1, max_length=200)]
    raw: Annotated[Raw, Meta(extra={"secret": True})]


class HttpRawKept(Struct, frozen=True, kw_only=True):
    """It is kept."""

    run_id: str


class HttpRaw(Struct, frozen=True, kw_only=True):
    """Ask for what came with the event that began a run."""

    run_id: Annotated[str, Meta(min_length=1, max_length=200)]


class HttpRawFound(Struct, frozen=True, kw_only=True):
    """What came."""

    run_id: str
    raw: Raw
    received_at: datetime

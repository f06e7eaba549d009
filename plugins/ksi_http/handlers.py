"""Answers for keys: makes and ends them, and says whose one is."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import (
    acting_as,
    current_context,
    event_contributor,
    event_handler,
)
from ksi_daemon.principals import TOKEN_PREFIX, Principal, is_bearers
from ksi_daemon.protocol import Busy, Context, Denied, NotFound
from ksi_daemon.protocol.events import Grants
from ksi_daemon.protocol.names import matches_any
from ksi_http import events as e
from ksi_http import keys
from ksi_http.settings import HttpSettings
from ksi_http.store import Kept, KeyStore
from ksi_system.events import PrincipalScoped, PrincipalScopes

USE_NOTED_S: Final = 3600.0
MAX_NOTED: Final = 10_000
CONNECTION_S: Final = 24 * 3600.0
MAX_TOKENS_OF_KEY: Final = 1000
REVOKED: Final = "http:key_revoked"
KEY_PRINCIPAL: Final = f"{TOKEN_PREFIX}http-"
# What else a connection may do beside sending events, and the scopes that let it.
SUBSCRIBE, PUBLISH, SERVE = "events:read", "events:publish", "events:serve"

Issue = Callable[..., str]


class Handlers:
    """The events of keys.

    Args:
        store: Where keys are kept.
        settings: The section ``[http]``.
        bus: Tells of what was revoked.
        home: Where the owner's own key is.
        issue: Makes a token for a principal.
    """

    def __init__(
        self, store: KeyStore, settings: HttpSettings, bus: Bus, home: Path, issue: Issue
    ) -> None:
        self._store = store
        self._settings = settings
        self._bus = bus
        self._home = home
        self._issue = issue
        self._noted: dict[str, float] = {}
        self._tokens: dict[str, dict[str, float]] = {}  # by key: the ids of tokens, and their end

    @event_handler("http:configure")
    def configure(self, request: e.HttpConfigure) -> e.HttpConfigured:
        """Tell the sidecar how it is to run."""
        return e.HttpConfigured(settings=msgspec.to_builtins(self._settings))

    @event_handler("http:authenticate")
    async def authenticate(self, request: e.HttpAuthenticate) -> e.HttpCaller:
        """Say whose a key is; one that is unknown, revoked or expired is denied alike."""
        kept = await self._valid(request.id, request.digest)
        await self._note_use(kept.tenant, request.id)
        return e.HttpCaller(
            key_id=request.id,
            name=kept.name,
            tenant=kept.tenant,
            user=kept.on_behalf_of,
            scopes=kept.scopes,
            may_act_for_others=kept.may_act_for_others,
            expires_at=kept.expires_at,
        )

    async def _valid(self, key_id: str, digest: str) -> Kept:
        kept = await self._store.find(key_id)
        if not keys.is_same(digest, None if kept is None else kept.digest) or kept is None:
            raise Denied("the key is not valid here: it may be mistyped, expired or revoked")
        return kept

    async def _note_use(self, tenant: str, key_id: str) -> None:
        now = time.monotonic()
        if now - self._noted.get(key_id, -USE_NOTED_S) >= USE_NOTED_S:
            if len(self._noted) >= MAX_NOTED:
                self._noted.clear()
            self._noted[key_id] = now
            await self._store.note_use(tenant, key_id)

    @event_handler("http:connect")
    async def connect(self, request: e.HttpConnect) -> e.HttpConnected:
        """Issue a token for a connection that may do what a key may, and no more."""
        kept = await self._valid(request.id, request.digest)
        user = kept.on_behalf_of
        if request.user is not None and request.user != user:
            if not kept.may_act_for_others:
                raise Denied("this key may not act for others")
            user = request.user
        now = datetime.now(UTC)
        end = min(kept.expires_at or datetime.max.replace(tzinfo=UTC), now + LASTING)
        open_ones = self._open_tokens(request.id)
        if len(open_ones) >= MAX_TOKENS_OF_KEY:
            raise Busy(f"a key may have {MAX_TOKENS_OF_KEY} connections in a day")
        principal = Principal(
            f"http-{request.id}", _grants(kept.scopes), tenant=kept.tenant, user=user
        )
        token = self._issue(principal, ttl_s=max((end - now).total_seconds(), 0.001))
        open_ones[token.split("_")[1]] = end.timestamp()
        return e.HttpConnected(token=token, expires_at=end)

    def _open_tokens(self, key_id: str) -> dict[str, float]:
        now = time.time()
        mine = self._tokens.get(key_id, {})
        self._tokens[key_id] = left = {one: end for one, end in mine.items() if end > now}
        return left

    @event_contributor("principal:scopes")
    async def scopes(self, request: PrincipalScopes) -> PrincipalScoped:
        """Tell the scopes of a key."""
        key_id = request.principal.removeprefix(KEY_PRINCIPAL)
        kept = None if key_id == request.principal else await self._store.find(key_id)
        if kept is None:
            return PrincipalScoped()
        return PrincipalScoped(scopes=kept.scopes, known=True)

    @event_handler("http:key_create")
    async def create(self, request: e.HttpKeyCreate) -> e.HttpKeyCreated:
        """Make a key; a token's bearer can't."""
        _refuse_bearers()
        ttl_s = request.ttl_s
        end = None if ttl_s is None else datetime.now(UTC) + timedelta(seconds=ttl_s)
        key = keys.make()
        kept = Kept(
            tenant=request.tenant,
            digest="",
            name=request.name,
            on_behalf_of=request.user,
            scopes=request.scopes,
            may_act_for_others=request.may_act_for_others,
            expires_at=end,
        )
        return e.HttpKeyCreated(id=await self.enter(key, kept), key=key, expires_at=end)

    async def enter(self, key: str, kept: Kept) -> str:
        """Keep a key's hash; return its id.

        Raises:
            Busy: The tenant has too many.
        """
        presented = keys.read(key)
        assert presented is not None
        if not await self._store.add(presented, kept, self._settings.max_keys):
            bound = self._settings.max_keys
            raise Busy(f"{kept.tenant} has {bound} keys (http.max_keys); revoke some")
        return presented.id

    @event_handler("http:key_list")
    async def list(self, request: e.HttpKeyList) -> e.HttpKeysListed:
        """List a tenant's keys, without their secrets."""
        _refuse_bearers()
        return e.HttpKeysListed(
            keys=await self._store.listed(request.tenant, also_ended=request.all)
        )

    @event_handler("http:key_revoke")
    async def revoke(self, request: e.HttpKeyRevoke) -> e.HttpKeyRevoked:
        """End a key, and whatever it has open; a token's bearer can't."""
        _refuse_bearers()
        if not await self._store.revoke(request.tenant, request.id):
            raise NotFound(f"{request.tenant} has no key {request.id!r}; see: ksi key list")
        own = keys.read(keys.home_key(self._home) or "")
        if own is not None and own.id == request.id:
            (self._home / keys.HOME_KEY).unlink(missing_ok=True)
        revoked = e.HttpKeyRevoked(id=request.id)
        # The sidecar sees what is of its own tenant, and a key of any tenant concerns it.
        with acting_as(Context("")):
            self._bus.publish(REVOKED, revoked)
        for token_id in self._tokens.pop(request.id, ()):
            self._bus.emit("token:revoke", {"id": token_id})
        return revoked


LASTING: Final = timedelta(seconds=CONNECTION_S)


def _grants(scopes: tuple[str, ...]) -> Grants:
    def granted(scope: str) -> tuple[str, ...]:
        return ("*",) if matches_any(scope, scopes) else ()

    return Grants(
        scopes=scopes,
        subscribe=granted(SUBSCRIBE),
        publish=granted(PUBLISH),
        serve=granted(SERVE),
    )


def _refuse_bearers() -> None:
    context = current_context()
    if context is not None and is_bearers(context):
        raise Denied("keys are the owner's: who came with a token or a key has no say over them")

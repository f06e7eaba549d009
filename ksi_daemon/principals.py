"""Who is at the other end of a connection, and the tokens that say so."""

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from ksi_daemon.confinement import Confined
from ksi_daemon.protocol import Busy, Context, Denied, InvalidData, NotFound
from ksi_daemon.protocol.events import Grants
from ksi_daemon.protocol.names import matches_any

log = logging.getLogger(__name__)

MAX_TOKENS: Final = 10_000
MAX_TTL_S: Final = 10 * 365 * 86400
TOKEN_PREFIX: Final = "token:"
IDENTITY: Final = ("tenant", "user", "agent", "conversation", "run")
EVERYTHING: Final = Grants(
    call=("*",), subscribe=("*",), publish=("*",), serve=("*",), impersonate=True, see_all=True
)


class Declared(Protocol):
    """What the handler of an event says of who may send it."""

    public: bool
    scope: str | None


class Principal(Struct, frozen=True, omit_defaults=True):
    """Who sends events over a connection; every event it sends is stamped with these fields."""

    name: str
    grants: Grants = Grants()
    plugin: str | None = None  # the plugin whose host this is
    tenant: str = "default"
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None

    @property
    def bearer(self) -> str | None:
        """Its name, where it came with a token."""
        return self.name if self.name.startswith(TOKEN_PREFIX) else None

    def context(self, event_id: str) -> Context:
        """Make the context of an event of its own."""
        identity = (self.tenant, self.user, self.agent, self.conversation, self.run)
        return Context(event_id, None, self.name, *identity, self.bearer)

    def may_call(self, event: str, declared: Declared | None = None) -> bool:
        """Say whether it may send an event to its handler, which declares how it is reached."""
        if declared is not None and (declared.public or self._has(declared.scope)):
            return True
        return matches_any(event, self.grants.call)

    def _has(self, scope: str | None) -> bool:
        return scope is not None and matches_any(scope, self.grants.scopes)

    def may_see(self, context: Context) -> bool:
        """Say whether an event is its own: every field that the principal has set agrees."""
        return self.grants.see_all or (
            context.tenant == self.tenant
            and self.user in (None, context.user)
            and self.agent in (None, context.agent)
            and self.conversation in (None, context.conversation)
            and self.run in (None, context.run)
        )


def is_bearers(context: Context) -> bool:
    """Say whether a token's bearer caused an event, whichever plugin sends it."""
    return context.principal is not None


OWNER: Final = Principal("owner", EVERYTHING)
NOBODY: Final = Principal("nobody")


class Claim(Struct, frozen=True, forbid_unknown_fields=True):
    """A context that a peer sends along; its id and its origin nobody may choose."""

    parent: str | None = None
    tenant: str | None = None
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    principal: str | None = None

    @property
    def identity(self) -> dict[str, str]:
        """The fields that say in whose name the event comes."""
        fields = msgspec.structs.asdict(self)
        return {key: fields[key] for key in (*IDENTITY, "principal") if fields[key] is not None}

    def by(self, sender: Principal) -> dict[str, str]:
        """Return these fields as they count: a token's bearer speaks for no owner and no plugin."""
        fields = self.identity
        name = fields.get("principal", TOKEN_PREFIX)
        if sender.bearer is not None and not name.startswith(TOKEN_PREFIX):
            fields["principal"] = f"{TOKEN_PREFIX}{name}"
        return fields


class TokenRecord(Struct, frozen=True, omit_defaults=True):
    """What is kept of a token: never the token itself. Times are seconds since the epoch."""

    id: str
    sha256: str
    principal: Principal
    created_at: float
    expires_at: float
    once: bool = False


class TokenStore:
    """Issues, checks and revokes tokens; keeps their hashes in a file of mode 0600.

    A token reads ``ksi_<id>_<secret>``. The secret has 256 random bits, so one round of SHA-256
    is enough to keep it.

    Args:
        path: The file for tokens that outlive the daemon; without it none does.

    Attributes:
        confined: The processes that are nobody without one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept: dict[str, TokenRecord] = {}
        self._passing: dict[str, TokenRecord] = {}
        self.confined = Confined()
        self.revoked: list[Callable[[str], None]] = []  # called with the id of a revoked token
        if path is not None and path.exists():
            self._kept = {record.id: record for record in _read_records(path)}

    def issue(
        self, principal: Principal, *, ttl_s: float, keep: bool = False, once: bool = False
    ) -> str:
        """Make a token that names ``principal`` for ``ttl_s`` seconds.

        Args:
            principal: Whom the bearer acts as; its name gets the prefix `TOKEN_PREFIX`, so that
                no bearer is taken for the owner, a plugin or its host.
            ttl_s: How long it is valid.
            keep: Whether it outlives the daemon; a child process's token does not.
            once: Whether it is good for one connection only; one that is kept can't be.

        Raises:
            InvalidData: ``ttl_s`` is not positive, or is longer than `MAX_TTL_S`; or it is to be
                kept and good for once.
            Busy: There are too many tokens.
        """
        if not 0 < ttl_s <= MAX_TTL_S:
            raise InvalidData(f"ttl_s: a token is valid for a time, of up to {MAX_TTL_S} seconds")
        if keep and once:
            raise InvalidData("a token that is good for one connection does not outlive the daemon")
        self._forget_expired()
        if len(self._kept) + len(self._passing) >= MAX_TOKENS:
            raise Busy(f"there are {MAX_TOKENS} tokens; revoke some")
        if not principal.name.startswith(TOKEN_PREFIX):
            principal = msgspec.structs.replace(principal, name=f"{TOKEN_PREFIX}{principal.name}")
        token_id, secret, now = secrets.token_hex(6), secrets.token_urlsafe(32), time.time()
        record = TokenRecord(token_id, _digest(secret), principal, now, now + ttl_s, once)
        if keep:
            self._save({**self._kept, token_id: record})
        else:
            self._passing[token_id] = record
        return f"ksi_{token_id}_{secret}"

    def check(self, token: str) -> TokenRecord:
        """Return what a token stands for.

        Raises:
            Denied: It is unknown, revoked or expired; which of these is not told.
        """
        token_id, secret = _parts_of(token)
        record = self._kept.get(token_id) or self._passing.get(token_id)
        expected = record.sha256 if record is not None else _digest("")
        right = hmac.compare_digest(_digest(secret), expected)
        if record is None or not right or record.expires_at <= time.time():
            log.warning("a token was refused", extra={"token_id": token_id[:12]})
            raise Denied("the token is not valid here: it may be mistyped, expired or revoked")
        if record.once:
            self._passing.pop(token_id, None)
        return record

    def records(self) -> list[TokenRecord]:
        """List the tokens that are valid, the oldest first."""
        self._forget_expired()
        everything = [*self._kept.values(), *self._passing.values()]
        return sorted(everything, key=lambda record: record.created_at)

    def revoke(self, token_id: str) -> None:
        """End a token and the connections that came with it.

        Raises:
            NotFound: There is no such token.
        """
        if token_id in self._kept:
            self._save({key: kept for key, kept in self._kept.items() if key != token_id})
        elif self._passing.pop(token_id, None) is None:
            raise NotFound(f"there is no token {token_id!r}")
        for notify in self.revoked:
            notify(token_id)

    def _forget_expired(self) -> None:
        now = time.time()
        for records in (self._kept, self._passing):
            for token_id in [r.id for r in records.values() if r.expires_at <= now]:
                del records[token_id]

    def _save(self, records: dict[str, TokenRecord]) -> None:
        """Write first: what is not on the disk has not happened."""
        if self._path is not None:
            write_private(self._path, msgspec.json.encode(list(records.values())))
        self._kept = records


def _read_records(path: Path) -> list[TokenRecord]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[TokenRecord])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"{path} can't be read ({error}); remove it, and issue the tokens again"
        raise InvalidData(message) from error


def id_of(token: str) -> str:
    """Return the id of a token, by which it is revoked."""
    return _parts_of(token)[0]


def _parts_of(token: str) -> tuple[str, str]:
    _, _, rest = token.partition("_")
    token_id, _, secret = rest.partition("_")
    return token_id, secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step; nobody but its owner may read it at any time."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise

"""Makes the row of an event: one JSON object, its payload bounded and without secrets."""

import hashlib
import re
import time
from functools import lru_cache
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw, Struct

from ksi_daemon.protocol import Event
from ksi_daemon.protocol.wire import ENCODE_ERRORS
from ksi_daemon.settings import MASK

__all__ = ["Row", "Rows", "cleaned"]

# Names of what nobody should read later. A count of tokens is no token; a key to find something
# by again is no secret.
_SECRET: Final = (
    r"token|password|passwd|passphrase|secret|credentials?|authorization|cookie"
    r"|api_?key|(?:private|access|secret|signing|encryption)[-_]?key"
)
_SECRET_NAME: Final = re.compile(rf"(?:{_SECRET})$", re.IGNORECASE)
# What such a name ends with, in JSON. Looking for each is a tenth of the time of the expression.
_HINTS: Final = tuple(
    f'{word}"'.encode()
    for word in (
        "token",
        "password",
        "passwd",
        "passphrase",
        "secret",
        "credential",
        "credentials",
        "authorization",
        "cookie",
        "key",
    )
)
_BEGINNING_CHARS: Final = 2000
_MESSAGE_CHARS: Final = 2000


class Row(Struct, omit_defaults=True, gc=False):
    """An event as the journal's tables have it; a time is in seconds since the epoch."""

    at: float
    name: str
    id: str
    origin: str
    tenant: str
    payload_bytes: int
    parent: str | None = None
    on_behalf_of: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    outcome: str | None = None
    message: str | None = None
    duration_s: float | None = None
    payload: Raw = Raw(b"null")
    payload_sha256: str | None = None


class Rows:
    """Makes rows.

    Args:
        max_payload_bytes: Larger payloads are kept apart, by their hash.
        max_kept_payload_bytes: Of larger ones only the beginning is kept.
    """

    def __init__(self, max_payload_bytes: int, max_kept_payload_bytes: int) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._max_kept_payload_bytes = max_kept_payload_bytes
        self._encode = msgspec.json.Encoder().encode

    def line(self, event: Event, *, begun: bool = False) -> bytes:
        """Return an event's row as JSON."""
        return self._encode(self.row(event, begun=begun))

    def row(self, event: Event, *, begun: bool = False) -> Row:
        """Return an event's row."""
        context, outcome = event.context, event.outcome
        payload = self._payload(event.data)
        row = Row(
            time.time(),
            event.name,
            context.id,
            context.origin,
            context.tenant,
            len(payload),
            context.parent,
            context.user,
            context.agent,
            context.conversation,
            context.run,
            "begun" if begun else None,
        )
        if outcome is not None:
            row.duration_s = outcome.duration_s
            row.outcome = "ok"
            if outcome.error is not None:
                row.outcome = outcome.error.code
                row.message = outcome.error.message[:_MESSAGE_CHARS]
        if len(payload) > self._max_kept_payload_bytes:
            payload = self._beginning(payload)
        if len(payload) > self._max_payload_bytes:
            row.payload_sha256 = hashlib.sha256(payload).hexdigest()
        row.payload = Raw(payload)
        return row

    def _payload(self, data: Any) -> bytes:
        try:
            payload = self._encode(data)
        except ENCODE_ERRORS as error:  # UnicodeEncodeError is a ValueError
            return self._encode({"unreadable": f"it has no JSON form: {type(error).__name__}"})
        more = secret_fields(type(data)) if isinstance(data, Struct) else frozenset()
        if more or _may_have_secrets(payload):
            return self._encode(masked(msgspec.json.decode(payload), more))
        return payload

    def _beginning(self, payload: bytes) -> bytes:
        text = payload[:_BEGINNING_CHARS].decode(errors="ignore")
        return self._encode({"truncated": True, "bytes": len(payload), "beginning": text})


def _may_have_secrets(payload: bytes) -> bool:
    lowered = payload.lower()
    for hint in _HINTS:  # noqa: SIM110  half the time of any()
        if hint in lowered:
            return True
    return False


def masked(value: Any, more: frozenset[str]) -> Any:
    """Return plain data with what is secret by its name put out of sight."""
    if isinstance(value, dict):
        return {
            name: MASK
            if inner not in (None, "") and (name in more or _SECRET_NAME.search(name))
            else masked(inner, more)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [masked(inner, more) for inner in value]
    return value


@lru_cache(maxsize=1024)
def secret_fields(kind: type[Struct]) -> frozenset[str]:
    """Return the names of the fields that a Struct, or one in it, marks as secret."""
    return frozenset(_secret_fields(kind, set()))


def _secret_fields(kind: Any, seen: set[Any]) -> set[str]:
    found: set[str] = set()
    if isinstance(kind, type) and issubclass(kind, Struct):
        if kind in seen:
            return found
        seen.add(kind)
        try:
            hints = get_type_hints(kind, include_extras=True)
        except NameError:  # an annotation that only a type checker knows
            return found
        names = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
        for name, hint in hints.items():
            if _is_secret(hint) and name in names:
                found.add(names[name])
            found |= _secret_fields(hint, seen)
        return found
    for inner in get_args(kind):
        found |= _secret_fields(inner, seen)
    return found


def _is_secret(hint: Any) -> bool:
    if get_origin(hint) is not Annotated:
        return any(_is_secret(inner) for inner in get_args(hint))
    metas = [meta for meta in get_args(hint)[1:] if isinstance(meta, msgspec.Meta)]
    return any(meta.extra is not None and meta.extra.get("secret") for meta in metas)


def cleaned(line: bytes) -> bytes:
    """Return a row without what Postgres keeps in no text: the character NUL."""
    row = msgspec.json.decode(line, type=Row)
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if isinstance(value, str):
            setattr(row, name, value.replace("\x00", "�"))
    return msgspec.json.encode(row)

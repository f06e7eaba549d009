"""The frames that cross a connection, as msgspec Structs."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType


class Context(Struct, frozen=True, omit_defaults=True):
    """Where an event comes from and in whose name; stamped by the router, never by a peer.

    ``id`` names this event, ``parent`` the event that caused it, ``origin`` who sent it (a
    principal's name, or a plugin's). ``principal`` is the token's bearer who caused it, through
    whatever plugins; ``None`` is the owner, or the daemon itself. The rest says whose event it is;
    ``None`` means nobody's.
    """

    id: str
    parent: str | None = None
    origin: str = ""
    tenant: str = "default"
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    principal: str | None = None


class ErrorBody(Struct, frozen=True, omit_defaults=True):
    """An error as it crosses the wire; ``code`` is stable, ``message`` is for people."""

    code: str
    message: str
    retry_after_s: float | None = None
    details: dict[str, Any] | None = None


class Outcome(Struct, frozen=True):
    """How the handling of an event ended; ``error`` is ``None`` when it went well."""

    duration_s: float
    error: ErrorBody | None = None


class Event(Struct, frozen=True):
    """An event as interceptors, observers and subscribers see it.

    ``data`` is the payload's Struct where its handler declares one, plain data otherwise.
    ``outcome`` is set only for observers that asked to see events after their handling.
    """

    name: str
    data: Any
    context: Context
    outcome: Outcome | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """What one connection may take; passing a bound is a typed error that names it."""

    max_frame_bytes: int = 4 * 1024 * 1024
    max_buffer_bytes: int = 1024 * 1024
    max_in_flight: int = 512
    stream_window_chunks: int = 256
    reader_timeout_s: float = 60.0


# Bounded here, since names are kept: in caches, counts and logs.
EventName = Annotated[str, Meta(max_length=200)]
RequestId = int | Annotated[str, Meta(max_length=128)]


class Frame(Struct, gc=False):
    """Any line that arrives: a request, an answer, a cancellation or a pushed event."""

    id: RequestId | UnsetType = UNSET
    event: EventName | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    context: Raw | UnsetType = UNSET
    idempotency_key: str | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    chunk: Raw | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET
    cancel: bool = False
    pause: bool | UnsetType = UNSET
    subscription: str | UnsetType = UNSET
    outcome: Outcome | UnsetType = UNSET


class Ask(Struct, frozen=True, gc=False):
    """A request, or without ``id`` an event that wants no answer."""

    id: int | str | UnsetType
    event: str
    data: Any
    context: Any = UNSET
    idempotency_key: str | UnsetType = UNSET


class Reply(Struct, frozen=True, gc=False):
    """The one answer that ends a request."""

    id: int | str
    result: Any


class Chunk(Struct, frozen=True, gc=False):
    """One of any number of answers that come before a stream's result."""

    id: int | str
    chunk: Any


class Failure(Struct, frozen=True, gc=False):
    """The error that ends a request; without ``id`` it concerns the connection."""

    id: int | str | UnsetType
    error: ErrorBody


class Cancel(Struct, frozen=True, gc=False):
    """Asks the other side to stop working on a request."""

    id: int | str
    cancel: bool = True


class Pause(Struct, frozen=True, gc=False):
    """Asks the sender of a stream to wait (true), or to go on (false)."""

    id: int | str
    pause: bool


class Push(Struct, frozen=True, gc=False):
    """A subscribed event; the subscription's id is appended by whoever delivers it."""

    event: str
    data: Any
    context: Context
    outcome: Outcome | UnsetType = UNSET


class _Identified(Struct, gc=False):
    id: RequestId | UnsetType = UNSET


ENCODER: Final = msgspec.json.Encoder()
encode: Final = ENCODER.encode
decode_frame: Final = msgspec.json.Decoder(Frame).decode
decode_frames: Final = msgspec.json.Decoder(Frame).decode_lines
decode_plain: Final = msgspec.json.decode
_decode_id: Final = msgspec.json.Decoder(_Identified).decode

# What msgspec raises on hostile input: UnicodeDecodeError on invalid UTF-8 and RecursionError on
# deep nesting come as they are, everything else as a DecodeError. AttributeError: a field unset.
DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
ENCODE_ERRORS: Final = (
    msgspec.EncodeError,
    AttributeError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def id_of(line: bytes) -> int | str | UnsetType:
    """Read the id of a line that is no valid frame, or UNSET where even that can't be had."""
    try:
        return _decode_id(line).id
    except DECODE_ERRORS:
        return UNSET

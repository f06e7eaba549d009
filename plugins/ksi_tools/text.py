"""Turns what a tool is given and what it returns into text that can be kept."""

import hashlib
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_daemon.event_system import payload_of
from ksi_daemon.protocol import ErrorBody, InvalidData
from ksi_daemon.protocol.wire import DECODE_ERRORS, ENCODE_ERRORS

PIECE_CHARS: Final = 100_000
MAX_ERROR_CHARS: Final = 10_000

_ORDERED: Final = msgspec.json.Encoder(order="deterministic")


class Arguments(Struct, frozen=True):
    """A call's arguments: themselves, as the ledger keeps them, and what tells them from others."""

    given: dict[str, Any]
    text: str
    digest: bytes


class Text(Struct, frozen=True):
    """An output: what is handed over, and the whole in pieces where that is not all of it."""

    content: str
    size_bytes: int = 0
    pieces: tuple[str, ...] = ()


class Output(Struct, frozen=True):
    """What a tool returns of which models are told less than is kept, as an image.

    As JSON it is kept, and read by ``tool:output``.
    """

    def shown(self) -> str:
        """Return what models are told of it."""
        raise NotImplementedError


def read_arguments(name: str, given: dict[str, Any] | str, limit_bytes: int) -> Arguments:
    """Read a call's arguments, as an object or as the JSON that a model wrote.

    Raises:
        InvalidData: It is broken, no object, or too large.
    """
    if isinstance(given, str):
        _check_size(name, len(given.encode("utf-8", "replace")), limit_bytes)
        try:
            given = msgspec.json.decode(given) if given.strip() else {}
        except DECODE_ERRORS as error:
            raise _refused(name, f"are broken JSON: {error}") from error
    if not isinstance(given, dict):
        raise _refused(name, "are to be an object")
    try:
        data = _ORDERED.encode(given)
        text = data.decode()
    except ENCODE_ERRORS as error:
        raise _refused(name, f"can't be told in JSON: {error}") from error
    _check_size(name, len(data), limit_bytes)
    return Arguments(given, text, hashlib.sha256(data).digest())


def _check_size(name: str, size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise _refused(name, f"are larger than {limit_bytes} bytes (tools.max_arguments_bytes)")


def _refused(name: str, why: str) -> InvalidData:
    return InvalidData(f"the arguments of {name} {why}", details={"kind": "arguments"})


def text_of(result: Any, ref: str, max_chars: int, max_bytes: int) -> Text:
    """Make text of what a tool returned; past ``max_chars`` the beginning, and where the rest is.

    Args:
        result: Text, or what can be told in JSON.
        ref: What to ask ``tool:output`` for.
        max_chars: How much is handed over.
        max_bytes: How much is kept.
    """
    if isinstance(result, Output):
        return _of_output(result, ref, max_chars, max_bytes)
    text = clean(_told(result))
    size = len(text.encode())
    if len(text) <= max_chars and size <= max_bytes:
        return Text(text, size)
    kept, cut = text, ""
    if size > max_bytes:
        kept = text.encode()[:max_bytes].decode("utf-8", "ignore")
        cut = f", of which the first {len(kept)} are kept (tools.max_output_bytes)"
    shown = min(max_chars, len(kept))
    note = (
        f"\n[… the first {shown} of {len(text)} characters{cut}; "
        f"more: tool:output with output_ref {ref!r}]"
    )
    return Text(kept[:shown] + note, size, _pieces(kept))


def _of_output(output: Output, ref: str, max_chars: int, max_bytes: int) -> Text:
    """Make text of what models are told, and keep all of it beside that."""
    shown = text_of(output.shown(), ref, max_chars, max_bytes)
    whole = clean(_told(output))
    size = len(whole.encode())
    if size > max_bytes:
        note = f"\n[All of it is {size} bytes, and is not kept (tools.max_output_bytes)]"
        return Text(shown.content + note, size, shown.pieces)
    note = f"\n[All of it: tool:output with output_ref {ref!r}]"
    return Text(shown.content + note, size, _pieces(whole))


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS))


def _told(result: Any) -> str:
    if result is None:
        return ""
    if isinstance(result, str):
        return result
    try:
        return msgspec.json.encode(payload_of(result)).decode()
    except ENCODE_ERRORS as error:
        return f"(what it returned can't be told in JSON: {type(result).__name__}, {error})"


def keepable(error: ErrorBody, max_chars: int) -> ErrorBody:
    """Return an error as it can be kept and told: of a tool's own making, it may hold anything."""
    details = error.details
    try:
        if details is not None and len(msgspec.json.encode(details)) > max_chars:
            details = None
    except ENCODE_ERRORS:
        details = None
    message = clean(error.message)
    if len(message) > MAX_ERROR_CHARS:
        message = f"{message[:MAX_ERROR_CHARS]}…"
    return ErrorBody(error.code, message, error.retry_after_s, details)


def clean(text: str) -> str:
    """Return text as Postgres and JSON can hold it."""
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    return text.encode("utf-8", "replace").decode() if not _is_sound(text) else text


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

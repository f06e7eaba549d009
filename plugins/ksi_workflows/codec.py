"""What is written of arguments, outputs and errors, as JSON."""

import traceback
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from ksi_daemon.protocol import Context, Failed, InvalidData, KsiError
from ksi_daemon.protocol.errors import error_from
from ksi_daemon.protocol.wire import ErrorBody

FORMAT: Final = "ksi_json"
MAX_MESSAGE_CHARACTERS: Final = 2000
MAX_TRACEBACK_CHARACTERS: Final = 8000


class Envelope(Struct, frozen=True, kw_only=True):
    """What a run is given: which workflow it is of, its arguments, and in whose name it acts."""

    name: str
    version: int
    args: Raw
    context: Context


class ErrorRecord(Struct, frozen=True, kw_only=True):
    """An error as it is recorded."""

    kind: str
    body: ErrorBody
    traceback: str = ""


class Recorded(Struct, frozen=True):
    """Sets an error apart from a value, where the engine reads either from one column."""

    ksi_error: ErrorRecord


def encoded(value: Any, limit: int, what: str, setting: str) -> bytes:
    """Return a value as JSON.

    Raises:
        InvalidData: It can't be written, or it is larger than it may be.
    """
    try:
        data = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidData(f"{what} can't be recorded: {error}") from error
    if len(data) > limit:
        raise InvalidData(
            f"{what} takes {len(data)} bytes, and may take {limit} (workflows.{setting}): "
            "record ids and hashes, and keep the rest where it is",
            details={"bytes": len(data), "limit": limit, "setting": f"workflows.{setting}"},
        )
    return data


def record_of(error: BaseException) -> ErrorRecord:
    """Describe an error, bounded in size."""
    body = error.body if isinstance(error, KsiError) else ErrorBody(Failed.code, _told(error))
    details = body.details
    if details is not None and len(msgspec.json.encode(details, enc_hook=repr)) > 4000:
        details = None
    message = body.message[:MAX_MESSAGE_CHARACTERS]
    return ErrorRecord(
        kind=type(error).__qualname__,
        body=ErrorBody(body.code, message, body.retry_after_s, details),
        traceback=traceback_of(error),
    )


def traceback_of(error: BaseException) -> str:
    """Return the last part of an error's traceback."""
    lines = traceback.format_exception(error, limit=-20)
    return "".join(lines)[-MAX_TRACEBACK_CHARACTERS:]


def encode_error(error: BaseException) -> bytes:
    """Return an error as JSON."""
    return msgspec.json.encode(Recorded(record_of(error)), enc_hook=repr)


def decode_error(text: str | bytes) -> ErrorRecord:
    """Read what `encode_error` wrote."""
    try:
        return msgspec.json.decode(text, type=Recorded).ksi_error
    except msgspec.MsgspecError:  # the engine's own, such as of arguments that it can't read
        body = ErrorBody(Failed.code, str(text)[:MAX_MESSAGE_CHARACTERS])
        return ErrorRecord(kind="Failed", body=body)


def error_of(record: ErrorRecord) -> KsiError:
    """Make the exception that a record tells of; what was none of ours is `Failed`."""
    return error_from(record.body)


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


class Serializer:
    """Writes and reads what the engine keeps; it must never be a format that can run code."""

    def name(self) -> str:
        """Name the format, as it is noted beside each value."""
        return FORMAT

    def serialize(self, data: Any) -> str:
        """Write arguments, an output or an error."""
        if isinstance(data, BaseException):
            return encode_error(data).decode()
        return msgspec.json.encode(data).decode()

    def deserialize(self, serialized_data: str) -> Any:
        """Read them; an error comes back as one."""
        value = msgspec.json.decode(serialized_data)
        if isinstance(value, dict) and value.keys() == {"ksi_error"}:
            return error_of(decode_error(serialized_data))
        return value

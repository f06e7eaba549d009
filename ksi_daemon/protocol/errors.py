"""The few errors that an event can end with, each named by what the caller should do."""

from typing import Any, ClassVar

from ksi_daemon.protocol.wire import ErrorBody


class KsiError(Exception):
    """The event was not answered; ``code`` is stable and says which kind of error it is."""

    code: ClassVar[str] = "failed"
    message = ""  # these three for a subclass that does not call __init__
    retry_after_s: float | None = None
    details: dict[str, Any] | None = None

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = str(message)  # whatever a plugin gives: it must cross the wire
        self.retry_after_s = None if retry_after_s is None else float(retry_after_s)
        self.details = None if details is None else dict(details)

    @property
    def body(self) -> ErrorBody:
        """The error as it crosses the wire."""
        return ErrorBody(self.code, self.message, self.retry_after_s, self.details)


class InvalidData(KsiError):
    """Mend the frame or its payload; ``details["path"]`` names the field where there is one."""

    code = "invalid_data"


class NotFound(KsiError):
    """Nothing bears that name; ``details["nearest"]`` lists the names most like it."""

    code = "not_found"


class Denied(KsiError):
    """The principal's grants do not reach this far; ask whoever issued the token."""

    code = "denied"


class Conflict(KsiError):
    """The name, id or key is taken by something else; choose another."""

    code = "conflict"


class Busy(KsiError):
    """A bound was reached; try again after ``retry_after_s``, with less at once."""

    code = "busy"


class Unavailable(KsiError):
    """Who answers is not there just now; try again after ``retry_after_s``."""

    code = "unavailable"


class TimedOut(KsiError):
    """The answer did not come in time; whether anything was done is not known."""

    code = "timeout"


class Cancelled(KsiError):
    """The request was cancelled before its answer was there."""

    code = "cancelled"


class Failed(KsiError):
    """The handler broke; the daemon's log has the event's id and the traceback."""

    code = "failed"


# Those above alone: whatever plugins derive is not defined yet.
_BY_CODE: dict[str, type[KsiError]] = {kind.code: kind for kind in KsiError.__subclasses__()}

RETRYABLE_CODES = frozenset({"busy", "unavailable", "timeout", "cancelled"})


def error_from(body: ErrorBody) -> KsiError:
    """Make the exception for an error that came over the wire; an unknown code is `Failed`."""
    kind = _BY_CODE.get(body.code, Failed)
    return kind(body.message, retry_after_s=body.retry_after_s, details=body.details)

"""The wire format and the few errors, shared by the daemon and its clients.

One JSON object a line, UTF-8, in both directions. This package imports nothing but the standard
library and msgspec, and nothing of the daemon.
"""

from ksi_daemon.protocol.errors import (
    Busy,
    Cancelled,
    Conflict,
    Denied,
    Failed,
    InvalidData,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_daemon.protocol.wire import Context, ErrorBody, Event, Frame, Limits, Outcome

PROTOCOL_VERSION = 1

__all__ = [
    "PROTOCOL_VERSION",
    "Busy",
    "Cancelled",
    "Conflict",
    "Context",
    "Denied",
    "ErrorBody",
    "Event",
    "Failed",
    "Frame",
    "InvalidData",
    "KsiError",
    "Limits",
    "NotFound",
    "Outcome",
    "TimedOut",
    "Unavailable",
]

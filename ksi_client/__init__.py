"""Talk to a KSI daemon: `AsyncClient`, `EventClient`, and the blocking `Client`."""

import importlib
from typing import TYPE_CHECKING, Any

from ksi_client.sync import Client
from ksi_daemon.protocol import (
    Busy,
    Cancelled,
    Conflict,
    Context,
    Denied,
    Event,
    Failed,
    InvalidData,
    KsiError,
    NotFound,
    TimedOut,
    Unavailable,
)

if TYPE_CHECKING:
    from ksi_client.client import AsyncClient, EventClient, Subscription
    from ksi_client.transports import LocalTransport, SocketTransport, Transport, UnixTransport

__all__ = [
    "AsyncClient",
    "Busy",
    "Cancelled",
    "Client",
    "Conflict",
    "Context",
    "Denied",
    "Event",
    "EventClient",
    "Failed",
    "InvalidData",
    "KsiError",
    "LocalTransport",
    "NotFound",
    "SocketTransport",
    "Subscription",
    "TimedOut",
    "Transport",
    "Unavailable",
    "UnixTransport",
]

# Importing asyncio takes longer than all that a command does with the blocking client.
_ASYNCHRONOUS = {
    "AsyncClient": "ksi_client.client",
    "EventClient": "ksi_client.client",
    "Subscription": "ksi_client.client",
    "LocalTransport": "ksi_client.transports",
    "SocketTransport": "ksi_client.transports",
    "Transport": "ksi_client.transports",
    "UnixTransport": "ksi_client.transports",
}


def __getattr__(name: str) -> Any:
    if name not in _ASYNCHRONOUS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ASYNCHRONOUS[name]), name)

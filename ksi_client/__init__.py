"""Talk to a KSI daemon: `AsyncClient`, `EventClient`, and the blocking `Client`."""

from ksi_client.client import AsyncClient, EventClient, Subscription
from ksi_client.sync import Client
from ksi_client.transports import LocalTransport, SocketTransport, Transport, UnixTransport
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

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
    from ksi_client.turns import (
        AcceptedChunk,
        Completion,
        CompletionChunk,
        RestartedChunk,
        StatusChunk,
        StepChunk,
        TextChunk,
        ThinkingChunk,
        TokenUsage,
        ToolCallChunk,
        ToolResultChunk,
        TurnOptions,
    )

__all__ = [
    "AcceptedChunk",
    "AsyncClient",
    "Busy",
    "Cancelled",
    "Client",
    "Completion",
    "CompletionChunk",
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
    "RestartedChunk",
    "SocketTransport",
    "StatusChunk",
    "StepChunk",
    "Subscription",
    "TextChunk",
    "ThinkingChunk",
    "TimedOut",
    "TokenUsage",
    "ToolCallChunk",
    "ToolResultChunk",
    "Transport",
    "TurnOptions",
    "Unavailable",
    "UnixTransport",
]

# Importing asyncio takes longer than all that a command does with the blocking client.
_LATE = {
    "AsyncClient": "ksi_client.client",
    "EventClient": "ksi_client.client",
    "Subscription": "ksi_client.client",
    "LocalTransport": "ksi_client.transports",
    "SocketTransport": "ksi_client.transports",
    "Transport": "ksi_client.transports",
    "UnixTransport": "ksi_client.transports",
    "AcceptedChunk": "ksi_client.turns",
    "Completion": "ksi_client.turns",
    "CompletionChunk": "ksi_client.turns",
    "RestartedChunk": "ksi_client.turns",
    "StatusChunk": "ksi_client.turns",
    "StepChunk": "ksi_client.turns",
    "TextChunk": "ksi_client.turns",
    "ThinkingChunk": "ksi_client.turns",
    "TokenUsage": "ksi_client.turns",
    "ToolCallChunk": "ksi_client.turns",
    "ToolResultChunk": "ksi_client.turns",
    "TurnOptions": "ksi_client.turns",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)

"""Keeps for a while what a session is told, so that a stream that was cut is taken up again."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import mcp_types as types
from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId

MAX_EVENTS: Final = 256
MAX_BYTES: Final = 1024 * 1024
MAX_DIGITS: Final = 18
ANSWERS: Final = (types.JSONRPCResponse, types.JSONRPCError)


class Replay(EventStore):
    """The latest messages of one session, in memory: bounded in number and in size.

    Streams bear the same ids in all sessions, so that one for all would mix them up.

    Args:
        answered: Is told of each request that is answered: every answer comes by here,
            whether its client is still there or not.
    """

    def __init__(self, answered: Callable[[types.RequestId], None]) -> None:
        self._answered = answered
        self._kept: OrderedDict[int, tuple[StreamId, types.JSONRPCMessage | None, int]] = (
            OrderedDict()
        )
        self._bytes = 0
        self._number = 0

    async def store_event(
        self, stream_id: StreamId, message: types.JSONRPCMessage | None
    ) -> EventId:
        """Keep a message, and forget the oldest where there is no room."""
        if isinstance(message, ANSWERS) and message.id is not None:
            self._answered(message.id)
        size = 0 if message is None else len(message.model_dump_json(by_alias=True))
        self._number += 1
        self._kept[self._number] = (stream_id, message, size)
        self._bytes += size
        while len(self._kept) > MAX_EVENTS or (self._bytes > MAX_BYTES and len(self._kept) > 1):
            _, (_, _, gone) = self._kept.popitem(last=False)
            self._bytes -= gone
        return str(self._number)

    async def replay_events_after(
        self, last_event_id: EventId, send_callback: EventCallback
    ) -> StreamId | None:
        """Send what came after a message on its stream."""
        if not last_event_id.isascii() or not last_event_id.isdigit():
            return None
        last = int(last_event_id[:MAX_DIGITS])
        known = self._kept.get(last)
        if known is None:
            return None
        stream_id = known[0]
        for number, (of, message, _) in list(self._kept.items()):
            if number > last and of == stream_id and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id

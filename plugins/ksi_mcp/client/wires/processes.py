"""The way to a server that is a process of ours.

Whatever goes wrong on the way becomes an answer to the request that it concerns, which says whether
the server can have got that; so no failure breaks more than it has to.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import (
    CONNECTION_CLOSED,
    PARSE_ERROR,
    REQUEST_TIMEOUT,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from ksi_mcp.client.errors import LOST, NOT_SENT, REFUSED
from ksi_mcp.client.wires.watching import MESSAGES_PER_S, Message, Over, Pace, failure
from ksi_mcp.lines import Bounds, Lines, TooLong, answered_id, head_of, why_not
from ksi_models.api import GuardedProcess

READ_BYTES: Final = 65_536
CLOSE_S: Final = 1.0
# For one that says nothing more by itself: its guard tells what it left unread, once it is gone.
GONE_S: Final = 4.0
NEVER: Final = math.inf
# With these the SDK says that no answer came; a server's own answer is one, whatever its code.
OF_THE_SDK: Final = frozenset({CONNECTION_CLOSED, PARSE_ERROR, REQUEST_TIMEOUT})


class _Pipes:
    """Talks with a process in lines of JSON."""

    def __init__(self, process: GuardedProcess, bounds: Bounds) -> None:
        self._process = process
        self._bounds = bounds
        self._pace = Pace(bounds.max_bytes * MESSAGES_PER_S)
        self._written = 0
        # Where each request that is not answered ends in all that was written.
        self._asked: dict[int | str, float] = {}
        self._wanted = asyncio.Event()

    async def read(self, send: ObjectSendStream[Message]) -> None:
        lines = Lines(self._bounds.max_bytes)
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with send:
                while data := await self._process.read(READ_BYTES):
                    for line in lines.feed(data):
                        for message in await self._messages(line):
                            await send.send(message)
                how = await ended(self._process, GONE_S)
                while True:  # who asks after this is told too
                    while self._asked:
                        await send.send(SessionMessage(self._unanswered(how)))
                    await send.send(Over(how))
                    self._wanted.clear()
                    await self._wanted.wait()

    async def _messages(self, line: bytes | TooLong) -> list[Message]:
        why = await why_not(line, self._bounds)
        if isinstance(line, TooLong) or why is not None:
            return self._unreadable(head_of(line), why or "")
        if not line.strip():
            return []
        await self._pace.keep(len(line))
        try:
            message = _parsed(line)
        except ValidationError as error:
            return [error, *self._unreadable(head_of(line), "it sent what is no JSON-RPC")]
        if isinstance(message, JSONRPCError) and message.error.code in OF_THE_SDK:
            message.error.code = REFUSED
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            self._asked.pop(message.id, None)
        return [SessionMessage(message)]

    def _unreadable(self, head: bytes, why: str) -> list[Message]:
        request_id = answered_id(head)
        if request_id is None:
            return [ValueError(why)]
        return [SessionMessage(failure(request_id, LOST, why))]

    def _unanswered(self, how: str) -> JSONRPCError:
        """Tell of a request whether the process, which has ended, can have read it."""
        request_id, end = self._asked.popitem()
        unread = self._process.ended.unread_bytes
        can_have_read = end != NEVER and (unread is None or end <= self._written - unread)
        return failure(request_id, LOST if can_have_read else NOT_SENT, how)

    async def write(self, receive: ObjectReceiveStream[SessionMessage]) -> None:
        async with receive:
            async for each in receive:
                message = each.message
                data = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
                takes_it = self._process.takes_input
                self._written += len(data) if takes_it else 0
                if isinstance(message, JSONRPCRequest):
                    self._asked[message.id] = self._written if takes_it else NEVER
                    self._wanted.set()
                with contextlib.suppress(OSError):  # its end tells those who wait
                    await self._process.write(data)


def _parsed(line: bytes) -> JSONRPCMessage:
    """Read a message; one with bytes that are no UTF-8 with marks in their place.

    Raises:
        ValidationError: It is none.
    """
    try:
        return jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError:
        text = line.decode(errors="replace")
        if text.encode() == line:
            raise
        return jsonrpc_message_adapter.validate_json(text, by_name=False)


async def ended(process: GuardedProcess, within_s: float) -> str:
    """End a process that says nothing more, and return how it has ended.

    Its input is closed first: then its guard can tell how much of that it left unread.

    Args:
        process: It.
        within_s: How long it may take to end by itself.
    """
    process.write_and_close(b"")
    if not await process.until_gone(within_s):
        process.end()
        await process.until_gone()
        return "it closed its output"
    how = process.ended
    return f"it ended ({f'exit code {how.code}' if how.signal is None else how.signal})"


@asynccontextmanager
async def process_wire(process: GuardedProcess, bounds: Bounds) -> AsyncIterator[tuple[Any, Any]]:
    """Talk with a process, and end it: it may end by itself first, when its input is closed.

    Args:
        process: It.
        bounds: What a message of its may be.
    """
    pipes = _Pipes(process, bounds)
    send, read = anyio.create_memory_object_stream[Message](0)
    write, receive = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with read, write, anyio.create_task_group() as group:
            group.start_soon(pipes.read, send)
            group.start_soon(pipes.write, receive)
            yield read, write
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await ended(process, CLOSE_S)

"""Standard input and output as messages of MCP: a line is one, and what is none is answered, too.

Nothing here waits in a thread, so that the program can be ended at any time.
"""

import asyncio
import contextlib
import os
import re
import select
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
import mcp_types as types
import msgspec
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.shared.message import SessionMessage
from msgspec import UNSET, Struct
from pydantic import ValidationError

from ksi_daemon.protocol.wire import DECODE_ERRORS
from ksi_mcp.lines import Lines, TooLong

MAX_LINE_BYTES: Final = 4_000_000
CHUNK_BYTES: Final = 65_536
LAST_S: Final = 2.0  # how long whoever reads may take for what was said at the end
_METHOD: Final = re.compile(rb'"method"\s*:')
_VALUE: Final = rb'"id"\s*:\s*(-?\d{1,18}|"[^"\\]{1,200}")\s*'
# Of the object itself: what comes before, or after, is none of what is in it.
_FIRST: Final = re.compile(rb'\s*\{(?:\s*"\w+"\s*:\s*"[^"\\]*"\s*,)*\s*' + _VALUE + rb",")
_LAST: Final = re.compile(rb",\s*" + _VALUE + rb"\}\s*\Z")

Messages = ObjectReceiveStream[SessionMessage | Exception]
Answers = ObjectSendStream[SessionMessage]


class Pipes:
    """Two file descriptors as messages that come and go.

    Args:
        source: Where they come from.
        sink: Where answers go.
    """

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._reading: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether they are read, or were."""
        return self._reading is not None

    @classmethod
    def of_process(cls) -> "Pipes":
        """Take over standard output: what is printed by mistake goes where errors go."""
        sink = os.dup(1)
        with contextlib.suppress(OSError):  # nobody may want to see those
            os.dup2(2, 1)
        return cls(0, sink)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Messages, Answers]]:
        """Read and write within the ``with``."""
        heard, incoming = anyio.create_memory_object_stream[SessionMessage | Exception]()
        outgoing, said = anyio.create_memory_object_stream[SessionMessage]()
        async with asyncio.TaskGroup() as tasks:
            self._reading = tasks.create_task(self._read(heard, outgoing.clone()), name="read")
            writing = tasks.create_task(self._write(said), name="write")
            with incoming, outgoing:
                yield incoming, outgoing
            self.end()
            asyncio.get_running_loop().call_later(LAST_S, writing.cancel)

    def end(self) -> None:
        """Read no more, as if all had been said."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(
        self, heard: ObjectSendStream[SessionMessage | Exception], refused: Answers
    ) -> None:
        async with heard, refused:
            async for line in self._lines():
                message = message_of(line)
                if message is None:
                    await refused.send(SessionMessage(refusal_of(line)))
                else:
                    await heard.send(SessionMessage(message))

    async def _lines(self) -> AsyncIterator[bytes | TooLong]:
        lines, chunk = Lines(MAX_LINE_BYTES), b"\n"
        while chunk:
            chunk = await self._chunk()
            for line in lines.feed(chunk or b"\n"):
                if isinstance(line, TooLong) or line.strip():
                    yield line

    async def _chunk(self) -> bytes:
        with contextlib.suppress(PermissionError):  # a file, which is there at any time
            await anyio.wait_readable(self._source)
        return os.read(self._source, CHUNK_BYTES)

    async def _write(self, said: ObjectReceiveStream[SessionMessage]) -> None:
        async with said:
            try:
                async for each in said:
                    text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await self._put(text.encode() + b"\n")
            except BrokenPipeError:
                self.end()  # nobody reads any more
                async for _ in said:
                    pass

    async def _put(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            with contextlib.suppress(PermissionError):
                await anyio.wait_writable(self._sink)
            left = left[os.write(self._sink, left[: select.PIPE_BUF]) :]  # as much as can't block


def message_of(line: bytes | TooLong) -> types.JSONRPCMessage | None:
    """Return the message that a line is; ``None`` where it is none."""
    if isinstance(line, TooLong):
        return None
    try:
        return types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError:
        return None


class Named(Struct):
    """What of a message says whose answer is wanted."""

    id: str | int | None = None
    method: Any = UNSET


def refusal_of(line: bytes | TooLong) -> types.JSONRPCError:
    """Return the answer to a line that is no message of MCP."""
    if isinstance(line, TooLong):
        message = f"a message may have {MAX_LINE_BYTES} bytes, and this one has {line.size}"
        return _refusal(types.INVALID_REQUEST, message, id_of(line))
    try:
        named = msgspec.json.decode(line, type=Named)
    except msgspec.ValidationError:
        named = Named()
    except DECODE_ERRORS:
        return _refusal(types.PARSE_ERROR, "this line is no JSON")
    known = named.id if named.method is not UNSET else None  # else it would have been an answer
    return _refusal(types.INVALID_REQUEST, "this is no message of JSON-RPC 2.0", known)


def id_of(line: TooLong) -> str | int | None:
    """Return the id of a request of which only the beginning and the end are known."""
    found = _FIRST.match(line.head) or _LAST.search(line.tail)
    if found is None or _METHOD.search(line.head) is None:
        return None
    known: str | int = msgspec.json.decode(found[1])
    return known


def _refusal(code: int, message: str, request: str | int | None = None) -> types.JSONRPCError:
    error = types.ErrorData(code=code, message=message)
    return types.JSONRPCError(jsonrpc="2.0", id=request, error=error)

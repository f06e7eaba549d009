"""Hears what a server says, by whichever wire: no more than is bearable, and nothing unasked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import (
    METHOD_NOT_FOUND,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCRequest,
    JSONRPCResponse,
)

from ksi_mcp.client.errors import LOST
from ksi_mcp.client.tools.listing import mended

BURST_S: Final = 2.0
NO_SAMPLING: Final = "servers are not given answers of models, which cost money"
ELICIT: Final = "elicitation/create"
REPLIES: Final[dict[str, dict[str, Any]]] = {
    "ping": {},
    "roots/list": {"roots": []},
    ELICIT: {"action": "decline"},
}
MESSAGES_PER_S: Final = 8  # as large as one may be
Message = SessionMessage | Exception
Read = ObjectReceiveStream[Message]
Write = ObjectSendStream[SessionMessage]
Wire = contextlib.AbstractAsyncContextManager[tuple[Any, Any]]


class Over(Exception):
    """A server says nothing more; has how that came."""


def failure(request_id: int | str | None, code: int, message: str) -> JSONRPCError:
    """Make an answer in a server's place."""
    data = ErrorData(code=code, message=message)
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=data)


class Pace:
    """Lets things pass as fast as is bearable.

    Args:
        per_s: How many, or how much, passes in a second.
    """

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._room = per_s * BURST_S
        self._at = 0.0

    async def keep(self, amount: int = 1) -> None:
        """Wait until others may pass."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._room = min(self._per_s * BURST_S, self._room + (now - self._at) * self._per_s)
        self._at = now
        self._room -= amount
        if self._room < 0:
            await asyncio.sleep(-self._room / self._per_s)


@asynccontextmanager
async def watched(
    wire: Wire,
    per_s: int,
    max_items: int,
    *,
    may_ask: Callable[[], bool],
    on_message: Callable[[], None],
    on_end: Callable[[str], None],
) -> AsyncIterator[tuple[Any, Any]]:
    """Let a server say no more than is bearable.

    An answer that is waited for always passes. What it asks of us is answered here, one after the
    other, but for what a person is asked: so one that asks and never reads the answers is read no
    more.

    Args:
        wire: The way to it.
        per_s: How many notifications, and answers that nobody waits for, pass in a second.
        max_items: How many tools, or blocks of a result, an answer may have.
        may_ask: Says whether a person can be asked what it wants to know, and will be.
        on_message: Called when it says something.
        on_end: Told why when it says nothing more.
    """
    pace = Pace(per_s)
    async with wire as (read, write):
        asking = _Asking(write)
        send, receive = anyio.create_memory_object_stream[Message](0)

        async def pump() -> None:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with send:
                    async for each in read:
                        on_message()
                        if not asking.is_answered_by(each):
                            await pace.keep()
                        reply = _reply_to(each, may_ask)
                        if isinstance(each, Over):
                            on_end(str(each))
                        elif reply is not None:
                            await write.send(SessionMessage(reply))
                        elif not isinstance(each, Exception):
                            await send.send(mended(_short(each, max_items)))
            on_end("it closed the connection")

        async with receive, anyio.create_task_group() as group:
            group.start_soon(pump)
            yield receive, asking
            group.cancel_scope.cancel()


class _Asking(ObjectSendStream[SessionMessage]):
    """Sends what is asked, and keeps in mind what is not answered yet."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._asked = set[int | str]()

    async def send(self, item: SessionMessage) -> None:
        """Send a message."""
        if isinstance(item.message, JSONRPCRequest):
            self._asked.add(item.message.id)
        await self._write.send(item)

    async def aclose(self) -> None:
        """Send no more."""
        await self._write.aclose()

    def is_answered_by(self, each: Message) -> bool:
        """Say whether somebody waits for this, once."""
        message = None if isinstance(each, Exception) else each.message
        if not isinstance(message, JSONRPCResponse | JSONRPCError) or message.id is None:
            return False
        is_asked = message.id in self._asked
        self._asked.discard(message.id)
        return is_asked


def _short(each: SessionMessage, max_items: int) -> SessionMessage:
    """Return a message; in place of an answer with too many parts, each of which takes time, why.

    The SDK makes more of them than what they are as JSON.
    """
    answer = each.message
    if not isinstance(answer, JSONRPCResponse):
        return each
    for name in ("content", "tools"):
        items = answer.result.get(name)
        if isinstance(items, list) and len(items) > max_items:
            why = f"its answer has {len(items)} {name}, more than {max_items}"
            return SessionMessage(failure(answer.id, LOST, why))
    return each


def _reply_to(each: Message, may_ask: Callable[[], bool]) -> JSONRPCMessage | None:
    if isinstance(each, Exception) or not isinstance(each.message, JSONRPCRequest):
        return None
    request_id, method = each.message.id, each.message.method
    if method == ELICIT and may_ask():
        return None
    if method in REPLIES:
        return JSONRPCResponse(jsonrpc="2.0", id=request_id, result=REPLIES[method])
    if method == "sampling/createMessage":
        return failure(request_id, METHOD_NOT_FOUND, NO_SAMPLING)
    return failure(request_id, METHOD_NOT_FOUND, "this client has no such method")

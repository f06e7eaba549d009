"""What a program needs that calls tools by itself, so that KSI's own gate makes its calls.

The program is given a server of the Model Context Protocol that has no tools at all: it asks the
desk of the program's call for the result of each. The model's wish for a tool is read in what the
program writes, and handed to the turn as any model's is; the turn makes the call, and the next
question brings the result, which is laid on the desk.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from ksi_models.events import ToolCallPart, ToolResultPart, ToolSchema

MAX_WAITING: Final = 256
NOT_MADE: Final = "This call is none that the model has asked for; it was not made."
GIVEN: Final = "The result of this call was given already."
OVER: Final = "The conversation has ended; the call was not made."
TOO_MANY: Final = f"More than {MAX_WAITING} calls wait for their results."


class AskedCall(Struct, frozen=True, kw_only=True):
    """A call whose result a program wants; ``id`` is the model's, where the program tells it."""

    id: str | None = None
    name: str
    arguments: dict[str, Any] = {}


Answer = Callable[[AskedCall], Awaitable[ToolResultPart]]


class OpenTools(Protocol):
    """Tools as one process sees them.

    Attributes:
        config: A file that tells the program of its server.
    """

    config: Path

    def close(self) -> None:
        """Take them away."""


class ToolServer(Protocol):
    """Gives programs that call tools by themselves a server that has none."""

    async def open(self, tools: tuple[ToolSchema, ...], answer: Answer, folder: Path) -> OpenTools:
        """Have a process see these tools, and ask `answer` for the result of each call.

        Args:
            tools: What it sees.
            answer: Is asked for results, as soon as the process calls.
            folder: A folder of the process, for what it is handed.
        """

    async def why_not(self, *, with_tools: bool) -> str | None:
        """Say why the program is not to be asked, once that is known."""

    def is_tried(self, version: str) -> bool:
        """Say whether the program was tried in this version; if not, that is done now."""

    def why_not_now(self) -> str | None:
        """Say why the program is not to be asked, as far as that is known now."""


class Desk:
    """Where the results lie that a process waits for.

    The process may ask before it is known here that its model wants the call: what it writes and
    what it asks come by different ways. So a call that nobody knows waits until results are given;
    if it is not among those by then, the model has not asked for it.
    """

    def __init__(self) -> None:
        self._wanted: dict[str, ToolCallPart] = {}
        self._results: dict[str, ToolResultPart] = {}
        self._gone: set[str] = set()
        self._news = asyncio.Event()
        self._rounds = 0
        self._waiting = 0
        self._is_closed = False

    def give(self, calls: tuple[ToolCallPart, ...], results: dict[str, ToolResultPart]) -> None:
        """Lay down the results of all calls that the model has asked for."""
        self._wanted = {call.id: call for call in calls}
        self._results = dict(results)
        self._rounds += 1
        self._wake()

    def close(self) -> None:
        """Have nobody wait any more."""
        self._is_closed = True
        self._wake()

    async def result_of(self, asked: AskedCall) -> ToolResultPart:
        """Return the result of a call, once it is there; each is given once."""
        if self._waiting >= MAX_WAITING:
            return _refusal(asked, TOO_MANY)
        self._waiting += 1
        try:
            return await self._result_of(asked)
        finally:
            self._waiting -= 1

    async def _result_of(self, asked: AskedCall) -> ToolResultPart:
        rounds = self._rounds
        while not self._is_closed:
            if asked.id is not None and asked.id in self._gone:
                return _refusal(asked, GIVEN)
            found = self._find(asked)
            if found is not None:
                self._gone.add(found)
                del self._wanted[found]
                return self._results.pop(found)
            if self._rounds > rounds:
                return _refusal(asked, NOT_MADE)
            await self._news.wait()
        return _refusal(asked, OVER)

    def _find(self, asked: AskedCall) -> str | None:
        if asked.id is not None:
            found = self._wanted.get(asked.id)
            return None if found is None or found.name != asked.name else found.id
        same = (c.id for c in self._wanted.values() if _is_same(c, asked))
        return next(same, None)

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _is_same(call: ToolCallPart, asked: AskedCall) -> bool:
    if call.name != asked.name:
        return False
    try:
        return bool(msgspec.json.decode(call.arguments or "{}") == asked.arguments)
    except (msgspec.DecodeError, RecursionError):
        return False


def _refusal(asked: AskedCall, why: str) -> ToolResultPart:
    return ToolResultPart(asked.id or "", asked.name, why, is_error=True)

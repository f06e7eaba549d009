"""The requests that are not answered yet, each with an id of its own."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import mcp_types as types
from mcp.shared.dispatcher import coerce_request_id
from msgspec import Struct

from ksi_daemon.protocol import Conflict

MAX_SHOWN: Final = 100


class Call(Struct, frozen=True):
    """A request that is not answered yet.

    Attributes:
        over: Set when it is answered, or never will be.
        end: Lets go of its id.
    """

    over: asyncio.Event
    end: Callable[[], None]


class UnderWay:
    """The requests that came one way and are not answered yet.

    Two of one id would be mixed up: the answer of one would go to the other, and neither could be
    cancelled by itself. To the SDK ``1``, ``"1"`` and ``"01"`` are one id.
    """

    def __init__(self) -> None:
        self._calls: dict[types.RequestId, Call] = {}

    def begin(self, request_id: types.RequestId) -> Call:
        """Let a request have its id until it is answered, though its client may have gone.

        Raises:
            Conflict: Another has it.
        """
        name = coerce_request_id(request_id)
        if name in self._calls:
            shown = str(request_id)[:MAX_SHOWN]
            raise Conflict(f"the request {shown!r} is still under way: give each an id of its own")
        call = self._calls[name] = Call(asyncio.Event(), partial(self.answered, name))
        return call

    def answered(self, request_id: types.RequestId) -> None:
        """Let go of an id: its request is answered, or never will be."""
        call = self._calls.pop(coerce_request_id(request_id), None)
        if call is not None:
            call.over.set()

    def end(self) -> None:
        """Let go of all: nothing will be answered any more."""
        for name in tuple(self._calls):
            self.answered(name)

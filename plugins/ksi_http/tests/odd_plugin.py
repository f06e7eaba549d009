"""Events for the tests of requests: one of each kind, also such as break."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct

from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.protocol import Busy, Conflict, Failed, Unavailable


class OddEcho(Struct, frozen=True, kw_only=True):
    """Say something back."""

    text: str
    times: int = 1


class OddCount(Struct, frozen=True, kw_only=True):
    """Count; ``fail_at`` is where that breaks, ``wait`` whether it waits for ever in the end."""

    to: int
    fail_at: int | None = None
    wait: bool = False
    padding: int = 0


class OddFail(Struct, frozen=True, kw_only=True):
    """Fail in a way."""

    how: str


ERRORS = {
    "busy": Busy("too much at once (odd.bound)", retry_after_s=2.5),
    "conflict": Conflict("that is taken"),
    "failed": Failed("the password is hunter2"),
    "unavailable": Unavailable("10.0.0.7 is away"),
}


class Odd:
    """Answers them."""

    def __init__(self) -> None:
        self.counting = 0
        self.echoed = 0
        self.stopped = asyncio.Event()

    @event_handler("odd:echo", scope="odd:read")
    def echo(self, request: OddEcho) -> dict[str, Any]:
        """Say something back.

        As often as is wanted.
        """
        self.echoed += 1
        return {"text": request.text * request.times, "echoed": self.echoed}

    @event_handler("odd:whose", scope="odd:read")
    def whose(self) -> dict[str, Any]:
        """Tell in whose name this came."""
        context = current_context()
        assert context is not None
        return {
            "tenant": context.tenant,
            "user": context.user,
            "principal": context.principal,
            "origin": context.origin,
        }

    @event_handler("odd:count", scope="odd:write")
    async def count(self, request: OddCount) -> AsyncIterator[Any]:
        """Count."""
        self.counting += 1
        try:
            for number in range(request.to):
                if number == request.fail_at:
                    raise Conflict("it broke")
                yield [number, "x" * request.padding] if request.padding else number
            if request.wait:
                await asyncio.Event().wait()
        finally:
            self.counting -= 1
            self.stopped.set()

    @event_handler("odd:fail", scope="odd:write")
    def fail(self, request: OddFail) -> None:
        """Fail."""
        raise ERRORS.get(request.how) or ValueError(request.how)

    @event_handler("odd:wait", scope="odd:write")
    async def wait(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    @event_handler("odd:deep:er", scope="odd:read")
    def deeper(self) -> str:
        """Be deeper."""
        return "deep"

    @event_handler("odd:inside")
    def inside(self) -> None:
        """Answer nobody from outside."""

"""Offers a turn's model the tools that it may call, and calls them."""

import asyncio
import fnmatch
import random
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_completion.work import Prepared, Work
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Busy, Conflict, Context, KsiError, NotFound, Unavailable
from ksi_models.events import ToolCallPart, ToolResultPart, ToolSchema
from ksi_tools.events import (
    CLIENT_TOOL,
    ToolCall,
    ToolCalled,
    ToolList,
    ToolListed,
)

AGAIN_S: Final = 0.2
MAX_AGAIN_S: Final = 2.0
AWAY_S: Final = 10.0
OFFER_S: Final = 10.0
MAX_OFFERED: Final = 500

BEGUN: Final = ("begun", "at_work")  # the kinds of errors of a call that may have its effect yet


class Held(Struct, frozen=True):
    """A call that was begun, and of which nothing can be told just now."""

    call_id: str
    why: str


Outcome = ToolResultPart | ToolCalled | Held


class Tooling:
    """Speaks to the registry of tools, in the name of the event that is handled.

    Args:
        bus: Sends events.
        patience_s: How long a call is tried that can't be made just now.
    """

    def __init__(self, bus: Bus, patience_s: float) -> None:
        self._bus = bus
        self._patience_s = patience_s

    async def permit(self, work: Work) -> None:
        """Let a conversation that was made with a turn call what it was made with.

        Whose child it is bounds it, so that it is said in nobody's name. Said before the first step
        of the turn: a daemon that dies before says it when it is there again.
        """
        with acting_as(Context("", tenant=work.tenant)):
            await self._bus.request("tool:permit", work.permit)

    async def offered_to(self, work: Work) -> tuple[ToolSchema, ...]:
        """Return what a turn's model may call; what it was told a moment ago still holds."""
        now = asyncio.get_running_loop().time()
        if work.offer is None or now - work.offered_at > OFFER_S:
            offer = await self.offered(work.globs, work.options.client_tools)
            work.offer, work.offered_at = offer, now
        work.tools = work.offer.is_parallel
        return work.offer.schemas

    async def offered(
        self, globs: list[tuple[str, ...]], of_client: tuple[ToolSchema, ...] = ()
    ) -> Prepared:
        """Return what may be called: of ours what matches a glob of each list, and the client's.

        Raises:
            Conflict: The client has a tool of a name that one of ours has.
        """
        listed = await self._bus.request(
            "tool:list", ToolList(schemas=True), result_type=ToolListed
        )
        found = [
            (info, parameters)
            for info, parameters in zip(listed.tools, listed.schemas, strict=True)
            if info.is_allowed and info.name != CLIENT_TOOL and is_wanted(info.name, globs)
        ][:MAX_OFFERED]
        ours = {
            info.name: info.effects == "read_only" and not info.is_interactive for info, _ in found
        }
        taken = sorted(ours.keys() & {each.name for each in of_client})
        if taken:
            raise Conflict(
                f"the client has a tool {taken[0]}, and so has the daemon: give it another name"
            )
        schemas = (
            ToolSchema(info.name, info.description, parameters) for info, parameters in found
        )
        return Prepared(
            schemas=(*schemas, *of_client),
            is_parallel=ours | {each.name: False for each in of_client},
        )

    async def call(self, work: Work, index: int, refused: tuple[int, ...]) -> Outcome:
        """Make one of a step's calls; what comes back is for the model, or a call that waits.

        One that was begun waits too, where nothing can be told of it: the model would take an error
        for a call that was never made.
        """
        part = work.calls[index]
        why = _why_not(work, part, is_refused=index in refused)
        if why is not None:
            return ToolResultPart(part.id, part.name, why, is_error=True)
        request = _request_of(work, part, index)
        try:
            called = await self._called(request)
        except KsiError as error:
            if (error.details or {}).get("kind") in BEGUN:
                return Held(work.call_id(index), error.message)
            told = f"{error.code}: {error.message}"
            return ToolResultPart(part.id, part.name, told, is_error=True)
        if called.status in ("waiting", "in_doubt"):
            return called
        is_error = called.status != "done"
        return ToolResultPart(part.id, part.name, _content_of(called), is_error=is_error)

    async def _called(self, request: ToolCall) -> ToolCalled:
        loop = asyncio.get_running_loop()
        bound_s, began_at = AGAIN_S, loop.time()
        while True:
            try:
                called: ToolCalled = await self._bus.request(
                    "tool:call", request, result_type=ToolCalled
                )
            except (Unavailable, Busy, NotFound) as error:
                # It was offered: who serves it may be about to come back.
                patience_s = AWAY_S if isinstance(error, NotFound) else self._patience_s
                delay_s = max(random.uniform(0.0, bound_s), error.retry_after_s or 0.0)
                if loop.time() - began_at + delay_s > min(patience_s, self._patience_s):
                    raise
                await asyncio.sleep(delay_s)
                bound_s = min(2 * bound_s, MAX_AGAIN_S)
            else:
                return called


def _request_of(work: Work, part: ToolCallPart, index: int) -> ToolCall:
    name, arguments = part.name, part.arguments or "{}"
    if any(each.name == name for each in work.options.client_tools):
        asked = {"name": name, "arguments": arguments}
        name, arguments = CLIENT_TOOL, msgspec.json.encode(asked).decode()
    return ToolCall(name=name, arguments=arguments, call_id=work.call_id(index))


def _content_of(called: ToolCalled) -> str:
    if called.content or called.error is None:
        return called.content
    return f"{called.error.code}: {called.error.message}"


def _why_not(work: Work, part: ToolCallPart, *, is_refused: bool) -> str | None:
    """Return why a call can't be made as the model wrote it, for the model to mend."""
    if is_refused:
        names = ", ".join(sorted(work.tools)) or "none"
        return f"there is no tool {part.name!r} that you may call; there are: {names}"[:4000]
    try:
        value: Any = msgspec.json.decode(part.arguments or "{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"the arguments are not JSON: {error}"
    return None if isinstance(value, dict) else "the arguments must be a JSON object"


def is_wanted(name: str, globs: list[tuple[str, ...]]) -> bool:
    """Say whether a name matches a glob of each list."""
    return all(any(fnmatch.fnmatchcase(name, glob) for glob in each) for each in globs)

"""Models of the members of orchestrations: each says what a test wants of it."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import Any

from ksi_completion.tests.doubles import Script, response
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.protocol import NotFound
from ksi_models.events import (
    ModelCall,
    ModelChunk,
    ModelDescribe,
    ModelDescribed,
    ModelPrice,
    ModelPriced,
    ModelPrices,
    TextDelta,
    TextPart,
)


class Asked:
    """What a member was asked.

    Attributes:
        which: In which orchestration.
        member: Who.
        prompt: What it was told last.
        call: The call of the model.
        tenant: Whose turn it was.
    """

    def __init__(self, which: str, member: str, call: ModelCall, tenant: str) -> None:
        self.which = which
        self.member = member
        self.call = call
        self.tenant = tenant
        last = call.messages[-1].parts[-1] if call.messages else None
        self.prompt = last.text if isinstance(last, TextPart) else ""


class Ensemble(Script):
    """Answers for each member with its next line; then with its name and how often it spoke.

    Attributes:
        asked: Each call, in order.
        gates: What a member's answers wait for after their first word.
        unknown: Models that are not there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.unknown: set[str] = set()
        self._lines: defaultdict[str, deque[Any]] = defaultdict(deque)
        self._news = asyncio.Event()

    def lines(self, member: str, *lines: Any) -> None:
        """Give a member, or one of a certain orchestration (``ID/MEMBER``), its next lines.

        They are texts, or errors.
        """
        self._lines[member].extend(lines)

    def hold(self, member: str) -> asyncio.Event:
        """Have a member's answers wait for what is returned."""
        self.gates[member] = asyncio.Event()
        return self.gates[member]

    def prompts(self, member: str) -> list[str]:
        """Return what a member was told, turn by turn."""
        return [each.prompt for each in self.asked if each.member == member]

    def order(self) -> list[str]:
        """Return who was asked, in order."""
        return [each.member for each in self.asked]

    async def until_asked(self, member: str, times: int = 1) -> None:
        """Wait until a member was asked so often."""
        async with asyncio.timeout(20):
            while self.order().count(member) < times:
                self._news.clear()
                await self._news.wait()

    @event_handler("model:describe")
    def describe(self, request: ModelDescribe) -> ModelDescribed:
        """Tell how much it can read."""
        if request.model in self.unknown:
            raise NotFound(f"there is no model {request.model!r}")
        return super().describe(request)

    @event_handler("model:prices")
    def prices(self, request: ModelPrices) -> ModelPriced:
        """Tell what it costs: a dollar for two million tokens."""
        return ModelPriced(
            prices=(ModelPrice(model=request.model or "", input_usd=0.5, output_usd=0.5),)
        )

    @event_handler("model:call")
    async def call(self, request: ModelCall) -> AsyncIterator[ModelChunk]:
        """Answer for the member whose conversation it is."""
        context = current_context()
        assert context is not None
        _, _, place = (context.conversation or "").partition(":")
        which, _, member = place.rpartition(":")
        self.asked.append(Asked(which, member, request, context.tenant))
        self._news.set()
        lines = self._lines.get(f"{which}/{member}") or self._lines[member]
        said = lines.popleft() if lines else None
        if isinstance(said, Exception):
            raise said
        times = [(each.which, each.member) for each in self.asked].count((which, member))
        text = said or f"{member} says {times}"
        yield TextDelta(text[:3])
        if member in self.gates:
            await self.gates[member].wait()
        yield TextDelta(text[3:])
        yield response((TextPart(text),), model=request.model or "test/script", cost_usd=0.001)

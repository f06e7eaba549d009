"""Providers that do as a test says, and a bench on which calls are made without a daemon."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Context
from ksi_models.calls import Calls, Tools
from ksi_models.catalogue import Catalogue
from ksi_models.events import (
    Message,
    ModelCall,
    ModelCalled,
    ModelChunk,
    ModelResponse,
    TextDelta,
    TextPart,
    Usage,
)
from ksi_models.handlers import Handlers
from ksi_models.keys import Keys
from ksi_models.lanes import Lanes
from ksi_models.prices import Prices
from ksi_models.provider import (
    WITHOUT_TOOLS,
    Answered,
    KnownModel,
    Provider,
    ProviderError,
    Question,
)
from ksi_models.recorder import Recorder
from ksi_models.settings import ModelsSettings
from ksi_models.store import Store
from ksi_postgres.database import Database

COUNTED = Usage(input_tokens=10, output_tokens=5)

Act = Callable[[Question], AsyncGenerator[Any]]


def said(text: str, usage: Usage | None = COUNTED) -> Answered:
    """Make the end of an answer."""
    message = Message(role="assistant", parts=(TextPart(text),))
    return Answered(message=message, finish="stop", usage=usage, served="served-1")


def say(*pieces: str, usage: Usage | None = COUNTED) -> Act:
    """Answer with these pieces."""

    async def act(question: Question) -> AsyncGenerator[Any]:
        for piece in pieces:
            yield TextDelta(piece)
        yield said("".join(pieces), usage)

    return act


def fail(kind: Any, *pieces: str, after: float | None = None, message: str = "no") -> Act:
    """Say these pieces, and fail."""

    async def act(question: Question) -> AsyncGenerator[Any]:
        for piece in pieces:
            yield TextDelta(piece)
        raise ProviderError(kind, message, retry_after_s=after)

    return act


def stall(*pieces: str) -> Act:
    """Say these pieces, and nothing more for ever."""

    async def act(question: Question) -> AsyncGenerator[Any]:
        for piece in pieces:
            yield TextDelta(piece)
        await asyncio.Event().wait()

    return act


def hold(gate: Awaitable[Any]) -> Act:
    """Answer once the gate is open."""

    async def act(question: Question) -> AsyncGenerator[Any]:
        await gate
        yield said("done")

    return act


class Acting:
    """A provider that does one act after the other; the last one for ever."""

    def __init__(self, name: str, *acts: Act) -> None:
        self.name = name
        self.acts = list(acts) or [say("hello ", "world")]
        self.asked: list[Question] = []
        self.running = self.most_running = self.closed = 0
        self.begun = asyncio.Event()
        self.reason: str | None = None
        self.known: list[KnownModel] = []

    async def stream(self, question: Question) -> AsyncGenerator[Any]:
        """Do the next act."""
        act = self.acts[min(len(self.asked), len(self.acts) - 1)]
        self.asked.append(question)
        self.running += 1
        self.begun.set()
        self.most_running = max(self.most_running, self.running)
        try:
            async with aclosing(act(question)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.running -= 1
            self.closed += 1

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Make vectors of the texts' lengths."""
        return [[float(len(text))] for text in texts], Usage(input_tokens=len(texts))

    async def models(self) -> list[KnownModel]:
        """Return what the test says."""
        return self.known

    async def why_not(self) -> str | None:
        """Return what the test says."""
        return self.reason

    async def close(self) -> None:
        """Do nothing."""


class Table:
    """Providers by name."""

    def __init__(self, *providers: Provider) -> None:
        self.by_name = {each.name: each for each in providers}

    def find(self, name: str) -> Provider | None:
        """Return a provider."""
        return self.by_name.get(name)

    def all(self) -> list[Provider]:
        """Return all."""
        return list(self.by_name.values())

    def calls_tools(self, name: str) -> bool:
        """Say whether its models can."""
        return name not in WITHOUT_TOOLS


class FakeBus:
    """Keeps what is published; answers requests from a table."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.calls: Calls | None = None

    def publish(self, event: str, data: Any = None) -> None:
        """Keep it."""
        self.published.append((event, data))

    async def request(self, event: str, data: Any = None, **_: Any) -> Any:
        """Answer from the table."""
        return self.answers[event](data)

    def emit(self, event: str, data: Any = None) -> None:
        """Do nothing."""

    async def gather(self, event: str, data: Any = None, **_: Any) -> list[Any]:
        """Return nothing."""
        return []

    async def stream(self, event: str, data: Any = None, **_: Any) -> AsyncGenerator[Any]:
        """Make the call."""
        assert self.calls is not None
        async with aclosing(self.calls.call(data)) as chunks:
            async for chunk in chunks:
                yield chunk


class Bench:
    """Calls, with all that they need, and no daemon."""

    def __init__(
        self, database: Database, home: Path, settings: ModelsSettings, *providers: Provider
    ) -> None:
        self.bus = FakeBus()
        self.store = Store(database)
        self.recorder = Recorder(self.store, settings.record_timeout_s)
        self.lanes, self.prices = Lanes(settings), Prices()
        self.keys = Keys(settings, home, {})
        table = Table(*providers)
        self.catalogue = Catalogue(settings, table, self.prices)
        tools = Tools(
            settings, self.catalogue, table, self.lanes, self.prices, self.recorder, self.keys
        )
        self.calls = self.bus.calls = Calls(tools, self.bus)
        self.handlers = Handlers(tools, self.store, self.bus)
        self.database = database

    @property
    def called(self) -> list[ModelCalled]:
        """What was told of calls that have ended."""
        return [data for event, data in self.bus.published if event == "model:called"]

    async def call(self, model: str | None = None, **members: Any) -> list[ModelChunk]:
        """Make a call and return all that came; in another's name with ``context``."""
        with acting_as(members.pop("context", context())):
            async with aclosing(self.calls.call(question(model, **members))) as chunks:
                return [chunk async for chunk in chunks]

    async def answer(self, model: str | None = None, **members: Any) -> ModelResponse:
        """Make a call and return its end."""
        end = (await self.call(model, **members))[-1]
        assert isinstance(end, ModelResponse)
        return end

    async def rows(self) -> list[dict[str, Any]]:
        """Return the rows of calls."""
        async with self.database.transaction(tenant="default") as connection:
            found = await connection.fetch("SELECT * FROM ksi_models.usage ORDER BY ended_at")
        return [dict(row) for row in found]


def context(conversation: str | None = None, agent: str | None = None, **more: Any) -> Context:
    """Make an event's context."""
    return Context("event-1", None, "test", conversation=conversation, agent=agent, **more)


def question(model: str | None, text: str = "hi", **members: Any) -> ModelCall:
    """Make a call's payload."""
    messages = (Message(role="user", parts=(TextPart(text),)),)
    return ModelCall(**{"model": model, "messages": messages, **members})


def text_of(chunks: list[ModelChunk]) -> str:
    """Return the text that was streamed."""
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta))


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[None]:
    """Run what writes rows in the background."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(bench.recorder.run(), name="rows")
        yield
        task.cancel()


async def until(true: Callable[[], Any]) -> None:
    """Let others go on until something is so."""
    while not true():  # noqa: ASYNC110  what is looked at tells nobody when it changes
        await asyncio.sleep(0)

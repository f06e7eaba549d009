"""A model that says what a test wants, and tools that note what was called."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.protocol import Context, Denied
from ksi_daemon.testing import ModuleEntryPoint, module_plugin
from ksi_models.events import (
    Message,
    ModelCall,
    ModelChunk,
    ModelDescribe,
    ModelDescribed,
    ModelResponse,
    Part,
    TextDelta,
    TextPart,
    ToolCallPart,
    Usage,
)
from ksi_tools.events import (
    ToolAnswer,
    ToolCall,
    ToolCalled,
    ToolInfo,
    ToolList,
    ToolListed,
    ToolPermit,
    ToolPermitted,
    ToolResolved,
)

USAGE = Usage(input_tokens=10, output_tokens=5)


def calling(*calls: tuple[str, str], text: str = "") -> tuple[Part, ...]:
    """Return an answer that calls tools, given by name and arguments."""
    parts: list[Part] = [TextPart(text)] if text else []
    parts += [ToolCallPart(f"c{n}", name, args) for n, (name, args) in enumerate(calls)]
    return tuple(parts)


class Script:
    """A model: its next answers, in order; then it says how many messages it was shown.

    Attributes:
        calls: What it was asked.
        gate: Where set, what each answer waits for after its first words.
    """

    def __init__(self) -> None:
        self.answers: deque[Any] = deque()
        self.calls: list[ModelCall] = []
        self.contexts: list[Context] = []
        self.began = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.window_tokens = 100_000
        self._called = asyncio.Event()

    def say(self, *answers: Any) -> None:
        """Append answers: a text, parts, an error, or a function that makes the stream itself."""
        self.answers.extend(answers)

    async def called(self) -> None:
        """Wait for the next call."""
        self._called.clear()
        await self._called.wait()

    @event_handler("model:describe")
    def describe(self, request: ModelDescribe) -> ModelDescribed:
        """Tell how much it can read."""
        return ModelDescribed(
            id=request.model or "test/script",
            fallbacks=(),
            context_tokens=self.window_tokens,
            max_output_tokens=4000,
        )

    @event_handler("model:call")
    async def call(self, request: ModelCall) -> AsyncIterator[ModelChunk]:
        """Answer as it is told."""
        self.calls.append(request)
        self._called.set()
        context = current_context()
        assert context is not None
        self.contexts.append(context)
        answer = self.answers.popleft() if self.answers else f"seen {len(request.messages)}"
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            async for chunk in answer(request):
                yield chunk
            return
        parts = (TextPart(answer),) if isinstance(answer, str) else answer
        for part in parts:
            if isinstance(part, TextPart):
                for piece in pieces(part.text):
                    yield TextDelta(piece)
                    self.began.set()
                    if self.gate is not None:
                        await self.gate.wait()
        yield response(parts)

    def plugin(self) -> ModuleEntryPoint:
        """Return it as the plugin ``models``."""
        return _plugin("models", self)


def pieces(text: str) -> list[str]:
    """Cut a text as a model streams it."""
    return [text[at : at + 3] for at in range(0, len(text), 3)]


def response(parts: tuple[Part, ...], **more: Any) -> ModelResponse:
    """Return the end of an answer."""
    fields: dict[str, Any] = {
        "call_id": "m",
        "model_asked": "test/script",
        "model": "test/script",
        "message": Message("assistant", parts),
        "finish": "stop",
        "usage": USAGE,
        "cost_usd": 0.5,
    }
    return ModelResponse(**{**fields, **more})


class Toolbox:
    """Tools by name: what their calls come to."""

    def __init__(self) -> None:
        self.tools: dict[str, tuple[str, Callable[[ToolCall], Any]]] = {}
        self.calls: list[ToolCall] = []
        self.permits: list[ToolPermit] = []
        self.answers: dict[str, str] = {}

    def add(self, name: str, effects: str, function: Callable[[ToolCall], Any]) -> None:
        """Add a tool; what its function returns, or is awaited to, is the content."""
        self.tools[name] = (effects, function)

    @event_handler("tool:list")
    def list(self, request: ToolList) -> ToolListed:
        """List them."""
        schemas = tuple({"type": "object"} for _ in self.tools) if request.schemas else ()
        return ToolListed(tools=tuple(map(self._info, self.tools)), schemas=schemas)

    def _info(self, name: str) -> ToolInfo:
        effects: Any = self.tools[name][0]
        return ToolInfo(
            name=name,
            description=name,
            effects="read_only" if effects == "ask" else effects,
            provider="toolbox",
            is_interactive=effects == "ask",
        )

    @event_handler("tool:call")
    async def call(self, request: ToolCall) -> ToolCalled:
        """Make a call."""
        self.calls.append(request)
        assert request.call_id is not None
        if self.tools[request.name][0] == "ask" and request.call_id not in self.answers:
            return ToolCalled(
                call_id=request.call_id, name=request.name, status="waiting", content="Which?"
            )
        content = self.tools[request.name][1](request)
        if asyncio.iscoroutine(content):
            content = await content
        return ToolCalled(
            call_id=request.call_id,
            name=request.name,
            status="done",
            content=self.answers.get(request.call_id, content),
        )

    @event_handler("tool:permit")
    def permit(self, request: ToolPermit) -> ToolPermitted:
        """Note what is permitted."""
        self.permits.append(request)
        return ToolPermitted(
            subject=request.subject, allow=request.allow, deny=(), parent=request.parent, tools=()
        )

    def plugin(self) -> ModuleEntryPoint:
        """Return it as the plugin ``tools``."""
        return _plugin("tools", self)


class Answering:
    """Takes answers, and wakes the turn that waits for them."""

    def __init__(self, toolbox: Toolbox, bus: Any) -> None:
        self.toolbox = toolbox
        self.bus = bus

    @event_handler("tool:answer")
    async def answer(self, request: ToolAnswer) -> ToolResolved:
        """Take an answer."""
        if request.call_id in self.toolbox.answers:
            raise Denied("it is answered")
        self.toolbox.answers[request.call_id] = request.content
        run = request.call_id.rsplit(":", 2)[0]
        signal = {"run_id": run, "topic": f"tool:{request.call_id}"}
        await self.bus.request("workflow:signal", signal)
        return ToolResolved(call_id=request.call_id, status="done")


def _plugin(name: str, owner: Any) -> ModuleEntryPoint:
    @hookimpl
    async def ksi_lifespan(plugin: Any) -> AsyncIterator[None]:
        plugin.add(owner)
        if isinstance(owner, Toolbox):
            plugin.add(Answering(owner, plugin.bus))
        yield

    return module_plugin(name, ksi_lifespan=ksi_lifespan)

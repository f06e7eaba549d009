"""A turn at work in this daemon: what is known of it between its steps."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_completion.events import AgentProfile, CompletionAsync, TurnLimits
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import read_context, read_usage
from ksi_completion.streams import Live
from ksi_daemon.protocol import Failed, KsiError, TimedOut
from ksi_models.api import text_of
from ksi_models.events import Message, ModelSettings, ToolCallPart, ToolSchema, Usage
from ksi_tools.events import ToolPermit

MARK_BYTES: Final = 8
LIMITS: Final = {
    "steps": "requests",
    "tokens": "tokens",
    "cost": "cost_usd",
    "tool_calls": "tool_calls",
}
MIN_TEXT_CHARACTERS: Final = 80  # what is said before a call is often the same few words


class TurnOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a turn is to be had.

    Attributes:
        asked: What was asked, without its messages.
        permit: What its conversation may call, where that is made with the turn.
        agent_version: Which version of its agent has it, where the agent is declared.
        parent_run: The run within which it was asked for.
    """

    asked: CompletionAsync
    permit: ToolPermit | None = None
    agent_version: int | None = None
    parent_run: str | None = None


class Stopped(Exception):
    """The turn is to be cancelled; the message says why."""


class Work:
    """A turn at work here.

    Attributes:
        run: Its run.
        tenant: Whose it is.
        live: What it says.
        step: The model call that it is at, from 1 on.
        calls: The tool calls of that step.
        done: Which of them have come to something.
        profile: What is declared of its agent.
        is_identified: Whether that was asked.
        tools: What the model was offered, by name: whether a call has no effects and may be made
            beside others.
        stopping: Why it is to be cancelled, once it is.
    """

    def __init__(self, run: str, tenant: str, live: Live) -> None:
        self.run = run
        self.tenant = tenant
        self.live = live
        self.step = 0
        self.calls: tuple[ToolCallPart, ...] = ()
        self.done: set[int] = set()
        self.tools: dict[str, bool] = {}
        self.offer: Prepared | None = None
        self.offered_at = 0.0
        self.stopping: str | None = None
        self.profile: AgentProfile | None = None
        self.is_identified = False
        self.is_paused = False
        self._scope: asyncio.Timeout | None = None

    def read(self, row: Any) -> None:
        """Take over what Postgres says of it."""
        self.row = row
        kept = msgspec.json.decode(row["options"], type=TurnOptions)
        self.options, self.permit = kept.asked, kept.permit
        self.agent_version, self.parent_run = kept.agent_version, kept.parent_run
        self.context = msgspec.structs.replace(read_context(row["context"]), run=self.run)
        self.conversation: str = row["conversation"]
        self.usage = read_usage(row["usage"])
        self.read_at = asyncio.get_running_loop().time()
        if row["stopping"] is not None:
            self.stopping = row["stopping"]

    @property
    def system(self) -> str | None:
        """What the model is told before everything else."""
        system: str | None = self.options.system
        if system is None and self.profile is not None:
            system = self.profile.system
        return with_instructions(system or self.row["system"], self.options.instructions)

    @property
    def globs(self) -> list[tuple[str, ...]]:
        """The lists of globs of which a tool must match one each."""
        own = self.profile.tools if self.profile is not None else None
        lists = (self.options.tools, own, self.row["tools"])
        return [tuple(each) for each in lists if each is not None]

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it asks for, the first that can answer; none is the default."""
        if self.row["model"] is not None:
            return (self.row["model"],)
        return self.profile.models if self.profile is not None else ()

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """What the answer's JSON is to fit."""
        if self.options.output_schema is not None or self.profile is None:
            return self.options.output_schema
        return self.profile.output_schema

    @property
    def limits(self) -> TurnLimits:
        """What its agent may take in one turn."""
        return self.profile.limits if self.profile is not None else TurnLimits()

    @property
    def model_settings(self) -> ModelSettings:
        """How the model is to answer."""
        if self.options.settings is not None:
            return self.options.settings
        if self.profile is not None and self.profile.settings is not None:
            return self.profile.settings
        text = self.row["settings"]
        return ModelSettings() if text is None else msgspec.json.decode(text, type=ModelSettings)

    def call_id(self, index: int) -> str:
        """Return the id of a tool call of the step: never the model's own, which may repeat."""
        return f"{self.run}:{self.step}:{index}"

    def undone(self) -> list[int]:
        """Return the calls of the step that have come to nothing yet."""
        return [index for index in range(len(self.calls)) if index not in self.done]

    # -- its end --------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """Have it end as soon as it can."""
        self.stopping = self.stopping or why
        if self._scope is not None:
            with suppress(RuntimeError):  # it ends already
                self._scope.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def bounded(self, limit_s: float) -> AsyncIterator[None]:
        """Do something in the time that the turn has left.

        Raises:
            Stopped: It was cancelled.
            TimedOut: Its time is over.
        """
        if self.stopping is not None:
            raise Stopped(self.stopping)
        bounds = (limit_s, self.options.timeout_s, self.limits.wall_s)
        limit_s = min(bound for bound in bounds if bound is not None)
        loop = asyncio.get_running_loop()
        left_s = limit_s - self.row["elapsed_s"] - (loop.time() - self.read_at)
        try:
            async with asyncio.timeout(left_s) as self._scope:
                yield
        except TimeoutError as error:
            if self._scope is None or not self._scope.expired():
                raise
            if self.stopping is not None:
                raise Stopped(self.stopping) from error
            raise TimedOut(
                f"the turn took longer than {limit_s:g} s (timeout_s, the agent's "
                "limits.wall_s, or completion.max_turn_s)",
                details=_kind("wall_time", "max_turn_s"),
            ) from error
        finally:
            self._scope = None


# -- breakers -----------------------------------------------------------------------------------


def check_step(work: Work, settings: CompletionSettings) -> None:
    """Refuse another model call to a turn that has had enough.

    Raises:
        Failed: It has.
    """
    row, usage, limits = work.row, work.usage, work.limits
    tokens = usage.input_tokens + usage.output_tokens
    cost = float(row["cost_usd"] or 0)
    bounds = (
        ("steps", "max_steps", row["steps"], limits.requests, "model calls"),
        ("tokens", "max_turn_tokens", tokens, limits.tokens, "tokens"),
        ("cost", "max_turn_usd", cost, limits.cost_usd, "US dollars"),
    )
    for kind, setting, taken, own, what in bounds:
        bound, source = least(getattr(settings, setting), own, setting, kind)
        if bound and taken >= bound:
            raise Failed(
                f"the turn has taken {taken:g} {what}, and may take {bound:g} ({source})",
                details={"kind": kind, "setting": source},
            )


def least(setting: float, own: float | None, name: str, kind: str) -> tuple[float, str]:
    """Return the smaller of two bounds, and where it is set; a setting of 0 bounds nothing."""
    if own is None or (setting and setting <= own):
        return setting, f"completion.{name}"
    return own, f"the agent's limits.{LIMITS[kind]}"


def check_answer(work: Work, marks: Sequence[str], settings: CompletionSettings) -> KsiError | None:
    """Return why a turn must not go on with what its model answered."""
    calls = work.row["tool_calls"] + len(work.calls)
    own = work.limits.tool_calls
    bound, source = least(settings.max_tool_calls, own, "max_tool_calls", "tool_calls")
    if calls > bound:
        return Failed(
            f"the turn has made {calls} tool calls, and may make {bound:g} ({source})",
            details={"kind": "tool_calls", "setting": source},
        )
    known = [*work.row["marks"], *marks]
    if any(known.count(mark) > settings.max_repeats for mark in marks):
        return Failed(
            f"the turn has done the same {settings.max_repeats} times over "
            "(completion.max_repeats)",
            details=_kind("repetition", "max_repeats"),
        )
    return None


def _kind(kind: str, setting: str) -> dict[str, Any]:
    return {"kind": kind, "setting": f"completion.{setting}"}


def marks_of(message: Message) -> Iterator[str]:
    """Yield a digest for each tool call of an answer, and for a text that says something."""
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            yield _mark(part.name, part.arguments)
    text = text_of(message).strip()
    if len(text) >= MIN_TEXT_CHARACTERS:
        yield _mark("", text)


def _mark(name: str, text: str) -> str:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = msgspec.json.encode(msgspec.json.decode(text), order="deterministic").decode()
    return hashlib.blake2b(f"{name}\n{text}".encode(), digest_size=MARK_BYTES).hexdigest()


# -- what steps leave ---------------------------------------------------------------------------


class Thought(Struct, frozen=True, kw_only=True):
    """What a model call left.

    Attributes:
        number: Its message's.
        groups: Which of its calls to make together, in order.
        refused: The calls of tools that it was not offered.
        is_over: Whether the turn has ended.
    """

    number: int | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    refused: tuple[int, ...] = ()
    is_over: bool = False


class Acted(Struct, frozen=True, kw_only=True):
    """What became of a group of tool calls: it is done, waits for a person, or ended the turn.

    With ``looks_again`` the call that it waits on may go on without a word from anybody.
    """

    waits_on: str | None = None
    looks_again: bool = False
    is_over: bool = False


class Prepared(Struct, frozen=True, kw_only=True):
    """What a model is offered to call."""

    schemas: tuple[ToolSchema, ...]
    is_parallel: dict[str, bool]


def groups_of(
    calls: Sequence[ToolCallPart], tools: dict[str, bool], most: int
) -> Iterator[tuple[int, ...]]:
    """Yield the calls in their order: those without effects together, every other alone."""
    group: list[int] = []
    for index, call in enumerate(calls):
        if tools.get(call.name, True) and len(group) < most:  # what is not there has no effect
            group.append(index)
            continue
        if group:
            yield tuple(group)
        group = [index] if tools.get(call.name, True) else []
        if not group:
            yield (index,)
    if group:
        yield tuple(group)


def with_instructions(system: str | None, instructions: str | None) -> str | None:
    """Return a system prompt, and after it what is told in one turn alone."""
    return "\n\n".join(each for each in (system, instructions) if each) or None


def added(usage: Usage, more: Usage) -> Usage:
    """Return the sum of what two calls took."""
    names = Usage.__struct_fields__
    return Usage(**{name: getattr(usage, name) + getattr(more, name) for name in names})

"""How a turn with a model is told to people: what it waits for, what it took, what it asks."""

import re
import time
from typing import Final

from ksi_cli import output
from ksi_cli.output import UsageError
from ksi_client import (
    AcceptedChunk,
    Completion,
    CompletionChunk,
    KsiError,
    RestartedChunk,
    StatusChunk,
    TextChunk,
    ThinkingChunk,
    TokenUsage,
    ToolCallChunk,
    ToolResultChunk,
)
from ksi_daemon.protocol import ErrorBody
from ksi_daemon.protocol.errors import error_from

ASKS: Final = frozenset({"answer", "decision"})
MAX_ARGUMENTS: Final = 60
MAX_RESULT: Final = 100

_ID: Final = re.compile(r"[^\s\x00-\x1f]{1,200}")

_WAITS: Final = {
    "turn": "waiting for the turn before this one",
    "slot": "waiting for a slot",
    "rate": "waiting: the provider's rate is used up",
    "retry": "trying again",
    "circuit": "waiting for the provider to recover",
    "fallback": "asking another model",
    "trial": "waiting until it is known that tools are held",
    "model": "waiting for the model",
    "summary": "summing up what was said before",
    "tool": "calling a tool",
    "answer": "waiting for your answer",
    "decision": "waiting for your decision",
    "daemon": "looking for the daemon",
}


class Progress:
    """What a turn is doing just now, in a few words; empty where its text says enough."""

    def __init__(self) -> None:
        self._words = "sending"
        self._until: float | None = None

    def __str__(self) -> str:
        if self._until is None:
            return self._words
        left = self._until - time.monotonic()
        return f"{self._words} in {left:.0f} s" if left >= 0.5 else self._words

    def take(self, chunk: CompletionChunk) -> None:
        """Learn from what came."""
        self._until = None
        if isinstance(chunk, StatusChunk):
            self._words = waiting(chunk)
            if chunk.delay_s and chunk.waits_for in {"retry", "rate", "circuit"}:
                self._until = time.monotonic() + chunk.delay_s
        elif isinstance(chunk, ToolCallChunk):
            self._words = f"calling {chunk.name}"
        elif isinstance(chunk, ThinkingChunk):
            self._words = "thinking"
        elif isinstance(chunk, TextChunk | Completion):
            self._words = ""
        elif isinstance(chunk, AcceptedChunk | RestartedChunk | ToolResultChunk):
            self._words = _WAITS["model"]


def waiting(chunk: StatusChunk) -> str:
    """Say what a turn waits for."""
    words = _WAITS.get(chunk.waits_for, "waiting")
    told = one_line(chunk.message, 200)
    if chunk.waits_for == "tool" and told and " " not in told:
        return f"calling {told}"
    return told if told and chunk.waits_for not in {"retry", "model", "daemon"} else words


def account(completion: Completion, *, took_s: float | None = None) -> str:
    """Write in a line what a turn took: model, tokens, cost, time."""
    parts = [completion.model or "", tokens(completion.usage), cost(completion)]
    if completion.tool_calls:
        parts.append(plural(completion.tool_calls, "tool call"))
    if took_s is None and completion.started_at and completion.ended_at:
        took_s = (completion.ended_at - completion.started_at).total_seconds()
    if took_s is not None:
        parts.append(f"{took_s:.1f} s")
    return " · ".join(filter(None, parts))


def tokens(usage: TokenUsage) -> str:
    """Write how many tokens went in and came out."""
    noun = "token" if usage.input_tokens == 1 else "tokens"
    return f"{count(usage.input_tokens)} {noun} in, {count(usage.output_tokens)} out"


def cost(completion: Completion) -> str:
    """Write what a turn cost; a price that is not known is not nothing."""
    return "cost unknown" if completion.cost_usd is None else dollars(completion.cost_usd)


def dollars(amount: float) -> str:
    """Write an amount, small ones to where they differ from nothing."""
    if amount == 0:
        return "$0"
    if abs(amount) < 0.000_05:
        return "<$0.0001"
    return f"${amount:.4f}" if abs(amount) < 0.1 else f"${amount:,.2f}"


def count(number: int) -> str:
    """Write a large number short: 950, 1.2k, 3.4M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def plural(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def called(chunk: ToolCallChunk) -> str:
    """Write a tool call in a line."""
    arguments = one_line(chunk.arguments, MAX_ARGUMENTS)
    return f"{one_line(chunk.name, 100)}({'' if arguments == '{}' else arguments})"


def came_of(chunk: ToolResultChunk) -> str:
    """Write what came of a tool call in a line."""
    said = one_line(chunk.content, MAX_RESULT) or "(nothing)"
    return f"failed: {said}" if chunk.is_error else said


def one_line(text: str, limit: int) -> str:
    """Write a text in one line of at most ``limit`` characters."""
    line = output.clean(re.sub(r"\s+", " ", text[: 4 * limit]).strip())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plain(text: str) -> str:
    """Return a model's text as it may be printed."""
    return output.clean(text.replace("\r\n", "\n"))


def how_to_answer(chunk: StatusChunk, run_id: str) -> str:
    """Tell how a person can go on with a turn that asks something."""
    if chunk.waits_for == "answer":
        return f"answer with: ksi turn answer {run_id} TEXT"
    call = chunk.call_id or "CALL"
    return (
        "look whether it has happened, then say so with one of: "
        f"ksi tool resolve {call} done | redo | drop"
    )


def check_conversation(conversation_id: str | None) -> None:
    """Make sure that a conversation's id can be one.

    Raises:
        UsageError: It can't.
    """
    if conversation_id is not None and not _ID.fullmatch(conversation_id):
        raise UsageError(
            f"{conversation_id!r} is no conversation's id, which has no blanks and at most 200 "
            "characters; see: ksi conversation list"
        )


def is_of_turn(error: KsiError) -> bool:
    """Say whether a turn has ended with this; else it goes on, and nobody can follow it here."""
    return "conversation_id" in (error.details or {})


def error_of(body: ErrorBody) -> KsiError:
    """Return the error that a turn ended with."""
    return error_from(body)

"""Reads what a model under test is to answer, out of what it is asked."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ksi_models.events import Message, TextPart


class ScriptedCall(Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call; arguments are any JSON, or a text that is handed on as it is."""

    name: str
    arguments: Raw = Raw(b"{}")
    id: str = ""

    @property
    def text(self) -> str:
        """The arguments as a model writes them: broken, where a text says so."""
        told = bytes(self.arguments)
        if told.startswith(b'"'):
            text: str = msgspec.json.decode(told)
            return text
        return told.decode()


class ScriptedStep(Struct, frozen=True, forbid_unknown_fields=True):
    """One answer: what it says, thinks and calls; or the error that there is instead.

    Attributes:
        chunks: In how many pieces it says that.
        delay_s: How long it waits before each piece.
        first_delay_s: How long it waits before the first.
        fail: A kind of `ProviderError`, raised once what it says has been said.
        fail_times: How often it fails; always unless given.
    """

    say: str = ""
    think: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    chunks: int = 1
    delay_s: float = 0.0
    first_delay_s: float = 0.0
    fail: str = ""
    fail_times: int | None = None
    retry_after_s: float | None = None


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """Several answers, one after the other; the last one is given again and again."""

    steps: tuple[ScriptedStep, ...]


_SCRIPT = msgspec.json.Decoder(Script)
_STEP = msgspec.json.Decoder(ScriptedStep)


def read_script(text: str) -> Script | None:
    """Return the script that a text is: of steps, or of one; ``None`` where it is none."""
    text = text.strip()
    if not text.startswith("{"):
        return None
    for read in (_read_steps, _read_step):
        script = read(text)
        if script is not None:
            return script
    return None


def _read_steps(text: str) -> Script | None:
    try:
        script = _SCRIPT.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return script if script.steps else None


def _read_step(text: str) -> Script | None:
    try:
        return Script((_STEP.decode(text),))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def next_step(texts: Sequence[tuple[str, str]]) -> ScriptedStep | None:
    """Return what is to be answered next, given all messages as role and text.

    The last message of a user that is a script counts; which step it is, is told by the number
    of answers after it. So the same conversation is always answered alike.
    """
    answers = 0
    for role, text in reversed(texts):
        if role == "assistant":
            answers += 1
        elif role == "user" and (script := read_script(text)) is not None:
            if len(script.steps) == 1 and answers:
                return ScriptedStep(say=last_result(texts) or "done")
            return script.steps[min(answers, len(script.steps) - 1)]
    return None


def last_result(texts: Sequence[tuple[str, str]]) -> str | None:
    """Return the last tool's result, if that is the last message."""
    return texts[-1][1] if texts and texts[-1][0] == "tool" else None


def text_of(message: Message) -> str:
    """Return a message's text, or what its tool calls came to."""
    said = [part.text for part in message.parts if isinstance(part, TextPart)]
    results: list[Any] = [getattr(part, "content", "") for part in message.parts]
    return "\n\n".join(said) or "\n".join(text for text in results if text)


def pieces_of(text: str, count: int) -> list[str]:
    """Cut a text into so many pieces of about the same size; none is empty."""
    if not text:
        return []
    count = max(1, min(count, len(text)))
    cuts = [round(i * len(text) / count) for i in range(count + 1)]
    return [text[a:b] for a, b in itertools.pairwise(cuts) if a < b]

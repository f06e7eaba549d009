"""Models for tests and demonstrations, which need no network: ``test/…``.

- ``test/echo`` answers with the user's last words.
- ``test/lorem``, ``test/lorem-200``, ``test/lorem-200-5ms`` answer with so many words, each on its
  own, that long after each other.
- ``test/script`` does what the user's last message says that is a script in JSON: ``{"say": "…",
  "calls": [{"name": "…", "arguments": {…}}]}``, or ``{"steps": […]}`` with one such for each call
  of a turn. See `ksi_models.providers.scripts`.
- ``test/tools`` calls each of its tools once, with arguments made of their schemas, and then says
  what came of that.
- ``test/fail-<kind>`` always fails, ``test/fail-<kind>-2`` the first two times that a conversation
  asks; the kinds are those of `ProviderError`, such as ``rate_limited``.
- ``test/cut`` breaks off in the middle, ``test/hang`` never answers, ``test/stall`` stops in the
  middle.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, get_args

import msgspec

from ksi_models.events import Message, ToolCallPart, ToolSchema, Usage
from ksi_models.provider import Delta, Kind, KnownModel, ProviderError, Question
from ksi_models.providers.answer import AnswerBuilder
from ksi_models.providers.scripts import (
    ScriptedCall,
    ScriptedStep,
    last_result,
    next_step,
    pieces_of,
    text_of,
)

NAMES: Final = ("echo", "lorem", "script", "tools", "cut", "hang", "stall")
KINDS: Final = frozenset(get_args(Kind))
CONTEXT_TOKENS: Final = 200_000
MAX_WORDS: Final = 1_000_000
MAX_REMEMBERED: Final = 1000
LOREM: Final = re.compile(r"lorem(?:-(\d{1,7}))?(?:-(\d{1,6})ms)?")
FAIL: Final = re.compile(r"fail-([a-z_]+?)(?:-(\d{1,3}))?")
WORDS: Final = ("lorem", "ipsum", "dolor", "sit", "amet", "consetetur", "sadipscing", "elitr")


class ScriptedProvider:
    """Answers alike whenever it is asked alike, apart from failures that are to pass."""

    name = "test"

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Answer as the model's name says."""
        step = self._step(question)
        answer = AnswerBuilder()
        if step.first_delay_s:
            await asyncio.sleep(step.first_delay_s)
        for kind, pieces in (("thinking", step.think), ("text", step.say)):
            for piece in pieces_of(pieces, step.chunks):
                if step.delay_s:
                    await asyncio.sleep(step.delay_s)
                getattr(answer, kind)(piece)
                for delta in answer.take():
                    yield delta
        self._fail(question, step)
        if question.model in ("hang", "stall"):
            await asyncio.Event().wait()
        for call in step.calls:
            answer.arguments(answer.begin_call(call.id, call.name), call.text)
        for delta in answer.take():
            yield delta
        yield answer.answered("stop", _usage(question, step), served=question.model)

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Turn texts into small vectors: alike where their letters are."""
        words = sum(len(text.split()) for text in texts)
        return [_vector(text) for text in texts], Usage(input_tokens=words)

    async def models(self) -> list[KnownModel]:
        """Return the names that stand for themselves."""
        return [KnownModel(name=name, context_tokens=CONTEXT_TOKENS) for name in NAMES]

    async def why_not(self) -> str | None:
        """It always can."""
        return None

    async def close(self) -> None:
        """There is nothing to end."""

    def _step(self, question: Question) -> ScriptedStep:
        name = question.model
        texts = [(message.role, text_of(message)) for message in question.messages]
        if lorem := LOREM.fullmatch(name):
            return _lorem(int(lorem[1] or 100), int(lorem[2] or 0))
        if fail := FAIL.fullmatch(name):
            times = int(fail[2]) if fail[2] else None
            return ScriptedStep(say="" if times is None else "ok", fail=fail[1], fail_times=times)
        if name == "tools":
            return _call_tools(question)
        if name == "script":
            return next_step(texts) or ScriptedStep(say=_last_words(texts))
        if name == "echo":
            return ScriptedStep(say=_last_words(texts))
        if name in ("cut", "stall", "hang"):
            said = "" if name == "hang" else "This answer has no"
            return ScriptedStep(say=said, fail="cut_off" if name == "cut" else "")
        raise ProviderError(
            "not_found", f"there is no model test/{name}; there are test/{', test/'.join(NAMES)}"
        )

    def _fail(self, question: Question, step: ScriptedStep) -> None:
        if not step.fail:
            return
        kind: Any = step.fail
        if kind not in KINDS:
            raise ProviderError("not_found", f"{kind} is no way to fail: {sorted(KINDS)}")
        if step.fail_times is not None and not self._is_to_fail(question, step.fail_times):
            return
        raise ProviderError(
            kind, f"it fails as it was told: {kind}", retry_after_s=step.retry_after_s
        )

    def _is_to_fail(self, question: Question, times: int) -> bool:
        last = _last_words([(m.role, text_of(m)) for m in question.messages])
        key = (question.model, question.conversation or last)
        self._failures[key] = self._failures.pop(key, 0) + 1
        if len(self._failures) > MAX_REMEMBERED:
            self._failures.popitem(last=False)
        return self._failures[key] <= times


def _last_words(texts: Sequence[tuple[str, str]]) -> str:
    return next((text for role, text in reversed(texts) if role == "user"), "")


def _lorem(words: int, delay_ms: int) -> ScriptedStep:
    count = max(1, min(words, MAX_WORDS))
    text = " ".join(WORDS[i % len(WORDS)] for i in range(count))
    return ScriptedStep(say=text, chunks=count, delay_s=delay_ms / 1000)


def _call_tools(question: Question) -> ScriptedStep:
    """Call each tool, unless their results are there."""
    texts = [(message.role, text_of(message)) for message in question.messages]
    since = _since_last_user(question.messages)
    called = {p.name for m in since for p in m.parts if isinstance(p, ToolCallPart)}
    todo = [tool for tool in question.tools if tool.name not in called]
    if not todo or question.settings.tool_choice == "none":
        return ScriptedStep(say=last_result(texts) or "There is nothing to call.")
    calls = tuple(ScriptedCall(tool.name, msgspec.Raw(_arguments(tool))) for tool in todo)
    return ScriptedStep(say=f"Calling {len(calls)}.", calls=calls)


def _since_last_user(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    return messages[last + 1 :]


def _arguments(tool: ToolSchema) -> bytes:
    schema = tool.parameters
    required = schema.get("required", ())
    members = schema.get("properties", {})
    return msgspec.json.encode({name: _sample(members.get(name, {})) for name in required})


def _sample(schema: dict[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "string")
    samples: dict[str, Any] = {
        "string": "text",
        "integer": 1,
        "number": 1.5,
        "boolean": True,
        "array": [],
        "object": {},
        "null": None,
    }
    return schema.get("default", samples.get(kind if isinstance(kind, str) else kind[0]))


def _usage(question: Question, step: ScriptedStep) -> Usage:
    asked = sum(len(text_of(message).split()) for message in question.messages)
    asked += len((question.system or "").split())
    answered = len(step.say.split()) + len(step.think.split()) + 5 * len(step.calls)
    return Usage(input_tokens=asked, output_tokens=answered)


def _vector(text: str) -> list[float]:
    counts = [1.0 + text.lower().count(letter) for letter in "abcdefghijklmnop"]
    length = sum(count * count for count in counts) ** 0.5
    return [count / length for count in counts]

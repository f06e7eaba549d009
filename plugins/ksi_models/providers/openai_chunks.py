"""Reads what an OpenAI-compatible server answers."""

from typing import Any, Final, TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ksi_models.events import Finish, Usage
from ksi_models.provider import Answered, ProviderError
from ksi_models.providers.answer import AnswerBuilder
from ksi_models.providers.errors import Redact, refusal, unchanged
from ksi_models.providers.openai_messages import FIELD_SIGNATURE

FINISHES: Final[dict[str, Finish]] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class Function(Struct):
    """A part of a call."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class Call(Struct):
    """A part of a call, and where it belongs."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Content(Struct):
    """A part of a message, or a whole one; servers write thinking in either of two fields."""

    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | dict[str, Any] | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None


class Choice(Struct):
    """One of the answers; only the first is asked for."""

    delta: Content | None = None
    message: Content | None = None
    finish_reason: str | None = None


class Chunk(Struct):
    """What comes at once."""

    choices: list[Choice] | None = None
    model: str | None = None
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class PromptDetails(Struct):
    """What the prompt's tokens were."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionDetails(Struct):
    """What the answer's tokens were."""

    reasoning_tokens: int | None = None


class Counts(Struct):
    """The usage as it is told."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None


_CHUNK: Final = msgspec.json.Decoder(Chunk)
_COUNTS: Final = msgspec.json.Decoder(Counts | None, strict=False)


def _is_told(member: Raw | UnsetType) -> TypeGuard[Raw]:
    return member is not UNSET and bytes(member) != b"null"


class ChunkReader:
    """Makes an answer of the chunks, or of the one that a server without streaming gives."""

    def __init__(self, provider: str, max_characters: int, redacted: Redact = unchanged) -> None:
        self.provider = provider
        self.answer = AnswerBuilder(max_characters)
        self.is_done = False
        self._redacted = redacted
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._served: str | None = None
        self._signature: str | None = None
        self._places: dict[int, int] = {}  # by the server's index

    def read(self, payload: bytes) -> None:
        """Take a payload.

        Raises:
            ProviderError: It is an error, or nothing that can be understood.
        """
        if payload == b"[DONE]":
            self.is_done = True
            return
        try:
            chunk = _CHUNK.decode(payload)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProviderError(
                "malformed", f"{self.provider} wrote a chunk that can't be read: {error}"
            ) from error
        if _is_told(chunk.error):
            raise refusal(self.provider, None, bytes(payload), {}, self._redacted)
        if _is_told(chunk.usage):
            self._count(chunk.usage)
        if chunk.model and self._served is None:
            self._served = chunk.model
        if chunk.choices:
            self._choice(chunk.choices[0])

    def end(self) -> Answered:
        """Return the end of the answer, once there is no more.

        Raises:
            ProviderError: ``cut_off``, there should have been more.
        """
        if self._finish is None and not self.is_done:
            raise ProviderError("cut_off", f"{self.provider} broke its answer off")
        finish = FINISHES.get(self._finish or "stop", "other")
        return self.answer.answered(
            finish, self._usage, served=self._served, signature=self._signature
        )

    @property
    def is_complete(self) -> bool:
        """Whether what has come is a whole answer."""
        return self.is_done or self._finish is not None

    def _choice(self, choice: Choice) -> None:
        content = choice.delta or choice.message
        if content is not None:
            self._content(content)
        if choice.finish_reason:
            self._finish = choice.finish_reason

    def _content(self, content: Content) -> None:
        if content.reasoning_content:
            self._think("reasoning_content", content.reasoning_content)
        elif content.reasoning and isinstance(content.reasoning, str):
            self._think("reasoning", content.reasoning)
        if content.content:
            self._text(content.content)
        if content.refusal:
            self.answer.text(content.refusal)
            self._finish = self._finish or "content_filter"
        for call in content.tool_calls or ():
            self._call(call)

    def _think(self, field: str, text: str) -> None:
        self._signature = FIELD_SIGNATURE + field
        self.answer.thinking(text)

    def _text(self, content: str | list[dict[str, Any]]) -> None:
        if isinstance(content, str):
            self.answer.text(content)
            return
        for part in content:
            if isinstance(part.get("text"), str):
                self.answer.text(part["text"])

    def _call(self, call: Call) -> None:
        function = call.function or Function()
        place = self._place(call, function.name or "")
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments or function.name:
            self.answer.arguments(place, arguments or "", function.name or "")

    def _place(self, call: Call, name: str) -> int:
        """Return which call it belongs to; servers leave the index out, or give all the same."""
        index = call.index
        if index is None:
            known = self.answer.calls - 1 if not call.id and self.answer.calls else None
        else:
            known = self._places.get(index)
        is_other = known is not None and call.id and call.id != self.answer.call_id(known)
        if known is None or is_other:
            known = self.answer.begin_call(call.id or "", name)
            if index is not None:
                self._places[index] = known
        return known

    def _count(self, told: Raw) -> None:
        try:
            counts = _COUNTS.decode(told)
        except (msgspec.DecodeError, UnicodeError):
            return  # a count that can't be read is one that was not told
        if counts is None:
            return
        prompt = counts.prompt_tokens_details or PromptDetails()
        completion = counts.completion_tokens_details or CompletionDetails()
        self._usage = Usage(
            input_tokens=max(0, counts.prompt_tokens or 0),
            output_tokens=max(0, counts.completion_tokens or 0),
            cache_read_tokens=max(0, prompt.cached_tokens or counts.prompt_cache_hit_tokens or 0),
            cache_write_tokens=max(0, prompt.cache_write_tokens or 0),
            thinking_tokens=max(0, completion.reasoning_tokens or 0),
        )

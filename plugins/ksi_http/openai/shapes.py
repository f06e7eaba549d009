"""What OpenAI's clients send, and what they are answered."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ksi_client.turns import TokenUsage

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Stop = Annotated[tuple[str, ...], Meta(max_length=16)]
FinishReason = Literal["stop", "tool_calls"]

ANSWER: Final = "chat.completion"
CHUNK: Final = "chat.completion.chunk"

write = msgspec.json.Encoder().encode


# -- what is sent -------------------------------------------------------------------------------


class Function(Struct, frozen=True):
    """What a call calls."""

    name: str
    arguments: str = "{}"


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call of one of the client's tools."""

    id: Annotated[str, Meta(min_length=1, max_length=500)]
    type: Literal["function"] = "function"
    function: Function


class ContentPart(Struct, frozen=True, kw_only=True):
    """A part of what somebody says: text, or an image."""

    type: str
    text: str = ""
    image_url: dict[str, Any] = {}


class ChatMessage(Struct, frozen=True, kw_only=True):
    """A message, as the client keeps it."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...] | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: Annotated[str, Meta(min_length=1, max_length=500)] | None = None


class OfferedFunction(Struct, frozen=True, kw_only=True):
    """What one of the client's tools does, and takes."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, frozen=True, kw_only=True):
    """One of the client's tools."""

    type: Literal["function"]
    function: OfferedFunction


class Named(Struct, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class Chosen(Struct, frozen=True, kw_only=True):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: Named


class JsonSchema(Struct, frozen=True, kw_only=True):
    """What an answer has to fit."""

    name: str = ""
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct, frozen=True, kw_only=True):
    """What an answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Struct, frozen=True, kw_only=True):
    """What a stream tells besides."""

    include_usage: bool = False


class ChatRequest(Struct, frozen=True, kw_only=True):
    """Have an agent, or a model, answer; what is not known here is left alone."""

    model: Name
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: str | Stop | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    metadata: dict[str, Any] | None = None


# -- what is answered ---------------------------------------------------------------------------


class AnsweredCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call that the client is to make; within a stream with its place."""

    index: int | UnsetType = UNSET
    id: str
    type: str | UnsetType = UNSET
    function: Function


class Delta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new of an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[AnsweredCall, ...] | None = None


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """The one choice of a stream."""

    index: int = 0
    delta: Delta
    finish_reason: FinishReason | None = None


class AnsweredMessage(Struct, frozen=True, kw_only=True):
    """The agent's message."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[AnsweredCall, ...] | UnsetType = UNSET


class Choice(Struct, frozen=True, kw_only=True):
    """The one choice."""

    index: int = 0
    message: AnsweredMessage
    logprobs: None = None
    finish_reason: FinishReason


class InputDetails(Struct, frozen=True):
    """Of the tokens that were read."""

    cached_tokens: int


class OutputDetails(Struct, frozen=True):
    """Of the tokens that were written."""

    reasoning_tokens: int


class Used(Struct, frozen=True, kw_only=True):
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: InputDetails
    completion_tokens_details: OutputDetails


class ChatAnswer(Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    object: str = ANSWER
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Used


class ChatChunk(Struct, frozen=True, kw_only=True):
    """A piece of a streamed answer."""

    id: str
    object: str = CHUNK
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Used | UnsetType = UNSET


class ModelShown(Struct, frozen=True, kw_only=True):
    """An agent or a model that may be named."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str


class ModelsShown(Struct, frozen=True, kw_only=True):
    """All of them."""

    object: str = "list"
    data: tuple[ModelShown, ...]


def used(usage: TokenUsage) -> Used:
    """Return what was used, as it is told here."""
    return Used(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        prompt_tokens_details=InputDetails(usage.cache_read_tokens),
        completion_tokens_details=OutputDetails(usage.thinking_tokens),
    )

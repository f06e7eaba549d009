"""The payloads of ``model:*``, and what messages are made of."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_daemon.protocol.wire import ErrorBody

ModelId = Annotated[str, Meta(min_length=1, max_length=200)]
Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "tool_calls", "content_filter", "other"]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


# -- messages -----------------------------------------------------------------------------------


class TextPart(Struct, frozen=True, tag="text", tag_field="kind"):
    """Text, as Markdown where it is a model's."""

    text: str


class ThinkingPart(Struct, frozen=True, omit_defaults=True, tag="thinking", tag_field="kind"):
    """What a model thought; ``signature`` is its provider's, handed back as it came."""

    text: str
    signature: str | None = None


class ToolCallPart(Struct, frozen=True, tag="tool_call", tag_field="kind"):
    """A model asks for a tool; ``arguments`` is the JSON that it wrote, which may be broken."""

    id: str
    name: str
    arguments: str


class ToolResultPart(Struct, frozen=True, omit_defaults=True, tag="tool_result", tag_field="kind"):
    """What came of a tool call; ``id`` is that of the call."""

    id: str
    name: str
    content: str
    is_error: bool = False


class FilePart(Struct, frozen=True, omit_defaults=True, tag="file", tag_field="kind"):
    """An image or a document: its bytes (base64 in JSON), or where they are."""

    media_type: str
    data: bytes | None = None
    url: str | None = None
    name: str | None = None


Part = TextPart | ThinkingPart | ToolCallPart | ToolResultPart | FilePart


class Message(Struct, frozen=True):
    """One message of a conversation."""

    role: Role
    parts: tuple[Part, ...]


# -- model:call ---------------------------------------------------------------------------------


class ToolSchema(Struct, frozen=True):
    """A tool as a model sees it; ``parameters`` is a JSON Schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class ModelSettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model is to answer; what is not given is the provider's choice.

    ``thinking`` is the effort of models that think. ``extra`` goes into the provider's request as
    it is; which members it may have is said by ``models.extra``.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    thinking: Literal["off", "low", "medium", "high"] | None = None
    tool_choice: Literal["auto", "none", "required"] = "auto"
    extra: dict[str, Any] = {}


class MessageRange(Struct, frozen=True, kw_only=True):
    """Messages of a conversation by their numbers, both included.

    With ``sha256`` the call is refused when they are not those any more.
    """

    conversation_id: str
    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    sha256: str | None = None


class ModelCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Have a model answer; the answer is a stream of `ModelChunk`s that a `ModelResponse` ends.

    ``model`` is ``provider:model``, ``claude-cli/<model>``, ``builtin/extractive``, an alias, or
    the default where it is not given; where it can't answer, ``fallbacks`` are asked in their
    order. The messages are those of ``range``, then ``messages``. ``purpose`` is what the call is
    for. ``seen`` tells, for the call's row, which messages of a
    conversation those given inline are. ``output_schema`` is a JSON Schema that the text is to
    follow, where the provider can hold a model to it. Of the calls that wait for one conversation
    that with the lowest ``priority`` is made first.
    """

    model: ModelId | None = None
    fallbacks: Annotated[tuple[ModelId, ...], Meta(max_length=20)] = ()
    system: str | None = None
    range: MessageRange | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    settings: ModelSettings = ModelSettings()
    output_schema: dict[str, Any] | None = None
    purpose: Annotated[str, Meta(max_length=50)] = "chat"
    seen: MessageRange | None = None
    timeout_s: Seconds | None = None
    priority: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000


class TextDelta(Struct, frozen=True, tag="text", tag_field="kind"):
    """More of the answer's text."""

    text: str


class ThinkingDelta(Struct, frozen=True, tag="thinking", tag_field="kind"):
    """More of what the model thinks."""

    text: str


class ToolCallDelta(Struct, frozen=True, tag="tool_call", tag_field="kind"):
    """More of a tool call; ``index`` is its place among the answer's calls."""

    index: int
    id: str
    name: str
    arguments: str


class ModelWaiting(Struct, frozen=True, omit_defaults=True, tag="waiting", tag_field="kind"):
    """Nothing comes just now, and why; ``delay_s`` is for how long, where that is known."""

    reason: Literal["slot", "rate", "retry", "circuit", "fallback", "trial"]
    message: str
    delay_s: float | None = None


class ModelRestarted(Struct, frozen=True, tag="restarted", tag_field="kind"):
    """What was streamed so far is void: the call is made again."""

    attempt: int
    why: str


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of a call, by kind; ``input_tokens`` includes those of the caches."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    thinking_tokens: int = 0


class ModelResponse(Struct, frozen=True, kw_only=True, tag="response", tag_field="kind"):
    """The end of a call: the whole message, and what it took.

    ``cost_usd`` is ``None`` where the price is not known. ``is_estimated`` says that the provider
    told no usage and the tokens are counted here.
    """

    call_id: str
    model_asked: str
    model: str
    message: Message
    finish: Finish
    usage: Usage
    cost_usd: float | None = None
    is_estimated: bool = False
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    attempts: int = 1


ModelChunk = (
    TextDelta | ThinkingDelta | ToolCallDelta | ModelWaiting | ModelRestarted | ModelResponse
)


class ModelCalled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Published when a call of a model has ended, however that was; it holds no text.

    ``seen`` are the messages of a conversation that the model saw, ``error`` says why there is no
    answer.
    """

    call_id: str
    outcome: Literal["ok", "failed", "cancelled"]
    model_asked: str
    model: str
    purpose: str
    usage: Usage = Usage()
    cost_usd: float | None = None
    is_estimated: bool = False
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    attempts: int = 0
    seen: MessageRange | None = None
    error: str | None = None


# -- what there is ------------------------------------------------------------------------------


class ModelList(Struct, frozen=True, kw_only=True):
    """List the models that can be asked now, and the providers that can't be, with the reason."""

    provider: str | None = None


class ModelInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model; prices are US dollars for a million tokens, ``None`` where they are not known."""

    id: str
    provider: str
    context_tokens: int | None = None
    input_usd: float | None = None
    output_usd: float | None = None
    is_default: bool = False


class ProviderInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A provider: whether it can be used, or why not and what to do about that."""

    name: str
    is_usable: bool
    why_not: str | None = None
    state: Literal["closed", "open", "half_open"] = "closed"
    running: int = 0
    waiting: int = 0
    max_concurrent: int | None = None


class ModelListed(Struct, frozen=True, kw_only=True):
    """Models, providers and aliases; ``hint`` is how to get a real model where there is none."""

    default: str
    models: tuple[ModelInfo, ...]
    providers: tuple[ProviderInfo, ...]
    aliases: dict[str, tuple[str, ...]]
    hint: str | None = None


class ModelSlots(Struct, frozen=True, kw_only=True):
    """Tell how busy the providers are that were asked something since the daemon started."""


class ProviderLoad(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many calls a provider answers, how many wait for it, and whether it is left alone."""

    name: str
    running: int
    waiting: int
    max_concurrent: int
    state: Literal["closed", "open", "half_open"] = "closed"


class SlotsListed(Struct, frozen=True, kw_only=True):
    """How busy the providers are, by name."""

    providers: tuple[ProviderLoad, ...]


class ModelDescribe(Struct, frozen=True, kw_only=True):
    """Tell which model an id or alias means now; without one, which is the default."""

    model: ModelId | None = None


class ModelDescribed(Struct, frozen=True, kw_only=True):
    """The model that would be asked, its fall-backs, and how much it can read."""

    id: str
    fallbacks: tuple[str, ...]
    context_tokens: int
    max_output_tokens: int
    has_tools: bool = True
    hint: str | None = None


class ModelCheck(Struct, frozen=True, kw_only=True):
    """Make one real, tiny call, which proves that the model can be used; it may cost a little."""

    model: ModelId | None = None
    timeout_s: Seconds = 30.0


class ModelChecked(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the model answered, or why not and what to do next."""

    model: str
    ok: bool
    latency_ms: float
    served: str | None = None
    cost_usd: float | None = None
    error: ErrorBody | None = None
    next_step: str | None = None


UsageKey = Literal[
    "model", "provider", "agent", "conversation", "run", "tenant", "user", "purpose", "day", "hour"
]


class ModelUsage(Struct, frozen=True, kw_only=True):
    """Sum up what calls took, by some of their properties; filters are exact."""

    by: tuple[UsageKey, ...] = ("model",)
    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class UsageRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sum; ``cost_usd`` is of the calls whose price is known, ``unpriced_calls`` the others."""

    by: dict[str, str | None]
    calls: int
    failed_calls: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    thinking_tokens: int
    cost_usd: float
    unpriced_calls: int
    mean_latency_ms: float
    mean_first_token_ms: float | None = None


class ModelUsed(Struct, frozen=True, kw_only=True):
    """Sums, the dearest first, and the sum of them all."""

    rows: tuple[UsageRow, ...]
    total: UsageRow


class ModelPrices(Struct, frozen=True, kw_only=True):
    """Tell the prices of a model, or of all that are in use."""

    model: ModelId | None = None


class ModelPrice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """US dollars for a million tokens of each kind; ``None`` is unknown, and never zero."""

    model: str
    input_usd: float | None = None
    output_usd: float | None = None
    cache_read_usd: float | None = None
    cache_write_usd: float | None = None
    source: str | None = None


class ModelPriced(Struct, frozen=True, kw_only=True):
    """Prices by model."""

    prices: tuple[ModelPrice, ...]


class ModelEmbed(Struct, frozen=True, kw_only=True):
    """Turn texts into vectors."""

    texts: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2048)]
    model: ModelId | None = None
    purpose: Annotated[str, Meta(max_length=50)] = "embed"


class ModelEmbedded(Struct, frozen=True, kw_only=True):
    """One vector for each text, in order."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    cost_usd: float | None = None

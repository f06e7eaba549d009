"""What a provider of models is: how it is asked, and how it fails."""

from collections.abc import AsyncGenerator
from typing import Any, Literal, Protocol

from msgspec import Struct

from ksi_models.events import (
    Finish,
    Message,
    ModelSettings,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolSchema,
    Usage,
)

# What went wrong, by what is to be done about it. Those in TRANSIENT pass with time; `stalled`,
# `answer_too_long` and `broken` are what the pipeline says of a provider, not the provider itself.
Kind = Literal[
    "rate_limited",
    "overloaded",
    "server",
    "network",
    "cut_off",
    "login",
    "not_found",
    "too_long",
    "refused",
    "invalid",
    "malformed",
    "stalled",
    "answer_too_long",
    "over_limit",
    "untrusted",
    "broken",
]
# Their models call no tools.
WITHOUT_TOOLS: frozenset[str] = frozenset({"builtin"})
TRANSIENT: frozenset[Kind] = frozenset(
    {"rate_limited", "overloaded", "server", "network", "cut_off", "malformed", "stalled"}
)


class ProviderError(Exception):
    """A provider did not answer; ``kind`` says why, and the message what to do about it.

    The message never holds a key, nor a whole answer of the provider's.
    """

    def __init__(self, kind: Kind, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


class Question(Struct, frozen=True, kw_only=True):
    """What a provider is asked; ``model`` is its own name for the model.

    ``conversation`` and ``run`` are those of the event, for providers that keep sessions.
    ``sources`` tells where messages come from, for providers that quote.
    """

    model: str
    system: str | None
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...]
    settings: ModelSettings
    output_schema: dict[str, Any] | None
    tenant: str
    conversation: str | None
    run: str | None


class Answered(Struct, frozen=True, kw_only=True):
    """The end of a provider's answer: the message, and what the provider says that it took."""

    message: Message
    finish: Finish
    usage: Usage | None
    served: str | None = None


Delta = TextDelta | ThinkingDelta | ToolCallDelta | Answered


class KnownModel(Struct, frozen=True, kw_only=True):
    """A model that a provider says it has."""

    name: str
    context_tokens: int | None = None
    max_output_tokens: int | None = None


class Provider(Protocol):
    """Models of one kind, reached in one way.

    Attributes:
        name: What stands before the colon, or the slash, of a model's id.
    """

    name: str

    def stream(self, question: Question) -> AsyncGenerator[Delta]:
        """Ask; the last of what comes is an `Answered`. Closing it ends the work at once.

        Raises:
            ProviderError: There is no answer, or not all of it.
        """

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Turn texts into vectors.

        Raises:
            ProviderError: It can't, or has none for this.
        """

    async def models(self) -> list[KnownModel]:
        """Ask which models there are; none where that can't be asked.

        Raises:
            ProviderError: It is not there, or refuses the login.
        """

    async def why_not(self) -> str | None:
        """Say why it can't be used just now and what to do, without costing anything."""

    async def close(self) -> None:
        """End what it has opened."""

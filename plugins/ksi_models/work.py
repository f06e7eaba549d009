"""One call of a model while it is made: whom it asks, what has come so far, what it took."""

import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import Context
from ksi_models.events import (
    MessageRange,
    ModelCalled,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from ksi_models.failures import AnswerTooLong
from ksi_models.prices import Prices, split
from ksi_models.provider import Answered, Provider
from ksi_models.slots import Ticket
from ksi_models.store import Beginning, CallOutcome, CallRow

MAX_TOKENS: Final = 10**12  # what a provider counts past that is nonsense, which sums can't hold
BYTES_PER_TOKEN: Final = 4  # where nobody has counted; of English text about that


class Embedded(Struct, frozen=True):
    """The end of a provider's work on texts."""

    vectors: list[list[float]]
    usage: Usage | None
    served: str | None = None


Ended = Answered | Embedded
Piece = TextDelta | ThinkingDelta | ToolCallDelta
Open = Callable[[Provider, str], AsyncGenerator[Any]]


class Work(Struct, kw_only=True):
    """A call; what changes while it is made changes here.

    Attributes:
        open: Asks a provider for a model of its own name.
        asked_bytes: How long the question is, for estimates; found out when it is needed.
        seen: Which messages of a conversation the model sees.
        digest: Makes the hash of the messages, where `seen` has none.
        deadline: When it must be over, by the loop's clock.
        at: Which of the candidates it is with.
        tries: How often that one was asked.
        attempts: How often all of them were.
        streamed_bytes: What has come of the answer in this attempt.
        lost: What attempts took whose answer was broken off, each with its model.
    """

    call_id: str
    context: Context
    purpose: str
    model_asked: str
    candidates: tuple[str, ...]
    open: Open
    asked_bytes: Callable[[], int]
    seen: MessageRange | None
    priority: int
    deadline: float
    max_answer_bytes: int
    started: float
    digest: Callable[[], str] | None = None
    at: int = 0
    tries: int = 0
    attempts: int = 0
    streamed_bytes: int = 0
    has_streamed: bool = False
    first_at: float | None = None
    ticket: Ticket | None = None
    number: int = 0
    delay_s: float = 0.0
    lost: list[tuple[str, Usage]] = []
    answer: Any = None

    @property
    def model(self) -> str:
        """The id of the model that is asked just now."""
        return self.candidates[self.at]

    @property
    def provider(self) -> str:
        """The name of its provider."""
        return split(self.model)[0]

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """Who waits for slots in turn with others."""
        return (self.context.tenant, self.context.agent, self.context.conversation)

    @property
    def latency_ms(self) -> float:
        """How long it has taken so far."""
        return round((time.perf_counter() - self.started) * 1000, 3)

    @property
    def first_token_ms(self) -> float | None:
        """How long it took until something came."""
        return None if self.first_at is None else round((self.first_at - self.started) * 1000, 3)

    def begin_attempt(self) -> int:
        """Count an attempt, and say how many there are now."""
        self.tries += 1
        self.attempts += 1
        self.streamed_bytes = 0
        self.has_streamed = False
        return self.attempts

    def note(self, piece: Piece) -> None:
        """Count a piece of the answer.

        Raises:
            AnswerTooLong: It is one too many.
        """
        if not self.has_streamed:
            self.has_streamed = True
            self.first_at = self.first_at or time.perf_counter()
        text = piece.arguments if isinstance(piece, ToolCallDelta) else piece.text
        self.streamed_bytes += len(text)
        if self.streamed_bytes > self.max_answer_bytes:
            raise AnswerTooLong(self.max_answer_bytes)

    def lose(self) -> None:
        """Keep what an attempt took that is void, as well as that can be told."""
        if self.has_streamed:
            self.lost.append((self.model, self.estimate()))
            self.has_streamed = False

    def estimate(self) -> Usage:
        """Return about how many tokens this attempt took."""
        return Usage(
            input_tokens=tokens_of(self.asked_bytes()),
            output_tokens=tokens_of(self.streamed_bytes),
        )

    # -- what it took ---------------------------------------------------------------------------

    def took(self, prices: Prices) -> tuple[Usage, float | None, bool]:
        """Return the tokens, their cost, and whether they are estimated."""
        parts = list(self.lost)
        answer: Ended | None = self.answer
        if answer is not None:
            parts.append((self.model, answer.usage or self.estimate()))
        elif self.has_streamed:
            parts.append((self.model, self.estimate()))
        costs = [prices.cost_usd(model, usage) for model, usage in parts]
        known = [cost for cost in costs if cost is not None]
        cost = sum(known) if len(known) == len(costs) else None
        is_exact = answer is not None and answer.usage is not None and not self.lost
        return _summed([usage for _, usage in parts]), cost, bool(parts) and not is_exact

    def beginning(self) -> Beginning:
        """Tell what is known when a provider is asked."""
        context = self.context
        return (
            context.tenant,
            self.call_id,
            self.model_asked,
            self.model,
            self.provider,
            self.purpose,
            context.id,
            context.user,
            context.agent,
            context.conversation,
            context.run,
        )

    def row(self, outcome: CallOutcome, error: str | None, prices: Prices) -> CallRow:
        """Make the row that the call leaves."""
        usage, cost, is_estimated = self.took(prices)
        context, seen = self.context, self.seen
        return CallRow(
            tenant=context.tenant,
            call=self.call_id,
            ended_at=datetime.now(UTC),
            outcome=outcome,
            error=error,
            model_asked=self.model_asked,
            model=self.model,
            provider=self.provider,
            served=None if self.answer is None else self.answer.served,
            purpose=self.purpose,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            thinking_tokens=usage.thinking_tokens,
            is_estimated=is_estimated,
            cost_usd=cost,
            latency_ms=self.latency_ms,
            first_token_ms=self.first_token_ms,
            attempts=self.attempts,
            event=context.id,
            user=context.user,
            agent=context.agent,
            conversation=context.conversation,
            run=context.run,
            seen_conversation=None if seen is None else seen.conversation_id,
            seen_first=None if seen is None else seen.first,
            seen_last=None if seen is None else seen.last,
            seen_sha256=self._sha256(),
        )

    def _sha256(self) -> str | None:
        if self.seen is not None and self.seen.sha256 is not None:
            return self.seen.sha256
        return None if self.digest is None else self.digest()


def called(row: CallRow, seen: MessageRange | None) -> ModelCalled:
    """Tell of a row."""
    return ModelCalled(
        call_id=row.call,
        outcome=row.outcome,
        model_asked=row.model_asked,
        model=row.model,
        purpose=row.purpose,
        usage=usage_of(row),
        cost_usd=row.cost_usd,
        is_estimated=row.is_estimated,
        latency_ms=row.latency_ms,
        first_token_ms=row.first_token_ms,
        attempts=row.attempts,
        seen=seen,
        error=row.error,
    )


def usage_of(row: CallRow) -> Usage:
    """Return the tokens of a row."""
    return Usage(
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cache_read_tokens=row.cache_read_tokens,
        cache_write_tokens=row.cache_write_tokens,
        thinking_tokens=row.thinking_tokens,
    )


def _summed(parts: list[Usage]) -> Usage:
    if len(parts) == 1 and max(msgspec.structs.astuple(parts[0])) <= MAX_TOKENS:
        return parts[0]
    names = Usage.__struct_fields__
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return Usage(**{name: min(count, MAX_TOKENS) for name, count in sums.items()})


def tokens_of(size_bytes: int) -> int:
    """Return about how many tokens a text has."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def digest_of(value: Any) -> str:
    """Return the hash of what a model sees that is no conversation's."""
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()

"""Asks models for the memory's own sake, within a budget of its own."""

import logging
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct

from ksi_daemon.bus import Bus
from ksi_daemon.protocol import KsiError
from ksi_memory.conversations.store import ConversationStore
from ksi_memory.settings import MemorySettings
from ksi_models.api import answer_of, text_of
from ksi_models.events import Message, MessageRange, ModelCall, ModelSettings, TextPart

log = logging.getLogger(__name__)

PURPOSE: Final = "memory"
PRIORITY: Final = 900_000  # whoever waits for an answer comes first


class Answer(Struct, frozen=True):
    """What a model answered, and what that took; ``cost_usd`` is ``None`` where nobody knows."""

    text: str
    model: str
    tokens: int
    cost_usd: float | None


class Upkeep:
    """Asks models.

    Args:
        bus: Calls them.
        store: Adds up what they take.
        settings: The plugin's: which, how long and how much.
    """

    def __init__(self, bus: Bus, store: ConversationStore, settings: MemorySettings) -> None:
        self._bus = bus
        self._store = store
        self._settings = settings

    async def is_spent(self, tenant: str) -> bool:
        """Say whether the day's budget is used up."""
        tokens, cost_usd = await self._store.spend(tenant, _today(), 0, 0.0)
        return (
            tokens >= self._settings.model_tokens_per_day
            or cost_usd >= self._settings.model_usd_per_day
        )

    async def ask(
        self,
        tenant: str,
        model: str,
        system: str,
        text: str,
        max_tokens: int,
        *,
        schema: dict[str, Any] | None = None,
        seen: MessageRange | None = None,
    ) -> Answer | None:
        """Return what a model answers; ``None`` where it fails, is late, or the budget is spent.

        What fails is logged; whoever asks does without.
        """
        if await self.is_spent(tenant):
            log.info("the memory's budget of the day is spent", extra={"tenant": tenant})
            return None
        call = ModelCall(
            model=model,
            system=system,
            messages=(Message("user", (TextPart(text),)),),
            settings=ModelSettings(max_tokens=max_tokens),
            output_schema=schema,
            purpose=PURPOSE,
            seen=seen,
            timeout_s=self._settings.model_timeout_s,
            priority=PRIORITY,
        )
        try:
            response = await answer_of(self._bus, call, setting="memory.model_timeout_s")
        except KsiError as error:
            log.warning(
                "a model did nothing for the memory; rules stand in for that",
                extra={"model": model, "code": error.code, "why": error.message},
            )
            return None
        tokens = response.usage.input_tokens + response.usage.output_tokens
        await self._store.spend(tenant, _today(), tokens, response.cost_usd or 0.0)
        return Answer(text_of(response.message).strip(), response.model, tokens, response.cost_usd)


def _today() -> Any:
    return datetime.now(UTC).date()


def harmless(text: str, *tags: str) -> str:
    """Return a text that can't end the tags that it stands between."""
    for tag in tags:
        text = text.replace(f"</{tag}", f"<\u200b/{tag}")
    return text

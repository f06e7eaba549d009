"""Tells what tokens cost, and how much models can read, as far as that is known."""

import asyncio
import functools
import logging
from typing import Any, Final

from msgspec import Struct

from ksi_models.events import ModelPrice, Usage

log = logging.getLogger(__name__)

SOURCE: Final = "genai-prices"
MILLION: Final = 1_000_000
KNOWN_MODELS: Final = 1024
EXAMPLE: Final = "openai:gpt-6.1-terra"

# What this plugin calls a provider, and what the table of prices does. `claude-cli` is not among
# them: what its calls cost is a matter of the login.
PROVIDERS: Final = {
    "anthropic": "anthropic",
    "azure": "azure",
    "bedrock": "aws",
    "cerebras": "cerebras",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "google": "google",
    "google-gla": "google",
    "google-vertex": "google",
    "grok": "x-ai",
    "groq": "groq",
    "mistral": "mistral",
    "moonshotai": "moonshotai",
    "openai": "openai",
    "openai-chat": "openai",
    "openai-responses": "openai",
    "openrouter": "openrouter",
    "ovhcloud": "ovhcloud",
    "together": "together",
    "xai": "x-ai",
    "zai": "zai",
}
FREE: Final = frozenset({"builtin", "replay", "test"})
WINDOWS_OF: Final = {**PROVIDERS, "claude-cli": "anthropic"}


class KnownPrice(Struct, frozen=True):
    """What is known of a model."""

    price: ModelPrice
    context_tokens: int | None


def split(model: str) -> tuple[str, str]:
    """Split a model's id at its first colon or slash into the provider and its own name."""
    ends = [at for at in (model.find(":"), model.find("/")) if at >= 0]
    end = min(ends, default=len(model))
    return model[:end], model[end + 1 :]


class Prices:
    """Prices by model; what is not known is ``None``, and never zero."""

    def __init__(self) -> None:
        self._known = functools.lru_cache(KNOWN_MODELS)(_look_up)
        self._is_read = False

    async def ready(self, *models: str) -> None:
        """Have the table read where one of these models may be in it; the first time takes a while.

        Whoever asks for prices without that stops the loop meanwhile.
        """
        if not self._is_read and any(split(model)[0] in WINDOWS_OF for model in models):
            await asyncio.to_thread(self._known, EXAMPLE)
            self._is_read = True

    def price(self, model: str) -> ModelPrice:
        """Return the prices of a model."""
        return self._known(model).price

    def context_tokens(self, model: str) -> int | None:
        """Return how much a model can read."""
        return self._known(model).context_tokens

    def cost_usd(self, model: str, usage: Usage) -> float | None:
        """Return what a call has cost."""
        provider, name = split(model)
        if provider in FREE:
            return 0.0
        reference = PROVIDERS.get(provider)
        if reference is None or self._known(model).price.input_usd is None:
            return None
        return _cost(reference, name, usage)


def _cost(provider: str, name: str, usage: Usage) -> float | None:
    import genai_prices  # noqa: PLC0415  late: it takes a while

    cached = usage.cache_read_tokens + usage.cache_write_tokens
    counted = genai_prices.Usage(
        input_tokens=max(usage.input_tokens, cached),
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    try:
        found = genai_prices.calc_price(counted, model_ref=name, provider_id=provider)
    except (LookupError, ValueError) as error:
        log.warning("a price can't be made out", extra={"model": name, "why": str(error)})
        return None
    return float(found.total_price)


def _look_up(model: str) -> KnownPrice:
    provider, name = split(model)
    unknown = KnownPrice(ModelPrice(model=model), None)
    if provider in FREE:
        free = ModelPrice(
            model=model,
            input_usd=0.0,
            output_usd=0.0,
            cache_read_usd=0.0,
            cache_write_usd=0.0,
            source=provider,
        )
        return KnownPrice(free, None)
    reference = WINDOWS_OF.get(provider)
    if reference is None or not name:
        return unknown
    import genai_prices  # noqa: PLC0415  late: it takes a while

    try:
        found = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=0), model_ref=name, provider_id=reference
        )
    except (LookupError, ValueError):
        return unknown
    window = found.model.context_window
    if provider not in PROVIDERS:
        return KnownPrice(ModelPrice(model=model), window)
    per = found.model_price
    price = ModelPrice(
        model=model,
        input_usd=_usd(per.input_mtok),
        output_usd=_usd(per.output_mtok),
        cache_read_usd=_usd(per.cache_read_mtok),
        cache_write_usd=_usd(per.cache_write_mtok),
        source=SOURCE,
    )
    return KnownPrice(price, window)


def _usd(per_million: Any) -> float | None:
    """Return a price; of those in tiers the one for the least."""
    if per_million is None:
        return None
    return float(getattr(per_million, "base", per_million))

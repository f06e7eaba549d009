"""Finds out which models an id, an alias or nothing at all means."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from ksi_daemon.protocol import InvalidData, NotFound
from ksi_daemon.protocol.names import did_you_mean, nearest
from ksi_models.events import ModelInfo
from ksi_models.prices import Prices, split
from ksi_models.provider import KnownModel, Provider, ProviderError
from ksi_models.settings import Chain, ModelsSettings

Answer = TypeVar("Answer")

BUILTIN: Final = "builtin/extractive"
CLAUDE: Final = "claude-cli/sonnet"
ANTHROPIC: Final = "anthropic:claude-sonnet-5-5"
OPENAI: Final = "openai:gpt-6.1-terra"
LOCAL: Final = ("ollama", "vllm", "llama-cpp", "lm-studio", "local")
EMBEDDERS: Final = ("embed", "bge-", "minilm", "e5-")  # models that can't talk
HINT: Final = (
    "no real model is there: log in with `claude`, set ANTHROPIC_API_KEY or OPENAI_API_KEY, or run "
    "Ollama; then restart the daemon"
)
SLASHED: Final = frozenset({"builtin", "claude-cli", "replay", "test"})
MAX_CANDIDATES: Final = 20
MAX_KNOWN: Final = 10_000
LOOK_TIMEOUT_S: Final = 5.0
FOUND_FOR_S: Final = 60.0
NOTHING_FOR_S: Final = 10.0
UNKNOWN_CONTEXT_TOKENS: Final = 32_000
UNKNOWN_OUTPUT_TOKENS: Final = 8_000


class ProviderTable(Protocol):
    """The providers, by name."""

    def find(self, name: str) -> Provider | None:
        """Return a provider; ``None`` where there is none of that name."""

    def all(self) -> list[Provider]:
        """Return those that are worth listing."""

    def calls_tools(self, name: str) -> bool:
        """Say whether a provider's models can call tools here."""


class Default(Struct, frozen=True):
    """The model that is asked where none is named, and what to do where it is no real one."""

    model: str
    hint: str | None = None


class Sizes(Struct, frozen=True):
    """How much a model can read and write."""

    context_tokens: int
    max_output_tokens: int


class Catalogue:
    """The models: their ids, aliases and fall-backs, and the default.

    Args:
        settings: The aliases, the fall-backs, the default.
        providers: Whom they belong to.
        prices: What is known of well-known models.
    """

    def __init__(self, settings: ModelsSettings, providers: ProviderTable, prices: Prices) -> None:
        self._settings = settings
        self._fallbacks = {id_of(name): chain for name, chain in settings.fallbacks.items()}
        self._providers = providers
        self._prices = prices
        self._default: Default | None = None
        self._look_again_at = 0.0
        self._looking = asyncio.Lock()
        self._known: dict[str, KnownModel] = {}

    # -- ids and aliases ------------------------------------------------------------------------

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """The aliases, each with the models it stands for."""
        return {alias: self.expand(alias) for alias in self._settings.aliases}

    def expand(self, name: str) -> tuple[str, ...]:
        """Return the ids of the models that an id or an alias means, in the order of asking.

        Raises:
            InvalidData: The aliases lead in a circle, or to too many models.
            NotFound: It is neither an id nor an alias.
        """
        return self.expand_all((name,))

    def expand_all(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the ids of the models that these mean, one after the other, each once."""
        found: dict[str, None] = {}
        for name in names:
            self._expand(name.strip(), (), found)
        return tuple(found)

    def _expand(self, name: str, path: tuple[str, ...], found: dict[str, None]) -> None:
        if name in path:
            circle = " → ".join((*path, name))
            raise InvalidData(f"models.aliases lead in a circle: {circle}")
        if len(found) >= MAX_CANDIDATES:
            raise InvalidData(f"{path[0]!r} stands for more than {MAX_CANDIDATES} models")
        if name in self._settings.aliases:
            for each in _chain(self._settings.aliases[name]):
                self._expand(each.strip(), (*path, name), found)
            return
        self.check_id(name)
        name = id_of(name)
        if name in found:
            return
        found[name] = None
        for each in _chain(self._fallbacks.get(name, ())):
            if each.strip() not in found:
                self._expand(each.strip(), (*path, name), found)

    def check_id(self, name: str) -> None:
        """Refuse what is no model's id.

        Raises:
            NotFound: There is no such provider, or no provider is named at all.
        """
        provider, own = split(name)
        if provider and own and self._providers.find(provider) is not None:
            return
        known = [*self._settings.aliases, *(each.name for each in self._providers.all())]
        details = {"kind": "not_found", "nearest": nearest(provider, known)}
        if not own and self._providers.find(name) is not None:
            raise NotFound(
                f"{name!r} is a provider: name a model of it, such as "
                f"{id_of(f'{name}:MODEL')} (see: ksi model list {name})",
                details=details,
            )
        if not own:
            raise NotFound(
                f"{name!r} is neither an alias nor a model's id: write provider:model, such as "
                f"{ANTHROPIC}{did_you_mean(name, known)}",
                details=details,
            )
        raise NotFound(
            f"there is no provider {provider!r} (one with a base_url of its own stands in "
            f"[models.providers.{provider}]){did_you_mean(provider, known)}",
            details=details,
        )

    async def candidates(self, name: str | None) -> tuple[str, ...]:
        """Return the models to ask, one after the other."""
        return self.expand(name or (await self.default()).model)

    # -- the default ----------------------------------------------------------------------------

    async def default(self) -> Default:
        """Return the default model: the setting's, or the first that is really there."""
        if self._settings.model:
            return Default(self._settings.model)
        if self._default is not None and self._now() < self._look_again_at:
            return self._default
        async with self._looking:
            if self._default is None or self._now() >= self._look_again_at:
                self._default = await self._find_default()
                is_real = self._default.hint is None
                self._look_again_at = self._now() + (FOUND_FOR_S if is_real else NOTHING_FOR_S)
        return self._default

    def look_again(self) -> None:
        """Look for the default anew the next time."""
        self._look_again_at = 0.0

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _find_default(self) -> Default:
        for model in (CLAUDE, ANTHROPIC, OPENAI):
            provider = self._providers.find(split(model)[0])
            if provider is not None and await why_not(provider) is None:
                return Default(model)
        if self._settings.find_local:
            for name in LOCAL:
                found = await self._local_model(name)
                if found is not None:
                    return Default(found)
        return Default(BUILTIN, HINT)

    async def _local_model(self, name: str) -> str | None:
        provider = self._providers.find(name)
        if provider is None or await why_not(provider) is not None:
            return None
        for known in await self.models_of(provider):
            if not any(mark in known.name.lower() for mark in EMBEDDERS):
                return f"{name}:{known.name}"
        return None

    # -- what there is --------------------------------------------------------------------------

    async def models_of(self, provider: Provider) -> list[KnownModel]:
        """Return the models that a provider says it has; none where it does not say."""
        found: list[KnownModel] = await _within(provider.models, [])
        for each in found:
            self._known[f"{provider.name}\n{each.name}"] = each
        return found

    def describe(self, provider: str, known: KnownModel, default: str) -> ModelInfo:
        """Describe a model that a provider has."""
        model = id_of(f"{provider}:{known.name}")
        price = self._prices.price(model)
        return ModelInfo(
            id=model,
            provider=provider,
            context_tokens=known.context_tokens or self._prices.context_tokens(model),
            input_usd=price.input_usd,
            output_usd=price.output_usd,
            is_default=model == default,
        )

    async def sizes(self, model: str) -> Sizes:
        """Return how much a model can read and write; what is not known is a cautious guess."""
        await self._prices.ready(model)
        provider, name = split(model)
        own = self._settings.providers.get(provider)
        known = await self._known_model(provider, name)
        context = (
            (known.context_tokens if known else None)
            or self._prices.context_tokens(model)
            or (own.context_tokens if own else None)
            or UNKNOWN_CONTEXT_TOKENS
        )
        output = (
            (known.max_output_tokens if known else None)
            or (own.max_output_tokens if own else None)
            or UNKNOWN_OUTPUT_TOKENS
        )
        return Sizes(context, min(output, max(context // 2, 1)))

    async def _known_model(self, provider: str, name: str) -> KnownModel | None:
        """Return what a provider says of a model; it is asked once, where nobody else knows."""
        key = f"{provider}\n{name}"
        if key not in self._known and self._prices.context_tokens(f"{provider}:{name}") is None:
            found = self._providers.find(provider)
            if found is not None:
                await self.models_of(found)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()  # whoever asks may make up any number of names
            self._known.setdefault(key, KnownModel(name=name))
        return self._known.get(key)


def id_of(name: str) -> str:
    """Return a model's id as it is written: with a colon, or a slash where it is one of ours."""
    provider, own = split(name)
    return f"{provider}{'/' if provider in SLASHED else ':'}{own}" if own else name


async def why_not(provider: Provider) -> str | None:
    """Say why a provider can't be used; one that does not say so in time is not there."""
    late = f"{provider.name} did not say in {LOOK_TIMEOUT_S:g} s whether it can be used"
    return await _within(provider.why_not, late)


async def _within(ask: Callable[[], Awaitable[Answer]], otherwise: Answer) -> Answer:
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            return await ask()
    except (TimeoutError, ProviderError):
        return otherwise


def _chain(chain: Chain) -> Sequence[str]:
    return (chain,) if isinstance(chain, str) else chain

"""Reaches every provider of pydantic-ai, which is imported when one of them is first asked."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from ksi_models.events import Usage
from ksi_models.keys import Keys, variables_of
from ksi_models.provider import Delta, KnownModel, ProviderError, Question

if TYPE_CHECKING:
    from types import ModuleType

# Its providers, but for those that are reached without it; a test compares them with what it has.
NAMES: Final = (
    "alibaba",
    "anthropic",
    "azure",
    "azure-responses",
    "bedrock",
    "bedrock-mantle",
    "cerebras",
    "cohere",
    "crusoe",
    "deepseek",
    "elevenlabs",
    "fireworks",
    "github",
    "github-copilot",
    "google",
    "google-cloud",
    "google-decisions",
    "groq",
    "heroku",
    "huggingface",
    "litellm",
    "meta",
    "mistral",
    "moonshotai",
    "nebius",
    "openai-chat",
    "openai-chatgpt",
    "openai-codex",
    "openai-decisions",
    "openai-responses",
    "openrouter",
    "ovhcloud",
    "sambanova",
    "sentence-transformers",
    "snowflake",
    "system-one",
    "together",
    "typesafe",
    "vercel",
    "voyageai",
    "xai",
    "zai",
)
# Those that find their login elsewhere: with the cloud's own, or without any.
KEYLESS: Final = frozenset(
    {"bedrock", "bedrock-mantle", "google-cloud", "litellm", "sentence-transformers"}
)
# Names for the same account.
KEY_OF: Final = {
    "azure-responses": "azure",
    "google-decisions": "google",
    "openai-chat": "openai",
    "openai-decisions": "openai",
    "openai-responses": "openai",
}


class PydanticAI:
    """One of pydantic-ai's providers.

    Args:
        name: Its name.
        keys: Has its key.
        base_url: Where it is, where that is not where it is for everybody.
        max_answer_bytes: How long an answer may be.
    """

    def __init__(
        self, name: str, keys: Keys, base_url: str = "", max_answer_bytes: int = 8 * 1024 * 1024
    ) -> None:
        self.name = name
        self._keys = keys
        self._base_url = base_url
        self._max_answer_bytes = max_answer_bytes
        self._making = asyncio.Lock()
        self._provider: Any = None
        self._key: str | None = None

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Ask, and yield what comes."""
        theirs, provider = await self._ready()
        model = await asyncio.to_thread(theirs.make_model, self.name, question.model, provider)
        asked = theirs.ask(self.name, model, question, self._max_answer_bytes, self._keys.redacted)
        async with aclosing(asked) as answer:
            async for delta in answer:
                yield delta

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Turn texts into vectors, where it can."""
        theirs, provider = await self._ready()
        embedder = await asyncio.to_thread(theirs.make_embedder, self.name, model, provider)
        try:
            made = await embedder.embed(list(texts), input_type="document")
        except Exception as error:  # each of its many clients raises what it likes
            raise theirs.error_of(self.name, error, self._keys.redacted, begun=False) from error
        return [list(vector) for vector in made.embeddings], Usage(
            input_tokens=made.usage.input_tokens
        )

    async def models(self) -> list[KnownModel]:
        """Ask which models it has; none where its client can't ask that."""
        theirs, provider = await self._ready()
        return [KnownModel(name=name) for name in await theirs.list_models(self.name, provider)]

    async def why_not(self) -> str | None:
        """Say that its key is missing; a server of one's own may need none."""
        if self._base_url or self.name in KEYLESS or await self._found_key():
            return None
        variable = variables_of(KEY_OF.get(self.name, self.name))[0]
        return f"there is no key for {self.name}: set {variable} and restart the daemon"

    async def close(self) -> None:
        """Close its connections."""
        provider, self._provider = self._provider, None
        if provider is not None:
            await provider.__aexit__(None, None, None)

    async def _found_key(self) -> str | None:
        own = await self._keys.find(self.name)
        if own or self.name not in KEY_OF:
            return own
        return await self._keys.find(KEY_OF[self.name])

    async def _ready(self) -> "tuple[ModuleType, Any]":
        """Import pydantic-ai in a thread, make the provider once for each key it has had."""
        why_not = await self.why_not()
        if why_not is not None:
            raise ProviderError("login", why_not)
        key = await self._found_key()
        async with self._making:
            theirs = await asyncio.to_thread(_import)
            if self._provider is None or key != self._key:
                await self.close()
                made = await asyncio.to_thread(theirs.make_provider, self.name, key, self._base_url)
                await made.__aenter__()
                self._provider, self._key = made, key
        return theirs, self._provider


def _import() -> "ModuleType":
    from ksi_models.providers import pydantic_model  # noqa: PLC0415  late: it takes a second

    return pydantic_model

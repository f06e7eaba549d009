"""Helpers of the tests of providers."""

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ksi_models.events import Message, ModelSettings, TextPart
from ksi_models.keys import Keys
from ksi_models.provider import Answered, Delta, Provider, ProviderError, Question
from ksi_models.settings import ModelsSettings


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def assistant(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


def question(*messages: Message | str, model: str = "fake-large", **members: Any) -> Question:
    asked = tuple(user(m) if isinstance(m, str) else m for m in messages or ("Hello",))
    made = Question(
        model=model,
        system=None,
        messages=asked,
        tools=(),
        settings=ModelSettings(),
        output_schema=None,
        tenant="t",
        conversation=None,
        run=None,
    )
    return replace(made, **members)


def keys(settings: ModelsSettings | None = None, home: Path | None = None, **environ: str) -> Keys:
    chosen = settings or ModelsSettings(keyring=False)
    return Keys(chosen, home or Path("/nonexistent"), environ)


async def ask(provider: Provider, asked: Question) -> tuple[list[Delta], Answered]:
    """Ask; returns what came before the end, and the end."""
    async with aclosing(provider.stream(asked)) as answer:
        deltas = [delta async for delta in answer]
    end = deltas.pop()
    assert isinstance(end, Answered)
    return deltas, end


async def failing(provider: Provider, asked: Question) -> ProviderError:
    """Ask; returns the error that ends it."""
    with pytest.raises(ProviderError) as caught:
        await ask(provider, asked)
    return caught.value


def said(end: Answered) -> str:
    return "".join(part.text for part in end.message.parts if isinstance(part, TextPart))

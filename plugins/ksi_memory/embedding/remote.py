"""Embedders of providers, each asked through ``model:embed``."""

from collections.abc import Sequence
from typing import Final

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Context, Failed
from ksi_models.events import ModelEmbed, ModelEmbedded

MAX_TEXTS: Final = 2048  # of one event
PURPOSE: Final = "memory"


class RemoteEmbedder:
    """A provider's model.

    Args:
        model: ``provider:model``.
        dimension: How many numbers a vector has.
        bus: Asks.
    """

    is_billed = True

    def __init__(self, model: str, dimension: int, bus: Bus) -> None:
        self.name = model
        self.dimension = dimension
        self._bus = bus

    async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
        """Turn texts into vectors, in somebody's name."""
        return await ask(self._bus, self.name, texts, context)

    async def close(self) -> None:
        """Do nothing."""


async def ask(bus: Bus, model: str, texts: Sequence[str], context: Context) -> list[list[float]]:
    """Have a model turn texts into vectors.

    Raises:
        Failed: It made fewer, or more.
    """
    made: list[list[float]] = []
    with acting_as(context):
        for first in range(0, len(texts), MAX_TEXTS):
            request = ModelEmbed(
                texts=tuple(texts[first : first + MAX_TEXTS]), model=model, purpose=PURPOSE
            )
            answer = await bus.request("model:embed", request, result_type=ModelEmbedded)
            made += map(list, answer.vectors)
    if len(made) != len(texts):
        raise Failed(f"{model} made {len(made)} vectors of {len(texts)} texts")
    return made


async def find_dimension(bus: Bus, model: str, probe: str, context: Context) -> int:
    """Return how many numbers a model's vectors have, by that of some text."""
    return len((await ask(bus, model, [probe], context))[0])

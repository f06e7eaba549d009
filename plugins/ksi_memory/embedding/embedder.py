"""What an embedder is, and how it fails."""

from collections.abc import Sequence
from typing import Protocol

from ksi_daemon.protocol import Context


class Embedder(Protocol):
    """Turns texts into vectors, all of one dimension.

    Attributes:
        name: What its vectors are known by: another model, or another version, has another one.
        dimension: How many numbers a vector has.
        is_billed: Whether it counts, and matters, in whose name it is asked.
    """

    name: str
    dimension: int
    is_billed: bool

    async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
        """Turn texts into vectors, in order; of any length.

        Raises:
            InvalidData: One of the texts can't be embedded.
            KsiError: It can't be done just now.
        """

    async def close(self) -> None:
        """End what it has opened."""

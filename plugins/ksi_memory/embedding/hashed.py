"""An embedder for tests: alike are texts with the same words, or words with the same letters."""

import asyncio
import hashlib
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ksi_daemon.protocol import Context

DIMENSION: Final = 256
VERSION: Final = 1  # of what vectors it makes; those of another one are not compared with them
IN_LOOP: Final = 4  # so many texts are not worth a thread
_WORD: Final = re.compile(r"[^\W_]+")
COMMON: Final = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by did do does for from had has have he her his how i in is it "
        "its me my of on or our she so that the their they this to was we were what when where "
        "which who why will with you your",
    )
)


class HashedEmbedder:
    """Adds up a few numbers for each word and each three letters: fast, and the same everywhere."""

    name = f"test-{VERSION}"
    dimension = DIMENSION
    is_billed = False

    async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
        """Turn texts into vectors."""
        if len(texts) <= IN_LOOP:
            return [vector(text) for text in texts]
        return await asyncio.to_thread(lambda: [vector(text) for text in texts])

    async def close(self) -> None:
        """Do nothing."""


def vector(text: str) -> list[float]:
    """Return a text's vector, of length 1; one without words points in a direction of its own."""
    numbers = [0.0] * DIMENSION
    for word in _WORD.findall(text.lower()):
        for place, number in _parts(word):
            numbers[place] += number
    length = math.sqrt(sum(number * number for number in numbers))
    if not length:
        numbers[0] = length = 1.0
    return [number / length for number in numbers]


@lru_cache(maxsize=50_000)
def _parts(word: str) -> tuple[tuple[int, float], ...]:
    """Return where a word adds what."""
    weight = 0.1 if word in COMMON else 1.0
    padded = f"^{word}$"
    pieces = {padded: weight} | {
        padded[place : place + 3]: 0.3 * weight for place in range(len(padded) - 2)
    }
    return tuple(
        part for piece, each in pieces.items() for part in _places(piece, each / len(pieces) ** 0.5)
    )


def _places(piece: str, weight: float) -> list[tuple[int, float]]:
    digest = hashlib.blake2b(piece.encode(), digest_size=8).digest()
    return [
        (digest[2 * each] % DIMENSION, weight if digest[2 * each + 1] & 1 else -weight)
        for each in range(3)
    ]

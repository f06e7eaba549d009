"""How a message is kept: its parts as JSON, its words to be searched, the hash over a range."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ksi_models.events import Part, TextPart, ToolResultPart

# What a row keeps for searching. Postgres refuses a vector of words past 1 MiB, which so much text
# can't come to.
MAX_BODY_CHARACTERS: Final = 100_000

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(tuple[Part, ...])


def encode_parts(parts: Sequence[Part]) -> str:
    """Return parts as they are stored: one line of JSON."""
    return _ENCODER.encode(parts).decode()


def decode_parts(text: str) -> tuple[Part, ...]:
    """Return stored parts as objects."""
    return _DECODER.decode(text)


def body_of(parts: Sequence[Part]) -> str:
    """Return the text of a message as search and people's queries see it.

    That is what was said and what tools answered; what a model thought, files and the arguments of
    calls are left out.
    """
    texts = (
        part.text if isinstance(part, TextPart) else part.content
        for part in parts
        if isinstance(part, TextPart | ToolResultPart)
    )
    return "\n\n".join(texts)[:MAX_BODY_CHARACTERS].replace("\0", "")


def digest_of(stored: Iterable[tuple[str, str]]) -> str:
    """Return the hash over messages, each given as its role and its parts as they are stored.

    It is that of the lines ``role parts``, joined by line feeds; neither holds one itself.
    """
    digest = hashlib.sha256()
    for place, (role, parts) in enumerate(stored):
        digest.update(f"{'' if place == 0 else chr(10)}{role} {parts}".encode())
    return digest.hexdigest()

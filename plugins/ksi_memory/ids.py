"""Makes the ids of what is remembered: of its table, its key and its owner."""

import unicodedata
from typing import Final
from uuid import UUID, uuid5

import msgspec

NAMESPACE: Final = UUID("6f7f5d0e-3f5b-5d0a-9a57-4c1f0a6f2b11")
FIRST_MARK, LAST_MARK = "\u0300", "\u0362"


def folded(key: str) -> str:
    """Return a key as it is compared: without case, outer blanks and the accents of Latin letters.

    It never makes two keys the same that the store tells apart.
    """
    plain = key if key.isascii() else _without_accents(key)
    return plain.lower().strip(" ")


def _without_accents(key: str) -> str:
    letters: list[str] = []
    for letter in key:
        parts = unicodedata.normalize("NFD", letter)
        base, marks = parts[0], parts[1:]
        if not all(FIRST_MARK <= mark <= LAST_MARK for mark in marks):
            letters.append(letter)
        elif base.isascii() and base.isalpha():
            letters.append(base)
        elif not (FIRST_MARK <= letter <= LAST_MARK and letters and letters[-1].isascii()):
            letters.append(letter)
    return "".join(letters)


def item_id(table: str, key: str, owner: str = "") -> UUID:
    """Return the id of an item: always the same one for a table, a key and an owner."""
    name = msgspec.json.encode([table, folded(key), owner])
    return uuid5(NAMESPACE, name.decode())

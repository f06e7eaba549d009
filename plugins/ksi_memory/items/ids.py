"""Makes the ids of what is remembered: of its table, its key and its owner."""

import unicodedata
from typing import Final
from uuid import UUID, uuid5

import msgspec

NAMESPACE: Final = UUID("6f7f5d0e-3f5b-5d0a-9a57-4c1f0a6f2b11")
FIRST_MARK, LAST_MARK = "\u0300", "\u0362"
# Capitals of letters that the store writes with others, and the capitals as they are.
HISTORIC: Final = frozenset(map(chr, [0x3F9, *range(0x180, 0x250), *range(0xA720, 0xA800)]))


def folded(key: str) -> str:
    """Return a key as it is compared: without case, outer blanks and the accents of Latin letters.

    It never makes two keys the same that the store tells apart.
    """
    return (key.lower() if key.isascii() else _plain(key)).strip(" ")


def _plain(key: str) -> str:
    letters: list[str] = []
    for letter in key:
        parts = unicodedata.normalize("NFD", letter)
        base, marks = parts[0], parts[1:]
        has_accents = all(FIRST_MARK <= mark <= LAST_MARK for mark in marks)
        if has_accents and base.isascii() and base.isalpha():
            letters.append(base.lower())
        elif FIRST_MARK <= letter <= LAST_MARK and letters and letters[-1].isascii():
            continue
        else:
            letters.append(letter if letter in HISTORIC else letter.lower())
    return "".join(letters)


def item_id(table: str, key: str, owner: str = "") -> UUID:
    """Return the id of an item: always the same one for a table, a key and an owner."""
    name = msgspec.json.encode([table, folded(key), owner])
    return uuid5(NAMESPACE, name.decode())

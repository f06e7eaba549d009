"""Finds out which part of the documentation a quote is from, of those that its answer names."""

import re
from typing import Any, Final

from msgspec import Struct

from ksi_client import AsyncClient, NotFound

QUOTE: Final = re.compile(r"^> (.+?)\n— [^\n(]*\(([^\n]+)\)$", re.MULTILINE | re.DOTALL)
LINE: Final = re.compile(r"- \[([^\]]+)\] ")  # as what is remembered stands in a prompt
TABLE: Final = "ontologies"  # where documents and their parts are


class Quote(Struct, frozen=True):
    """What an answer quotes, and the key of the part that has it; empty where none has."""

    text: str
    source: str


async def first_quote(client: AsyncClient, answer: str) -> Quote | None:
    """Return the first quote of an answer; ``None`` where it quotes nothing."""
    found = QUOTE.search(answer)
    if found is None:
        return None
    text = plain(found[1].replace("\n> ", "\n"))
    line = LINE.match(text)
    keys = [line[1]] if line else found[2].split("; ")
    text = text[line.end() :] if line else text
    for key in keys:
        try:
            item: dict[str, Any] = await client.request("memory:get", {"table": TABLE, "key": key})
        except NotFound:
            continue
        said = text.removeprefix(f"{item.get('title')}: ")
        if is_within(said, item.get("body") or ""):
            return Quote(said, key)
    return Quote(text, "")


def is_within(quote: str, text: str) -> bool:
    """Say whether a quote, or the beginning that is left of it, stands in a text."""
    words = plain(quote).rstrip(" …")
    return bool(words) and words in plain(text)


def plain(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())

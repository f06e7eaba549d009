"""Makes the answers: snippets, counted tokens, and what fits into a budget."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ksi_completion.tokens import of_text
from ksi_memory import events as e
from ksi_memory.querying.snippets import alike, snippet

AROUND_TOKENS: Final = 8  # of a result's marks and numbers, besides its texts
ROW_CHARS: Final = 200  # of a row, as a guess
MAX_NOTED: Final = 5


def folded(key: str) -> str:
    """Return a key as it is compared, near enough to tell which were not there."""
    return key.strip().casefold()


def not_there(keys: Sequence[str]) -> tuple[str, ...]:
    """Note which keys nothing bears."""
    if not keys:
        return ()
    shown = ", ".join(repr(key[:80]) for key in keys[:MAX_NOTED])
    more = f" and {len(keys) - MAX_NOTED:,} more" if len(keys) > MAX_NOTED else ""
    return (f"nothing bears the key {shown}{more}; FUZZY finds keys that are alike",)


def without_text(results: Sequence[e.Found], instead: str) -> tuple[str, ...]:
    """Note how many results are too long to be loaded."""
    cut = sum(each.body is None for each in results)
    return (f"{cut:,} are shown without their text, which is too long: {instead}",) if cut else ()


def found_of(hit: Any, sources: dict[tuple[str, int], str], *, explain: bool) -> e.Found:
    """Make a result of what a search has hit."""
    return e.Found(
        id=str(hit.id),
        table=hit.table,
        key=hit.key,
        version=hit.version,
        score=hit.score,
        owner=hit.owner,
        title=hit.title,
        snippet=hit.body,
        category=hit.category,
        attributes=hit.attributes,
        session=hit.session,
        source=sources.get((str(hit.id), hit.version), ""),
        starts_at=hit.starts_at,
        ends_at=hit.ends_at,
        valid_from=hit.valid_from,
        valid_to=hit.valid_to,
        features=hit.features if explain else None,
    )


class Raw(Struct, frozen=True, kw_only=True):
    """An answer whose results have as their snippets the text that those are made of.

    Attributes:
        found: The answer.
        words: What is marked.
        by_name: Whether what was found is like the question by its key or title.
    """

    found: e.MemoryFound
    words: tuple[str, ...] = ()
    by_name: bool = False

    @property
    def chars(self) -> int:
        """How much text there is to go through."""
        texts = sum(len(each.snippet) + len(each.body or "") for each in self.found.results)
        return texts + ROW_CHARS * len(self.found.rows)


def shaped(raw: Raw, max_tokens: int | None, max_chars: int) -> e.MemoryFound:
    """Cut snippets to size, count tokens, and leave out what does not fit; that is said."""
    if raw.found.mode == "sql":
        return _rows_within(raw.found, max_tokens, max_chars)
    room = _Room(max_tokens, max_chars)
    results = [room.fitting(_cut(each, raw)) for each in raw.found.results]
    kept = tuple(each for each in results if each is not None)
    return _told(raw.found, room, len(results) - len(kept), results=kept)


def _cut(found: e.Found, raw: Raw) -> e.Found:
    words = raw.words
    texts: tuple[str, ...] = (found.snippet, found.title, found.key)
    if raw.by_name:
        words = alike(words, f"{found.key} {found.title}")
        texts = texts[::-1] if words else texts
    return replace(found, snippet=snippet(words, *texts))


class _Room:
    """What there is room for, and what was taken of it."""

    def __init__(self, max_tokens: int | None, max_chars: int) -> None:
        self.max_tokens = max_tokens
        self.max_chars = max_chars
        self.tokens = 0
        self.chars = 0
        self.cut = 0
        self.is_full_of_chars = False

    def fitting(self, found: e.Found) -> e.Found | None:
        """Return a result as it fits: whole, without its body and attributes, or not at all."""
        if self.takes(texts := _texts(found)):
            return replace(found, tokens=self.take(texts))
        small = replace(found, body=None, attributes={})
        if self.takes(texts := _texts(small)):
            self.cut += 1
            return replace(small, tokens=self.take(texts))
        return None

    def takes(self, texts: Sequence[str]) -> bool:
        """Say whether there is room for some texts."""
        if self.chars + sum(map(len, texts)) > self.max_chars:
            self.is_full_of_chars = True
            return False
        return self.max_tokens is None or self.tokens + _tokens(texts) <= self.max_tokens

    def take(self, texts: Sequence[str]) -> int:
        """Take the room for some texts; return how many tokens they are."""
        tokens = _tokens(texts)
        self.tokens += tokens
        self.chars += sum(map(len, texts))
        return tokens


def _texts(found: e.Found) -> list[str]:
    texts = [found.table, found.key, found.title, found.snippet, found.body or "", found.source]
    if found.attributes:
        texts.append(msgspec.json.encode(found.attributes).decode())
    return texts


def _tokens(texts: Sequence[str]) -> int:
    return AROUND_TOKENS + sum(map(of_text, texts))


def _rows_within(found: e.MemoryFound, max_tokens: int | None, max_chars: int) -> e.MemoryFound:
    room = _Room(max_tokens, max_chars)
    room.take(found.columns)
    kept = 0
    for row in found.rows:
        texts = [msgspec.json.encode(row, enc_hook=str).decode()]
        if not room.takes(texts):
            break
        room.take(texts)
        kept += 1
    return _told(found, room, len(found.rows) - kept, rows=found.rows[:kept])


def _told(found: e.MemoryFound, room: _Room, left_out: int, **kept: Any) -> e.MemoryFound:
    notes = list(found.notes)
    bound = (
        f"{room.max_chars:,} characters (memory.max_answer_chars)"
        if room.is_full_of_chars
        else f"{room.max_tokens or 0:,} tokens (max_tokens)"
    )
    if left_out:
        notes.append(f"{left_out:,} more did not fit into {bound}")
    if room.cut:
        notes.append(f"{room.cut:,} are shown without their text, to fit into {bound}")
    return replace(
        found,
        tokens=room.tokens,
        notes=tuple(notes),
        truncated=found.truncated or bool(left_out),
        **kept,
    )

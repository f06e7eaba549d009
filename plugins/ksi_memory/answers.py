"""Makes the answers: snippets, counted tokens, and what fits into a budget."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ksi_completion.tokens import of_text
from ksi_memory import events as e
from ksi_memory.snippets import snippet

AROUND_TOKENS: Final = 8  # of a result's marks and numbers, besides its texts
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


def told(found: e.Found, words: Sequence[str] = (), *, by_name: bool = False) -> e.Found:
    """Cut a result's snippet to size, and count its tokens."""
    texts = (found.snippet, found.title, found.key)
    shown = snippet(words, *(texts[::-1] if by_name and words else texts))
    return _counted(msgspec.structs.replace(found, snippet=shown))


def _counted(found: e.Found) -> e.Found:
    texts = [found.table, found.key, found.title, found.snippet, found.body or "", found.source]
    if found.attributes:
        texts.append(msgspec.json.encode(found.attributes).decode())
    return msgspec.structs.replace(found, tokens=AROUND_TOKENS + sum(map(of_text, texts)))


def within(found: e.MemoryFound, max_tokens: int | None) -> e.MemoryFound:
    """Count an answer's tokens; leave out what does not fit into a budget, and say so."""
    if found.mode == "sql":
        return _rows_within(found, max_tokens)
    kept, total = [], 0
    for each in found.results:
        fitting = _fitting(each, max_tokens, total)
        if fitting is not None:
            kept.append(fitting)
            total += fitting.tokens
    return _shortened(found, max_tokens, total, len(found.results) - len(kept), results=tuple(kept))


def _fitting(found: e.Found, max_tokens: int | None, before: int) -> e.Found | None:
    """Return a result as it fits: whole, without its body and attributes, or not at all."""
    if max_tokens is None or before + found.tokens <= max_tokens:
        return found
    small = _counted(msgspec.structs.replace(found, body=None, attributes={}))
    return small if before + small.tokens <= max_tokens else None


def _rows_within(found: e.MemoryFound, max_tokens: int | None) -> e.MemoryFound:
    kept, total = [], of_text(" ".join(found.columns))
    for row in found.rows:
        tokens = of_text(msgspec.json.encode(row, enc_hook=str).decode())
        if max_tokens is not None and total + tokens > max_tokens:
            break
        kept.append(row)
        total += tokens
    return _shortened(found, max_tokens, total, len(found.rows) - len(kept), rows=tuple(kept))


def _shortened(
    found: e.MemoryFound, max_tokens: int | None, total: int, left_out: int, **kept: Any
) -> e.MemoryFound:
    notes = found.notes
    if left_out:
        notes = (*notes, f"{left_out:,} more did not fit into {max_tokens:,} tokens (max_tokens)")
    return msgspec.structs.replace(
        found, tokens=total, notes=notes, truncated=found.truncated or bool(left_out), **kept
    )

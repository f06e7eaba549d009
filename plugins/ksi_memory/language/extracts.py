"""Sums up by quoting: the sentences that say most, those of the user's above all."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

from ksi_memory.language import junk, rules

MAX_SENTENCES: Final = 4000  # that are weighed: of more, the first and the last
MAX_QUOTED: Final = 24
USERS_SHARE: Final = 0.5  # of the room, at least, where the user said as much
TOO_ALIKE: Final = 0.6  # of two sentences' words, and the second says nothing new
USERS_WEIGHT: Final = 1.35
_DECIDES: Final = re.compile(
    r"""\b(?:decid\w+|agree\w*|choos\w+|chose|settled|plan(?:s|ned)?|we['’]ll|will|must|should|need|want|
        prefer|deadline|due|because|instead|finally|result|conclu\w+|recommend\w*|important|
        next\s+steps?|todo|open\s+question|problem|solution|works?|fail\w*|fixed)\b""",
    re.IGNORECASE | re.VERBOSE,
)


class Said(Struct, frozen=True):
    """What was said in a message."""

    number: int
    role: str
    text: str
    at: datetime


class Quote(Struct, frozen=True):
    """A sentence of a message."""

    number: int
    role: str
    text: str
    place: int


def tokens_of(text: str) -> int:
    """Return what a text takes in a model's window: four bytes a token, as an estimate."""
    return (len(text.encode()) + 3) // 4


def quotes_of(said: Sequence[Said], max_tokens: int) -> list[Quote]:
    """Return the sentences that say most of what was said, in their order, within a bound.

    A sentence weighs as much as its words do, which weigh the more the more sentences have them,
    by its own length's root; more where it is the user's, names a day or a name, or decides
    something. Half of the room is kept for the user's. One that says what another has said is left
    out, and so is whatever is junk. Source: centroid-based extraction, as in Radev et al., 2004,
    and maximal marginal relevance, Carbonell and Goldstein, 1998.
    """
    sentences = _sentences(said)
    words = [_content(each.text) for each in sentences]
    counts = Counter(word for some in words for word in some)
    weights = [_weight(quote, some, counts) for quote, some in zip(sentences, words, strict=True)]
    order = sorted(range(len(sentences)), key=lambda each: (-weights[each], each))
    users = [each for each in order if sentences[each].role == "user"]
    chosen: list[int] = []
    left = _choose(users, sentences, words, chosen, int(max_tokens * USERS_SHARE))
    _choose(order, sentences, words, chosen, max_tokens - int(max_tokens * USERS_SHARE) + left)
    return [sentences[each] for each in sorted(chosen)]


def _sentences(said: Sequence[Said]) -> list[Quote]:
    found: list[Quote] = []
    known: set[str] = set()
    for each in said:
        read = junk.own_sentences if each.role == "user" else junk.plain_sentences
        for sentence in read(each.text):
            plain = junk.folded(sentence)
            if plain in known or not _is_telling(sentence, each.role):
                continue
            known.add(plain)
            found.append(Quote(each.number, each.role, sentence, len(found)))
    if len(found) > MAX_SENTENCES:
        found = [*found[: MAX_SENTENCES // 2], *found[-MAX_SENTENCES // 2 :]]
    return found


def _is_telling(sentence: str, role: str) -> bool:
    """Say whether a sentence may be quoted; what the user asks tells what it is about."""
    if role == "user" and junk.is_question(sentence):
        return len(_content(sentence)) > 1 and not junk.is_secret(sentence)
    if len(junk.words_of(sentence)) < 4:
        return False
    return junk.why_junk(sentence) is None


def _content(text: str) -> frozenset[str]:
    return frozenset(
        word for word in junk.folded(text).split() if len(word) > 2 and not rules.is_stop_word(word)
    )


def _weight(quote: Quote, words: frozenset[str], counts: Counter[str]) -> float:
    if not words:
        return 0.0
    weight = sum(math.log1p(counts[word]) for word in words) / math.sqrt(len(words) + 2)
    if quote.role == "user":
        weight *= USERS_WEIGHT
    if any(each.isdigit() for each in quote.text):
        weight *= 1.15
    if rules.names_in([f"So {quote.text}"], at_most=1):
        weight *= 1.1
    if _DECIDES.search(quote.text):
        weight *= 1.25
    if junk.is_question(quote.text):
        weight *= 0.7
    return weight


def _choose(
    order: Sequence[int],
    sentences: Sequence[Quote],
    words: Sequence[frozenset[str]],
    chosen: list[int],
    room: int,
) -> int:
    """Take the best that fit and say something new; return what room is left."""
    for each in order:
        if len(chosen) >= MAX_QUOTED:
            break
        size = tokens_of(sentences[each].text) + 2
        if size > room or each in chosen or any(_alike(words[each], words[n]) for n in chosen):
            continue
        chosen.append(each)
        room -= size
    return room


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) > TOO_ALIKE * max(len(one | other), 1)


def body_of(quotes: Sequence[Quote]) -> str:
    """Return quotes as a text: a line for each, and who said it."""
    return "\n".join(f"{each.role.capitalize()}: {each.text}" for each in quotes)

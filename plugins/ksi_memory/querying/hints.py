"""Takes a question apart without a model: whom it names, which days, and whether it asks when."""

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Final

from msgspec import Struct

from ksi_memory.items.ids import folded
from ksi_memory.language import dates
from ksi_memory.language.dates import Span

MAX_CHARACTERS: Final = 10_000  # a longer question is looked at so far
MAX_WORDS: Final = 200
NAME_WORDS: Final = 3  # a name has so many at most
FIRST, LAST = date(1, 1, 2), date(9999, 12, 31)

_WORD: Final = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_OWN: Final = re.compile(r"['’]s?$")
_ASKS_WHEN: Final = re.compile(
    r"^\W*(?:and\s|so\s|since\s|until\s|but\s)?when\b"
    r"|\bwhen\s(?:did|do|does|was|were|is|are|will|would|has|have|had|can|should|exactly)\b"
    r"|\b(?:what|which)\s(?:date|day|year|month|week|weekend|time|season)\b"
    r"|\bhow\slong\sago\b|\bhow\srecently\b",
    re.IGNORECASE,
)


class Word(Struct, frozen=True):
    """A word, or a row of words, that may be a name; and where it stands."""

    name: str
    begin: int
    end: int


class Question(Struct, frozen=True, kw_only=True):
    """A question, taken apart.

    Attributes:
        text: As it was asked, cut to what is looked at.
        embedded: What is embedded of it: without the person, and with its days spelled out.
        person: The one person that it names, as persons are compared.
        asks_when: Whether it asks for a time.
        spans: The days that it names, in spans.
        days: Those of the spans that are a single day.
    """

    text: str
    embedded: str
    person: str | None
    asks_when: bool
    spans: tuple[Span, ...]
    days: tuple[Span, ...]


def names_in(text: str) -> list[Word]:
    """Return the words of a question that may be a person, and rows of two or three of them."""
    words = [match.span() for match in _WORD.finditer(text[:MAX_CHARACTERS])][:MAX_WORDS]
    found = []
    for length in range(NAME_WORDS, 0, -1):
        for first in range(len(words) - length + 1):
            begin, end = words[first][0], words[first + length - 1][1]
            name = folded(_OWN.sub("", text[begin:end]))
            if name:
                found.append(Word(name, begin, end))
    return found


def taken_apart(
    text: str, words: Iterable[Word], persons: Mapping[str, set[str]], at: datetime
) -> Question:
    """Take a question apart.

    Args:
        text: The question.
        words: What `names_in` found in it.
        persons: Which of these name persons, and whom.
        at: When it is asked.
    """
    text = text[:MAX_CHARACTERS]
    named = [word for word in words if persons.get(word.name)]
    people = set().union(*(persons[word.name] for word in _longest(named)))
    person = people.pop() if len(people) == 1 else None
    mentions = dates.mentions(text, at)
    spans = tuple(span for each in mentions for span in each.spans)
    return Question(
        text=text,
        embedded=_embedded(text, named if person else [], at),
        person=person,
        asks_when=_ASKS_WHEN.search(text) is not None,
        spans=spans,
        days=tuple(span for span in spans if (span[1] - span[0]).days == 1),
    )


def _longest(named: Iterable[Word]) -> list[Word]:
    """Leave out the words that are parts of longer names."""
    kept: list[Word] = []
    for word in named:  # the longer ones come first
        if not any(each.begin <= word.begin and word.end <= each.end for each in kept):
            kept.append(word)
    return kept


def _embedded(text: str, without: Iterable[Word], at: datetime) -> str:
    """Return what is embedded: a name would drown the meaning of the rest."""
    parts, done = [], 0
    for word in sorted(_longest(without), key=lambda each: each.begin):
        parts.append(text[done : word.begin])
        done = word.end
    rest = re.sub(r"\s+", " ", "".join([*parts, text[done:]])).strip()
    return dates.resolved(rest if _WORD.search(rest) else text, at)


def embedded_text(
    title: str, body: str, persons: tuple[str, ...], session: str | None, at: datetime | None
) -> str:
    """Return what is embedded of an item.

    Where one person says a part of a session, ``Person: `` stands before it; what is relative to
    the day on which it was said is spelled out.
    """
    text = "\n".join(part for part in (title.strip(), body.strip()) if part)
    said = dates.resolved(text, at)
    return f"{persons[0]}: {said}" if session is not None and len(persons) == 1 else said


def multirange(spans: Iterable[Span]) -> str:
    """Return spans as the store takes them."""
    return "{" + ",".join(f"[{first:%Y-%m-%d},{after:%Y-%m-%d})" for first, after in spans) + "}"

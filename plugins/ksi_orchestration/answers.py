"""Reads what members answer: choices, lists, JSON; a model writes them as it likes."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

__all__ = ["chosen", "field_of", "is_pass", "items_in", "json_in", "says", "voted"]

MAX_SHORT_CHARACTERS: Final = 60

_FENCED: Final = re.compile(r"```[A-Za-z]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_MARKED: Final = re.compile(r"(?:[-*+•]|\(?\d{1,4}[.):])[ \t]+(?=\S)")
_NUMBER: Final = re.compile(r"\W*(\d{1,3})(?!\w)")
_AROUND: Final = " \t\r\n.,;:!*_`\"'()[]<>“”‘’"


def json_in(text: str) -> Any:
    """Return the JSON that a text is or holds, or ``None`` where it holds none."""
    for candidate in _candidates(text):
        try:
            return msgspec.json.decode(candidate)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            continue
    return None


def _candidates(text: str) -> Iterator[str]:
    yield text.strip()
    fenced = _FENCED.search(text)
    if fenced is not None:
        yield fenced[1].strip()
    for first, last in ("{}", "[]"):
        begin, end = text.find(first), text.rfind(last)
        if 0 <= begin < end:
            yield text[begin : end + 1]


def field_of(value: Any, path: str) -> Any:
    """Return a field of something, with dots between the names; ``None`` where there is none."""
    for step in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


def items_in(text: str) -> list[str]:
    """Return the list that a text is or holds: a JSON one, a bulleted one, or else its lines."""
    value = json_in(text)
    if isinstance(value, dict):
        value = next((each for each in value.values() if isinstance(each, list)), None)
    if isinstance(value, list):
        return [found for each in value if (found := _written(each).strip())]
    return _bulleted(text) or [line.strip() for line in text.splitlines() if line.strip()]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _bulleted(text: str) -> list[str]:
    """Return the outermost items of a list in Markdown, each with the lines that belong to it."""
    items: list[list[str]] = []
    indent: int | None = None
    is_open = False
    for line in text.splitlines():
        bare = line.strip()
        depth = len(line) - len(line.lstrip())
        mark = _MARKED.match(bare)
        if mark is not None and (indent is None or depth <= indent):
            indent, is_open = depth, True
            items.append([bare[mark.end() :]])
        elif indent is not None and depth > indent and bare and is_open:
            items[-1].append(bare)
        elif bare:
            is_open = False
    return ["\n".join(item) for item in items]


def says(text: str, phrase: str) -> bool:
    """Say whether a text has a phrase, as words of their own, in whatever case and type."""
    return _finder(_bare(phrase)).search(_bare(text)) is not None


def _bare(text: str) -> str:
    """Return a text without what Markdown sets words in bold or as code with."""
    return text.replace("*", "").replace("`", "")


@lru_cache(maxsize=1024)
def _finder(phrase: str) -> re.Pattern[str]:
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    return re.compile(rf"(?<!\w){words}(?!\w)" if words else r"(?!)", re.IGNORECASE)


def is_pass(text: str) -> bool:
    """Say whether somebody has nothing to say."""
    return text.strip(_AROUND).casefold() == "pass"


def chosen(text: str, word: str, names: Sequence[str]) -> str | None:
    """Return the name that a text chooses: in a line ``WORD: NAME``, or the only one in it.

    ``None`` where none can be told.
    """
    told = _told(text, word)
    told = text if told is None else told
    return _same(told, names) or _only(told, names)


def voted(text: str, word: str, options: Sequence[str]) -> str | None:
    """Return the option that a text chooses, which may be by its number.

    Options can be any words, and prose has them without meaning a vote: beside a line
    ``WORD: OPTION`` only a short answer of one line counts.
    """
    told = _told(text, word)
    if told is None:
        told = text.strip()
        longest = max(map(len, options), default=0)
        if "\n" in told or len(told) > longest + MAX_SHORT_CHARACTERS:
            return None
    number = _NUMBER.match(told)
    found = _same(told, options) or _only(told, options)
    if found is None and number is not None and 1 <= int(number[1]) <= len(options):
        return options[int(number[1]) - 1]
    return found


def _told(text: str, word: str) -> str | None:
    """Return what stands in the last line ``WORD: …``, or in a field of that name."""
    value = json_in(text)
    if isinstance(value, dict) and isinstance(value.get(word), str | int):
        return str(value[word])
    found = _line(word).findall(_bare(text))
    return found[-1] if found else None


@lru_cache(maxsize=16)
def _line(word: str) -> re.Pattern[str]:
    # Within a line: across lines, many empty ones would take the square of their number.
    pattern = rf"^[^\w\n]*{re.escape(word)}[^\S\n]*[:=](.*)$"
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


def _same(text: str, options: Sequence[str]) -> str | None:
    bare = text.strip(_AROUND).casefold()
    return next((each for each in options if each.strip(_AROUND).casefold() == bare), None)


def _only(text: str, options: Sequence[str]) -> str | None:
    """Return the one option that a text names; a long one is not also the short one in it."""
    found = []
    for option in sorted(options, key=len, reverse=True):
        text, count = _finder(option).subn(" \0 ", text)
        if count:
            found.append(option)
    return found[0] if len(found) == 1 else None

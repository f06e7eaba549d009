"""Shows the part of a text that fits a question best, with the matches marked."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

SNIPPET_CHARS: Final = 240
LOOKED_AT_CHARS: Final = 20_000
MAX_WORDS: Final = 20
MAX_MATCHES: Final = 2000
MIN_LIKENESS: Final = 0.6
MARK: Final = "**"
_WORD: Final = re.compile(r"\w+")
# English endings, the longest first; what is left is compared. It marks words, and finds none.
_ENDINGS: Final = ("ations", "ation", "ings", "ing", "ies", "ied", "ed", "es", "ly", "s", "e", "y")
_MIN_STEM: Final = 3
# Words that are in every text; they are marked only where a question has no others.
_COMMON_WORDS: Final = (
    "a about an and are as at be been but by can did do does for from had has have he her him his "
    "how i if in is it its me my of on or our she so that the their them then there they this to "
    "us was we were what when where which who whom whose why will with would you your"
)
_COMMON: Final = frozenset(_COMMON_WORDS.split())
# Letters with accents as those without, one for one, so that places stay where they are.
_BARE: Final = {
    code: base
    for code in range(0xC0, 0x250)
    if (base := unicodedata.normalize("NFD", chr(code))[0]).isascii()
}


def words_of(question: str) -> tuple[str, ...]:
    """Return the words of a question that are worth marking."""
    found = dict.fromkeys(_WORD.findall(question.translate(_BARE).lower()))
    telling = [word for word in found if word not in _COMMON]
    return tuple(telling or found)[:MAX_WORDS]


def alike(words: Sequence[str], text: str) -> tuple[str, ...]:
    """Return the words of a short text that are like others, as somebody may have misspelt them."""
    known = dict.fromkeys(_WORD.findall(text[:300].translate(_BARE).lower()))
    return tuple(
        word
        for word in known
        if any(difflib.SequenceMatcher(None, word, each).ratio() >= MIN_LIKENESS for each in words)
    )


def snippet(words: Sequence[str], *texts: str, size: int = SNIPPET_CHARS) -> str:
    """Return the part of the first text with matches where most of the words are near each other.

    Without a match anywhere it is the beginning of the first text that says something.
    """
    pattern = _pattern(words)
    if pattern is not None:
        for text in texts:
            seen = text[:LOOKED_AT_CHARS]
            matches = _matches(pattern, seen)
            if matches:
                return _marked(seen, matches, size, is_cut=len(text) > len(seen))
    text = next((text for text in texts if text.strip()), "")
    return _cut(text, 0, min(size, len(text)))


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    stems = sorted({_stem(word) for word in words}, key=len, reverse=True)
    if not stems:
        return None
    # A short stem takes an ending, and no other word that only begins like it.
    each = (rf"{re.escape(stem)}\w{{0,{3 if len(stem) < 5 else 6}}}" for stem in stems)
    return re.compile(rf"(?<!\w)(?:{'|'.join(each)})(?!\w)", re.IGNORECASE)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _MIN_STEM:
            return word[: -len(ending)]
    return word


def _matches(pattern: re.Pattern[str], text: str) -> list[tuple[int, int, str]]:
    found = []
    for match in pattern.finditer(text.translate(_BARE)):
        found.append((*match.span(), _stem(match[0].lower())))
        if len(found) == MAX_MATCHES:
            break
    return found


def _marked(text: str, matches: list[tuple[int, int, str]], size: int, *, is_cut: bool) -> str:
    first, last = _best(matches, size)
    room = max(size - (matches[last][1] - matches[first][0]), 0)
    begin = max(matches[first][0] - room // 2, 0)
    end = min(begin + max(size, matches[last][1] - begin), len(text))
    inside = [match for match in matches if begin <= match[0] and match[1] <= end]
    return _cut(text, begin, end, inside, is_cut=is_cut)


def _best(matches: list[tuple[int, int, str]], size: int) -> tuple[int, int]:
    """Return the first and the last match of the window with most different words."""
    counts: dict[str, int] = {}
    best, place, first = (0, 0), (0, 0), 0
    for last, (_, end, stem) in enumerate(matches):
        counts[stem] = counts.get(stem, 0) + 1
        while first < last and end - matches[first][0] > size:
            gone = matches[first][2]
            counts[gone] -= 1
            if not counts[gone]:
                del counts[gone]
            first += 1
        if (len(counts), last - first) > best:
            best, place = (len(counts), last - first), (first, last)
    return place


def _cut(
    text: str,
    begin: int,
    end: int,
    matches: Iterable[tuple[int, int, str]] = (),
    *,
    is_cut: bool = False,
) -> str:
    """Return a part, not begun or ended in the middle of a word, with the matches marked."""
    matches = list(matches)
    stop = matches[0][0] if matches else begin
    while 0 < begin < stop and text[begin - 1].isalnum():
        begin += 1
    start = matches[-1][1] if matches else begin + 1
    if end < len(text):
        short = end
        while short > start and text[short - 1 : short + 1].isalnum():
            short -= 1
        end = short if short > start else end  # one word without end
    parts, at = [], begin
    for first, last, _ in matches:
        parts += [text[at:first], MARK, text[first:last], MARK]
        at = last
    parts.append(text[at:end])
    told = " ".join("".join(parts).split())
    more = "…" if end < len(text.rstrip()) or is_cut else ""
    return f"{'…' if begin else ''}{told}{more}"

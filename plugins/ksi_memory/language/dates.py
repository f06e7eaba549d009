"""Finds the days that a text speaks of, without a model."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timedelta
from typing import Final, TypeAlias

from msgspec import Struct

__all__ = ["Mention", "Span", "mentions", "resolved", "spoken_of"]

Span: TypeAlias = tuple[
    date, date
]  # the first day, and the first one that is no part of it any more

MAX_CHARACTERS: Final = 100_000  # what stands behind is not looked at
MAX_MENTIONS: Final = 200
DAY: Final = timedelta(days=1)
WEEK: Final = timedelta(days=7)
FIRST_YEAR, LAST_YEAR = 1000, 2999

MONTHS: Final = {
    name: number
    for number, names in enumerate(
        (
            ("january", "jan"),
            ("february", "feb"),
            ("march", "mar"),
            ("april", "apr"),
            ("may",),
            ("june", "jun"),
            ("july", "jul"),
            ("august", "aug"),
            ("september", "sept", "sep"),
            ("october", "oct"),
            ("november", "nov"),
            ("december", "dec"),
        ),
        1,
    )
    for name in names
}
MONTH_NAMES: Final = tuple(
    next(name for name, number in MONTHS.items() if number == each).capitalize()
    for each in range(1, 13)
)
WEEKDAYS: Final = {
    name: number
    for number, names in enumerate(
        (
            ("monday", "mon"),
            ("tuesday", "tues", "tue"),
            ("wednesday", "wed"),
            ("thursday", "thurs", "thur", "thu"),
            ("friday", "fri"),
            ("saturday", "sat"),
            ("sunday", "sun"),
        )
    )
    for name in names
}
NUMBERS: Final = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "a couple of": 2,
    "couple of": 2,
    "a couple": 2,
    "three": 3,
    "a few": 3,
    "few": 3,
    "four": 4,
    "several": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
}
VAGUE: Final = frozenset({"a couple of", "couple of", "a couple", "a few", "few", "several"})
SEASONS: Final = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
PARTS: Final = {"early": (0, 10), "mid": (10, 20), "late": (20, 31)}


class Mention(Struct, frozen=True):
    """A place in a text that speaks of days, in one sense or in several.

    Attributes:
        begin: Where it begins.
        end: Where it ends.
        spans: The days.
        is_relative: Whether it can be understood only by when it was said.
    """

    begin: int
    end: int
    spans: tuple[Span, ...]
    is_relative: bool = False


Reader: TypeAlias = Callable[[re.Match[str], date | None], tuple[Span, ...]]

_ANY_MONTH: Final = "|".join(sorted(MONTHS, key=len, reverse=True))
_ANY_WEEKDAY: Final = "|".join(sorted(WEEKDAYS, key=len, reverse=True))
_LONG_WEEKDAY: Final = "|".join(
    sorted((w for w in WEEKDAYS if len(w) > 4 and w.endswith("day")), key=len, reverse=True)
)
_NUMBER: Final = r"\d{1,3}|" + "|".join(sorted(NUMBERS, key=len, reverse=True))
_YEAR: Final = r"(?P<year>[12]\d{3})(?!\w|[.,:/-]\d)"
_DAY: Final = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_TO: Final = r"(?:\s?(?:-|–|to|and)\s?(?P<last>\d{1,2})(?:st|nd|rd|th)?)?"
_EDGE: Final = r"(?<![\w.,/$€£#-])"  # no part of a number, a path or an amount


def _span(first: date, last: date) -> tuple[Span, ...]:
    return ((first, last + DAY),) if first <= last else ()


def _month(year: int, month: int) -> Span:
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    after = year + month // 12, month % 12 + 1
    return date(year, month, 1), date(*after, 1)


def _known_year(year: int) -> bool:
    return FIRST_YEAR <= year <= LAST_YEAR


def _iso(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    year, month = int(match["year"]), int(match["month"])
    if not _known_year(year) or not 1 <= month <= 12:
        return ()
    if match["day"] is None:
        return (_month(year, month),)
    day = date(year, month, int(match["day"]))
    return _span(day, day)


def _numeric(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    """Read 7.5.2023, and 5/7/2023 in both ways, where both are a day."""
    first, second, year = int(match["first"]), int(match["second"]), int(match["year"])
    orders = [(second, first)] if match["sign"] == "." else [(second, first), (first, second)]
    found = {date(year, m, d) for m, d in orders if m <= 12 and _is_day(year, m, d)}
    return tuple((day, day + DAY) for day in sorted(found))


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _named(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    """Read a day with its month's name; where there is no year, it is in the nearest one."""
    month = MONTHS[match["month"].lower()]
    first, last = int(match["day"]), int(match["last"] or match["day"])
    if match["year"]:
        year = int(match["year"])
        return _span(date(year, month, first), date(year, month, last))
    if at is None or _is_a_verb(match):
        return ()
    near = [y for y in (at.year - 1, at.year, at.year + 1) if _is_day(y, month, first)]
    year = min(near, key=lambda y: abs(date(y, month, first) - at))
    return _span(date(year, month, first), date(year, month, last))


def _is_a_verb(match: re.Match[str]) -> bool:
    """Say whether it is "the 7 may come": a month is written so only where "on" stands before."""
    is_small = match["month"] in ("may", "march")
    return is_small and not match.string[
        max(0, match.start() - 3) : match.start()
    ].lower().endswith("on ")


def _month_of_year(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    year, month = int(match["year"]), MONTHS[match["month"].lower()]
    if not _known_year(year):
        return ()
    return (_part(_month(year, month), match["part"]),)


def _part(month: Span, part: str | None) -> Span:
    first, after = month
    if part is None:
        return month
    begin, end = PARTS[part.lower()]
    return first + begin * DAY, min(first + end * DAY, after)


def _only_month(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    """Read "in May", "last May", "next May"; the nearest one where nothing else is said."""
    name, which = match["month"], (match["which"] or "in").lower().split()[0]
    if at is None or name in ("may", "march"):
        return ()
    month = MONTHS[name.lower()]
    years = {
        "last": [at.year if month < at.month else at.year - 1],
        "next": [at.year if month > at.month else at.year + 1],
        "this": [at.year],
    }.get(which, [at.year - 1, at.year, at.year + 1])
    middle = [date(year, month, 15) for year in years]
    year = min(middle, key=lambda day: abs(day - at)).year
    return (_part(_month(year, month), match["part"]),)


def _year(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    year = int(match["year"])
    if match["decade"]:
        return ((date(year, 1, 1), date(year + 10, 1, 1)),) if year % 10 == 0 else ()
    return ((date(year, 1, 1), date(year + 1, 1, 1)),)


def _plain(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    if at is None:
        return ()
    words = re.sub(r"\s+", " ", match[0].lower())
    distance = {
        "yesterday": -1,
        "last night": -1,
        "tomorrow": 1,
        "day before yesterday": -2,
        "day after tomorrow": 2,
    }.get(words.removeprefix("the "), 0)
    day = at + distance * DAY
    return _span(day, day)


def _ago(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    """Read "two days ago" and "in three weeks"; the coarser the unit, the wider the span."""
    if at is None:
        return ()
    words = re.sub(r"\s+", " ", match["number"].lower())
    number = NUMBERS.get(words) or int(words)
    sign = -1 if match["ago"] else 1
    unit = match["unit"].lower()
    slack = 1 if words in VAGUE else 0
    if unit == "day":
        day = at + sign * number * DAY
        return _span(day - slack * DAY, day + slack * DAY)
    if unit == "week":
        day = at + sign * number * WEEK
        reach = 3 + 4 * slack
        return _span(day - reach * DAY, day + reach * DAY)
    if unit == "weekend":
        return (_weekend(at, sign * number),)
    if unit == "month":
        return (_months(at, sign * number, slack),)
    return _years(at.year + sign * number, slack)


def _weekend(at: date, distance: int) -> Span:
    saturday = at - at.weekday() * DAY + 5 * DAY + distance * WEEK
    return saturday, saturday + 2 * DAY


def _months(at: date, distance: int, slack: int) -> Span:
    month = at.month + distance
    return _month(at.year, month - slack)[0], _month(at.year, month + slack)[1]


def _years(year: int, slack: int) -> tuple[Span, ...]:
    return ((date(year - slack, 1, 1), date(year + slack + 1, 1, 1)),)


def _unit(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    """Read "last week", "this month", "next year", "last summer"."""
    if at is None:
        return ()
    distance = {"last": -1, "past": -1, "previous": -1, "next": 1, "coming": 1, "following": 1}.get(
        match["which"].lower(), 0
    )
    unit = match["unit"].lower()
    if unit == "week":
        monday = at - at.weekday() * DAY + distance * WEEK
        return ((monday, monday + WEEK),)
    if unit == "weekend":
        return (_weekend(at, distance),)
    if unit == "month":
        return (_months(at, distance, 0),)
    if unit == "year":
        return _years(at.year + distance, 0)
    return _season(SEASONS[unit], at, distance)


def _season(first_month: int, at: date, distance: int) -> tuple[Span, ...]:
    seasons = [
        (_month(year, first_month)[0], _month(year, first_month + 2)[1])
        for year in range(at.year - 2, at.year + 2)
    ]
    if distance < 0:
        return tuple([each for each in seasons if each[1] <= at][-1:])
    if distance > 0:
        return tuple([each for each in seasons if each[0] > at][:1])
    return tuple([each for each in seasons if each[1] > at][:1])


# What says that somebody speaks of what is to come.
_COMING: Final = re.compile(
    r"\b(?:will|shall|going\s+to|gonna|plan\w*|next|coming|upcoming|tomorrow|due|let's|let\s+us)\b"
    r"|['’]ll\b",
    re.IGNORECASE,
)


def _weekday(match: re.Match[str], at: date | None) -> tuple[Span, ...]:
    """Read "last Friday", "on Friday": the one before, unless what is said is to come."""
    if at is None:
        return ()
    wanted = WEEKDAYS[match["weekday"].lower()]
    which = match["which"].lower().split()[0]
    if which == "this":
        day = at + (wanted - at.weekday()) * DAY
    elif which in ("next", "coming") or (which == "on" and _is_to_come(match)):
        day = at + ((wanted - at.weekday() - 1) % 7 + 1) * DAY
    elif which == "on":
        day = at - (at.weekday() - wanted) % 7 * DAY
    else:
        day = at - ((at.weekday() - wanted - 1) % 7 + 1) * DAY
    return _span(day, day)


def _is_to_come(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 100) : match.start()]
    sentence = re.split(r"[.!?\n]", before)[-1]
    return _COMING.search(sentence) is not None


class _Reader(Struct, frozen=True):
    """How one way to speak of days is read.

    Attributes:
        needs: Words of which a text has one, if it has anything for this reader; asking for them
            first is what makes texts cheap that speak of no time.
    """

    needs: frozenset[str]
    pattern: re.Pattern[str]
    read: Reader
    is_relative: bool


def _reader(needs: Iterable[str], pattern: str, read: Reader, *, is_relative: bool) -> _Reader:
    return _Reader(frozenset(needs), re.compile(pattern, re.IGNORECASE), read, is_relative)


_YEARS: Final = ("4",)  # stands for any number of four digits
_WORD: Final = re.compile(r"[a-z]+|\d+")
_UNITS: Final = ("day", "days", "week", "weeks", "weekend", "weekends", "month", "months", "year")
_COUNTED: Final = r"(?P<unit>day|weekend|week|month|year)s?"

# In this order: what one of them has read is not read again by those that follow.
_READERS: Final = (
    _reader(
        _YEARS,
        _EDGE + r"(?P<year>[12]\d{3})(?P<sign>[-/])(?P<month>[01]?\d)"
        r"(?:(?P=sign)(?P<day>\d{1,2}))?(?=$|[^\w/-]|T\d)(?![.,]\d)",
        _iso,
        is_relative=False,
    ),
    _reader(
        _YEARS,
        _EDGE + r"(?P<first>\d{1,2})(?P<sign>[./])(?P<second>\d{1,2})(?P=sign)"
        r"(?P<year>[12]\d{3})(?![\w/-]|[.,]\d)",
        _numeric,
        is_relative=False,
    ),
    _reader(
        MONTHS,
        _EDGE + _DAY + _TO + rf"\s(?:of\s)?(?P<month>{_ANY_MONTH})\b\.?(?:,?\s{_YEAR})?",
        _named,
        is_relative=False,
    ),
    _reader(
        MONTHS,
        rf"\b(?P<month>{_ANY_MONTH})\.?\s{_DAY}{_TO}(?![\d:%]|\w)(?:,?\s{_YEAR})?",
        _named,
        is_relative=False,
    ),
    _reader(
        MONTHS,
        rf"\b(?:(?P<part>early|mid|late)[\s-])?(?P<month>{_ANY_MONTH})\b\.?,?\s(?:of\s)?{_YEAR}",
        _month_of_year,
        is_relative=False,
    ),
    _reader(
        ("yesterday", "tomorrow"),
        r"\b(?:the\s)?day\s(?:before\syesterday|after\stomorrow)\b",
        _plain,
        is_relative=True,
    ),
    _reader(
        ("today", "tonight", "yesterday", "tomorrow", "night", "morning", "afternoon", "evening"),
        r"\b(?:today|tonight|yesterday|tomorrow|last\snight|this\s(?:morning|afternoon|evening))\b",
        _plain,
        is_relative=True,
    ),
    _reader(
        ("ago", "earlier", "back"),
        rf"\b(?P<number>{_NUMBER})\s{_COUNTED}\s(?P<ago>ago|earlier|back)\b",
        _ago,
        is_relative=True,
    ),
    _reader(
        (*_UNITS, "years"),
        rf"\bin\s(?P<number>{_NUMBER})\s{_COUNTED}(?P<ago>(?!))?\b",
        _ago,
        is_relative=True,
    ),
    _reader(
        (*_UNITS, *SEASONS),
        r"\b(?P<which>last|past|previous|this|next|coming|following)\s"
        r"(?P<unit>weekend|week|month|year|spring|summer|autumn|fall|winter)\b",
        _unit,
        is_relative=True,
    ),
    _reader(
        WEEKDAYS,
        rf"\b(?P<which>last|this|next|coming|past)\s(?P<weekday>{_ANY_WEEKDAY})\b",
        _weekday,
        is_relative=True,
    ),
    _reader(
        WEEKDAYS,
        rf"\b(?P<which>on)\s(?P<weekday>{_LONG_WEEKDAY})\b",
        _weekday,
        is_relative=True,
    ),
    _reader(
        MONTHS,
        r"\b(?P<which>in|last|next|this|since|until|till|during|by|before|after)\s"
        rf"(?:(?P<part>early|mid|late)[\s-])?(?P<month>{_ANY_MONTH})\b(?!\s\d)",
        _only_month,
        is_relative=True,
    ),
    _reader(
        _YEARS,
        r"(?<![\w.,:/$€£#-])(?P<year>(?:19|20)\d{2})(?P<decade>s)?(?!\w|[.,:/-]\d|\s?[%€£$])",
        _year,
        is_relative=False,
    ),
)


def mentions(text: str, at: datetime | None) -> list[Mention]:
    """Return the places that speak of days, in their order.

    Args:
        text: Any text; what stands behind its first 100,000 characters is not looked at.
        at: When it was said. Without that, only what is a date by itself is understood.
    """
    looked_at = text[:MAX_CHARACTERS]
    found: list[Mention] = []
    for mention in _readings(looked_at, None if at is None else at.date()):
        if not any(each.begin < mention.end and mention.begin < each.end for each in found):
            found.append(mention)
            if len(found) == MAX_MENTIONS:
                break
    return sorted(found, key=lambda each: each.begin)


def _readings(text: str, at: date | None) -> Iterator[Mention]:
    words = {"4" if len(each) == 4 and each.isdigit() else each for each in _words(text)}
    for reader in _READERS:
        if words.isdisjoint(reader.needs):
            continue
        for match in reader.pattern.finditer(text):
            try:
                spans = reader.read(match, at)
            except (ValueError, OverflowError):  # there is no such day
                spans = ()
            yield Mention(match.start(), match.end(), spans, reader.is_relative)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def spoken_of(text: str, at: datetime | None) -> list[Span]:
    """Return the days that a text speaks of: disjoint, in order, each up to a day not included.

    Days that don't exist are left out. "Yesterday", "two weeks ago", "on Friday" and the like are
    understood as of ``at``.
    """
    spans = sorted(span for mention in mentions(text, at) for span in mention.spans)
    merged: list[Span] = []
    for first, after in spans:
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], after)
        else:
            merged.append((first, after))
    return merged


def resolved(text: str, at: datetime | None) -> str:
    """Return a text in which what is relative is followed by what it means as of ``at``.

    >>> resolved("We met yesterday.", datetime(2023, 5, 8))
    'We met yesterday (7 May 2023).'
    """
    parts, done = [], 0
    for mention in mentions(text, at):
        if mention.is_relative and mention.spans:
            parts += [text[done : mention.end], f" ({spelled(mention.spans[0])})"]
            done = mention.end
    return "".join([*parts, text[done:]]) if parts else text


def spelled(span: Span) -> str:
    """Return some days in words: a day, a month, a year, or from when to when."""
    first, after = span
    last = after - DAY
    if first == last:
        return f"{first.day} {MONTH_NAMES[first.month - 1]} {first.year}"
    if (first.day, after.day) == (1, 1):
        if (first.month, after.month, after.year) == (1, 1, first.year + 1):
            return str(first.year)
        if (after.year, after.month) == (first.year + first.month // 12, first.month % 12 + 1):
            return f"{MONTH_NAMES[first.month - 1]} {first.year}"
    return f"{spelled((first, first + DAY))} to {spelled((last, after))}"

"""Makes of values that files hold what items can hold: JSON's values, times, names."""

import math
import re
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any, Final

from ksi_memory.reading.document import Unreadable

__all__ = ["names_of", "plain", "span_of", "text_of", "time_of"]

_DATE: Final = re.compile(
    r"\s*(\d{4})-(\d{1,2})-(\d{1,2})(?:(?:[Tt]|\s+)(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?"
    r"\s*(Z|z|[+-]\d{2}:?\d{2})?)?\s*"
)
MAX_DIGITS: Final = 300
MAX_DEPTH: Final = 60


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON has it.

    Raises:
        Unreadable: It has no such form.
    """
    if depth > MAX_DEPTH:
        raise Unreadable(f"it is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else _text(_digits(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {text_of(key): plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(each, depth + 1) for each in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    raise Unreadable(f"it holds a {type(value).__name__}, which has no form in JSON")


def _digits(value: int) -> str:
    if value.bit_length() > MAX_DIGITS * 3:
        raise Unreadable(f"it holds a number of more than {MAX_DIGITS} digits")
    return str(value)


def _text(value: str) -> str:
    if "\0" in value:
        raise Unreadable("it has a zero character")
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise Unreadable("it has half of a surrogate pair")
    return value


def text_of(value: Any) -> str:
    """Return a single value as a text."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _digits(value)
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple | set):
        raise Unreadable("it has a list or a table where a text belongs")
    return str(value)


def names_of(value: Any) -> tuple[str, ...]:
    """Return the names in a value: a list, or a text with commas."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        value = [value]
    names = (text_of(each).strip() for each in value if not isinstance(each, dict | list))
    return tuple(dict.fromkeys(name for name in names if name))


def time_of(value: Any, name: str) -> datetime | None:
    """Return the time that a value tells, in UTC where it says no zone; none where it is no time.

    Raises:
        Unreadable: It has a date's form, and there is no such date.
    """
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, str) or (match := _DATE.fullmatch(value)) is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    micros = int((fraction or "").ljust(6, "0")[:6])
    try:
        found = datetime(
            int(year),
            int(month),
            int(day),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            micros,
            tzinfo=_zone(zone),
        ).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Unreadable(f"{name}: {value.strip()[:40]} is no time that exists: {error}") from error
    return found


def _zone(zone: str | None) -> timezone:
    if not zone or zone in "Zz":
        return UTC
    distance = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
    return timezone(-distance if zone[0] == "-" else distance)


def span_of(start: Any, end: Any) -> tuple[datetime | None, datetime | None]:
    """Return from when to when something was.

    Raises:
        Unreadable: A date doesn't exist, or it ends before it begins.
    """
    starts_at, ends_at = time_of(start, "start"), time_of(end, "end")
    if ends_at is not None and (starts_at is None or ends_at < starts_at):
        raise Unreadable("it ends before it begins" if starts_at else "it ends and never begins")
    return starts_at, ends_at

"""Reads the times that people write into a question."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_AGO: Final = re.compile(r"(\d{1,6})\s?(s|m|min|h|d|w)", re.IGNORECASE)
_UNITS: Final = {
    "s": "seconds",
    "m": "minutes",
    "min": "minutes",
    "h": "hours",
    "d": "days",
    "w": "weeks",
}
_WORDS: Final = {"now": None, "today": 0, "yesterday": -1, "tomorrow": 1}
_DATE: Final = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?", re.ASCII)
_LIKE_ISO: Final = re.compile(r"\d{4}-?\d{2}-?\d{2}[T ]\d{1,2}.*", re.ASCII | re.IGNORECASE)
EXAMPLES: Final = "2026-01-31, 2026-01-31T12:00, 3d for three days ago, or yesterday"


def looks_like_time(text: str) -> bool:
    """Say whether somebody means a time by a text, be it one that exists or not."""
    return bool(
        text.lower() in _WORDS
        or _AGO.fullmatch(text)
        or _DATE.fullmatch(text)
        or _LIKE_ISO.fullmatch(text)
    )


def read_time(text: str, now: datetime) -> datetime:
    """Read a time; without a zone it is UTC, without a time of day the beginning of that day.

    Raises:
        ValueError: It is none, or one that does not exist.
    """
    if not looks_like_time(text):
        raise ValueError(f"such as {EXAMPLES}")
    try:
        return _read(text, now)
    except (ValueError, OverflowError) as error:
        raise ValueError("there is no such time") from error


def _read(text: str, now: datetime) -> datetime:
    word = text.lower()
    if word in _WORDS:
        days = _WORDS[word]
        if days is None:
            return now
        return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=days)
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2].lower()]: int(ago[1])})
    if day := _DATE.fullmatch(text):
        return datetime(int(day[1]), int(day[2] or 1), int(day[3] or 1), tzinfo=UTC)
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)

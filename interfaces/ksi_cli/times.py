"""Reads the times that people write at the command line."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from ksi_cli.output import UsageError

_AGO: Final = re.compile(r"(\d+)(s|min|m|h|d|w)")
_UNITS: Final = {
    "s": "seconds",
    "m": "minutes",
    "min": "minutes",
    "h": "hours",
    "d": "days",
    "w": "weeks",
}


def time_of(text: str, example: str) -> datetime | None:
    """Read a time: as ISO 8601 writes it, or how long it is ago.

    Args:
        text: What was written; nothing is no time.
        example: What might be written instead, for the error.

    Raises:
        UsageError: It is none.
    """
    if not text:
        return None
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is no time: write {example}") from error

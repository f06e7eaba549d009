"""Event names, the patterns that match them, and the name somebody probably meant."""

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from ksi_daemon.protocol.errors import InvalidData

MAX_NAME_LENGTH: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)+")
_PATTERN: Final = re.compile(r"[A-Za-z0-9_.:*?-]+")


def check_name(name: str) -> str:
    """Return an event's name unchanged.

    Raises:
        InvalidData: It is not of the form ``namespace:verb`` (two parts or more).
    """
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise InvalidData(
            f"{name[:MAX_NAME_LENGTH]!r} is no event name: write it as namespace:verb, with "
            f"letters, digits, '_', '.' and '-', in {MAX_NAME_LENGTH} characters at most"
        )
    return name


def check_pattern(pattern: str) -> str:
    """Return a pattern unchanged.

    Raises:
        InvalidData: It has other characters than a name's, ``*`` and ``?``.
    """
    if len(pattern) > MAX_NAME_LENGTH or not _PATTERN.fullmatch(pattern):
        raise InvalidData(
            f"{pattern[:MAX_NAME_LENGTH]!r} is no pattern: write an event's name, "
            "with '*' for any characters and '?' for one"
        )
    return pattern


@lru_cache(maxsize=8192)
def matches(name: str, pattern: str) -> bool:
    """Say whether an event's name matches a pattern; ``*`` also spans the colons."""
    return fnmatchcase(name, pattern)


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Say whether an event's name matches one of the patterns."""
    return any(matches(name, pattern) for pattern in patterns)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """List up to three known names that are most like this one, the best first."""
    return list(_nearest(name[:MAX_NAME_LENGTH], tuple(known)))


@lru_cache(maxsize=256)  # a tenth of a millisecond or more, and who errs often errs alike
def _nearest(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(name, known, n=3, cutoff=0.6))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Make the half sentence that names the nearest known names, or an empty string."""
    found = nearest(name, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""

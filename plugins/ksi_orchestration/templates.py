"""Fills in ``{{ name }}`` in a text; what is filled in is data and is not looked at again."""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

__all__ = ["fill", "is_name", "names_in"]

_HOLE: Final = re.compile(r"\{\{([^{}\n]*)\}\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


@lru_cache(maxsize=1024)
def names_in(template: str) -> tuple[str, ...]:
    """Return what stands between the braces, as it is written there but for space around it."""
    return tuple(match[1].strip() for match in _HOLE.finditer(template))


def is_name(text: str) -> bool:
    """Say whether something between braces is a name; nothing else may stand there."""
    return _NAME.fullmatch(text) is not None


def fill(template: str, value: Callable[[str], str | None]) -> str:
    """Return a template with its names filled in.

    A line that has nothing but names of which nothing is known goes, and so does the space that is
    left around it. A name for which ``value`` returns ``None`` stays as it is written.
    """
    lines: list[str] = []
    for line in _filled(template, value):
        if line or (lines and lines[-1]):
            lines.append(line)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)


def _filled(template: str, value: Callable[[str], str | None]) -> Iterator[str]:
    def put(match: re.Match[str]) -> str:
        found = value(match[1].strip())
        return match[0] if found is None else found

    for line in template.splitlines():
        if _HOLE.search(line) is None:
            yield line.rstrip()
            continue
        filled = _HOLE.sub(put, line)
        if filled.strip():
            yield filled

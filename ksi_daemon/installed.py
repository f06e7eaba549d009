"""Tells which plugins are installed; the files of every distribution are read for it, so once."""

import sys
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Final

GROUP: Final = "ksi"


def installed_plugins() -> tuple[EntryPoint, ...]:
    """Return the entry points of all plugins that can be found on ``sys.path``."""
    return _found(tuple(sys.path))


@cache
def _found(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


@cache  # a package may have many plugins, and its metadata are parsed at each look
def version_of(distribution: Distribution | None) -> str:
    """Return the version of the distribution that brings a plugin; none has an empty one."""
    return distribution.version if distribution is not None else ""

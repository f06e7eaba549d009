"""Reads YAML that may be hostile.

The fast parser recurses without a limit when it builds objects, and a few kilobytes of brackets
end its process; so the depth is counted before, on its events. An alias repeats what it names
without taking room, until somebody writes it out: what a text comes to when all is written out is
bounded, too. Dates are left as they are written, so that one that doesn't exist spoils no other.
"""

from collections.abc import Iterator
from typing import Any, Final

import yaml

from ksi_memory.reading.document import Unreadable

__all__ = ["read_yaml"]

MAX_DEPTH: Final = 50
MAX_VALUES: Final = 2_000_000

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"


class _Loader(_Base):  # type: ignore[misc]  # it is not typed
    """Makes plain values alone, and no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> list[Any]:
    """Return the documents of a YAML text, as plain values.

    Raises:
        Unreadable: It is no YAML, is nested too deeply, or comes to too much.
    """
    try:
        _check_depth(text)
        found = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise Unreadable(f"it is no YAML: {_told(error)}") from error
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        # Values that its constructors can't make: a number of too many digits, a key that is a list
        raise Unreadable(f"it is no YAML that can be read: {error}") from error
    _check_size(found)
    return found


def _told(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(f"it is nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_size(documents: list[Any]) -> None:
    """Count what it comes to when every alias is written out; an alias may name what it is in."""
    sizes: dict[int, int] = {}
    if _size(documents, sizes, set()) > MAX_VALUES:
        raise Unreadable(f"its aliases come to more than {MAX_VALUES:,} values")


def _size(value: Any, sizes: dict[int, int], open_ones: set[int]) -> int:
    if not isinstance(value, dict | list | set | tuple):
        return 1
    known = sizes.get(id(value))
    if known is not None:
        return known
    if id(value) in open_ones:
        raise Unreadable("an alias names what it stands in")
    open_ones.add(id(value))
    size = 1 + sum(_size(each, sizes, open_ones) for each in _parts(value))
    open_ones.discard(id(value))
    sizes[id(value)] = size
    return size


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    else:
        yield from value

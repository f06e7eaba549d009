"""Reads YAML that may be hostile, and says where in it each value stands.

The fast parser recurses without a limit when it builds nodes, and a few kilobytes of brackets end
its process; so the depth is counted before, on its events. An alias repeats what it names without
taking room, until somebody writes it out or merges it: what a text comes to when all is written
out is bounded, too. Dates are left as they are written, so that one that doesn't exist spoils no
other.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final, TypeAlias

import yaml
from msgspec import Struct

__all__ = ["BadYaml", "Path", "YamlDocument", "read_yaml", "read_yaml_documents"]

MAX_DEPTH: Final = 50
MAX_VALUES: Final = 2_000_000

Path: TypeAlias = tuple[str | int, ...]
"""The keys and places that lead to a value."""

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_MERGE: Final = "tag:yaml.org,2002:merge"
_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what ends a line in YAML


class BadYaml(ValueError):
    """It is no YAML, is nested too deeply, or comes to too much; ``line`` counts from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class YamlDocument(Struct, frozen=True):
    """One document of a stream.

    Attributes:
        value: What it says, as plain values.
        text: Its own text.
        lines: The line in the stream of each key and of each value of a list, by its path, counted
            from 1; what an alias repeats has those of the first place.
        repeated: The keys that stand twice in one mapping, where the last one counts.
    """

    value: Any
    text: str
    lines: dict[Path, int]
    repeated: tuple[Path, ...] = ()


class _Loader(_Base):  # type: ignore[misc]  # it is not typed
    """Makes plain values alone, and no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> list[Any]:
    """Return the documents of a YAML text, as plain values.

    Raises:
        BadYaml: It is none, is nested too deeply, or comes to too much.
    """
    return [value for value, _ in _read(text)]


def read_yaml_documents(text: str) -> list[YamlDocument]:
    """Return the documents of a YAML text with the lines of their values.

    Raises:
        BadYaml: It is none, is nested too deeply, or comes to too much.
    """
    pieces = _pieces(text, _check_depth(text))
    return [
        YamlDocument(value, piece, places.lines, tuple(places.repeated))
        for (value, places), piece in zip(_read(text), pieces, strict=True)
    ]


def _read(text: str) -> list[tuple[Any, "_Places"]]:
    _check_depth(text)
    try:
        loader = _Loader(text)
        try:
            nodes = []
            while loader.check_node():
                nodes.append(loader.get_node())
            _check_size(nodes)
            # Where they stand is looked at first: to make values of them merges them.
            places = [_Places(node) for node in nodes]
            values = [loader.construct_document(node) for node in nodes]
            return list(zip(values, places, strict=True))
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _bad(error) from error
    except BadYaml:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        # Values that its constructors can't make: a number of too many digits, a key that is a list
        raise BadYaml(f"it is no YAML that can be read: {error}") from error


def _bad(error: yaml.YAMLError) -> BadYaml:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    if mark is None:
        return BadYaml(f"it is no YAML: {problem}")
    return BadYaml(f"it is no YAML: line {mark.line + 1}: {problem}", mark.line + 1)


def _line(found: Any) -> int:
    """Return the line of a node or an event, counted from 1."""
    return int(found.start_mark.line) + 1


def _check_depth(text: str) -> list[int]:
    """Count how deep it goes, and return the lines, from 0 on, on which its documents begin."""
    depth = 0
    begins = []
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise BadYaml(f"it is nested more than {MAX_DEPTH} deep", _line(event))
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.DocumentStartEvent):
                begins.append(_line(event) - 1)
    except yaml.YAMLError as error:
        raise _bad(error) from error
    return begins


def _pieces(text: str, begins: list[int]) -> list[str]:
    """Cut a stream into its documents; what stands before the first one belongs to it."""
    starts = [0, *(match.end() for match in _BREAK.finditer(text))]
    cuts = [0, *(starts[line] for line in begins[1:]), len(text)]
    return [text[begin:end] for begin, end in pairwise(cuts)][: len(begins)]


def _check_size(nodes: list[Any]) -> None:
    """Count what it comes to when every alias is written out; an alias may name what it is in."""
    known: dict[int, tuple[int, int]] = {}
    if sum(_measured(node, known, set())[0] for node in nodes) > MAX_VALUES:
        raise BadYaml(f"its aliases come to more than {MAX_VALUES:,} values")


def _measured(node: Any, known: dict[int, tuple[int, int]], open_ones: set[int]) -> tuple[int, int]:
    """Return how many values a node comes to, and how deep they go."""
    if isinstance(node, yaml.ScalarNode):
        return 1, 0
    if id(node) in known:
        return known[id(node)]
    line = _line(node)
    if id(node) in open_ones:
        raise BadYaml("an alias names what it stands in", line)
    open_ones.add(id(node))
    parts = [_measured(each, known, open_ones) for each in _parts(node)]
    open_ones.discard(id(node))
    depth = 1 + max((inner for _, inner in parts), default=0)
    if depth > MAX_DEPTH:
        raise BadYaml(f"it is nested more than {MAX_DEPTH} deep", line)
    known[id(node)] = 1 + sum(size for size, _ in parts), depth
    return known[id(node)]


def _parts(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    else:
        yield from node.value


class _Places:
    """Where the values of a document stand, and which keys stand twice."""

    def __init__(self, node: Any) -> None:
        self.lines: dict[Path, int] = {}
        self.repeated: list[Path] = []
        self._seen: set[int] = set()
        self._add(node, ())

    def _add(self, node: Any, path: Path) -> None:
        self.lines.setdefault(path, _line(node))
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._add_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for place, each in enumerate(node.value):
                self._add(each, (*path, place))

    def _add_mapping(self, node: Any, path: Path) -> None:
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            inner = (*path, key.value)
            if inner in self.lines:
                self.repeated.append(inner)
            self.lines[inner] = _line(key)
            self._add(value, inner)

"""The definitions that every tenant has: those that are built in, and those that plugins offer."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from ksi_agents.definition import Definition
from ksi_agents.documents import Parsed, parsed_of, read_document
from ksi_agents.events import Document, Problem
from ksi_agents.inheritance import extended
from ksi_daemon.protocol import Conflict, InvalidData

__all__ = ["VERSION", "Standing", "StandingDefinition"]

VERSION: Final = 1


class StandingDefinition(Struct, frozen=True):
    """A definition that nobody applied."""

    parsed: Parsed
    resolved: dict[str, Any]
    definition: Definition
    origin: Literal["built-in", "plugin"]


class Standing:
    """Knows them by name."""

    def __init__(self) -> None:
        self._known: dict[str, StandingDefinition] = {}
        for parsed in _built_in():
            self._add(parsed, "built-in")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._known)

    def find(self, name: str, version: int | None = None) -> StandingDefinition | None:
        """Return one; ``None`` where there is none of that name, or that version."""
        return self._known.get(name) if version in (None, VERSION) else None

    def all(self) -> tuple[StandingDefinition, ...]:
        """Return all of them."""
        return tuple(self._known.values())

    @contextmanager
    def offered(self, *definitions: Definition, provider: str) -> Iterator[None]:
        """Have more of them for as long as a block.

        Raises:
            InvalidData: One is not sound.
            Conflict: There is one of its name.
        """
        added: list[str] = []
        try:
            for definition in definitions:
                parsed, problems = parsed_of(definition, f"plugin {provider}")
                _refuse(problems)
                if definition.name in self._known:
                    raise Conflict(f"there is another agent {definition.name!r} that stands always")
                self._add(parsed, "plugin")
                added.append(definition.name)
            yield
        finally:
            for name in added:
                del self._known[name]

    def _add(self, parsed: Parsed, origin: Literal["built-in", "plugin"]) -> None:
        resolved = parsed.given
        base = parsed.given.get("extends")
        if base is not None:
            if base not in self._known:
                raise InvalidData(f"{parsed.name} extends {base}, which does not stand always")
            resolved = extended(parsed.given, self._known[base].resolved)
        definition = msgspec.convert(resolved, Definition)
        self._known[parsed.name] = StandingDefinition(parsed, resolved, definition, origin)


def _built_in() -> list[Parsed]:
    found: list[Parsed] = []
    folder = files(__package__) / "builtin"
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".md"):
            text = file.read_text(encoding="utf-8")
            parsed, problems = read_document(Document(text=text, path=file.name))
            _refuse(problems)
            found += parsed
    return found


def _refuse(problems: list[Problem]) -> None:
    for problem in problems:
        raise InvalidData(f"{problem.path}: {problem.field}: {problem.message}")

"""Reads the documents of patterns: YAML, of whoever wrote it."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from ksi_daemon.document_schema import document_schema
from ksi_daemon.fields import Fault, written
from ksi_daemon.yaml_text import BadYaml, Path, YamlDocument, read_yaml_documents
from ksi_orchestration.checks import faults_of
from ksi_orchestration.events import PatternProblem
from ksi_orchestration.pattern import Pattern

__all__ = ["Read", "full", "json_schema", "read_made", "read_patterns", "told"]

MAX_PATTERNS: Final = 100


class Read(Struct, frozen=True):
    """A pattern that is sound, its own text, and where it comes from."""

    pattern: Pattern
    text: str
    path: str


def read_patterns(text: str, path: str) -> tuple[list[Read], list[PatternProblem]]:
    """Return the patterns of a document, and what is wrong with those that are not sound."""
    try:
        documents = read_yaml_documents(text.removeprefix("\ufeff"))
    except BadYaml as error:
        return [], [PatternProblem(path=path, message=str(error), line=error.line)]
    documents = [each for each in documents if each.value is not None]
    if not documents:
        return [], [PatternProblem(path=path, message="it holds no pattern")]
    found: list[Read] = []
    problems: list[PatternProblem] = []
    for document in documents[:MAX_PATTERNS]:
        faults = _faults(document)
        problems += [_problem(path, document.lines, fault) for fault in faults]
        if not faults:
            found.append(Read(msgspec.convert(document.value, Pattern), document.text, path))
    if len(documents) > MAX_PATTERNS:
        message = f"it holds more than {MAX_PATTERNS} patterns"
        problems.append(PatternProblem(path=path, message=message))
    return found, problems


def read_made(pattern: Pattern, path: str) -> tuple[list[Read], list[PatternProblem]]:
    """Return a pattern that was made in Python as if it stood in a document."""
    given = msgspec.json.decode(msgspec.json.encode(pattern))
    return read_patterns(yaml.safe_dump(given, sort_keys=False, allow_unicode=True), path)


def _faults(document: YamlDocument) -> list[Fault]:
    if not isinstance(document.value, dict):
        return [Fault((), "a pattern is a mapping of fields, such as name: debate")]
    repeated = [Fault(path, "it stands twice") for path in document.repeated]
    return repeated + faults_of(document.value)


def _problem(path: str, lines: Mapping[Path, int], fault: Fault) -> PatternProblem:
    place = fault.path
    while place and place not in lines:
        place = place[:-1]
    return PatternProblem(
        path=path, message=fault.message, line=lines.get(place), field=written(fault.path)
    )


def told(problem: PatternProblem) -> str:
    """Write a problem as one line: file, line, field, what is wrong."""
    where = problem.path if problem.line is None else f"{problem.path}:{problem.line}"
    field = f"{problem.field}: " if problem.field else ""
    return f"{where}: {field}{problem.message}"


@cache
def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a pattern; what a field is for is told where an editor shows it."""
    return document_schema(Pattern, "A pattern of KSI")


def full(value: Any) -> Any:
    """Return a pattern with every default, as plain values."""
    if isinstance(value, Struct):
        fields = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        return {encoded: full(getattr(value, name)) for name, encoded in fields}
    if isinstance(value, dict):
        return {key: full(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [full(each) for each in value]
    return value

"""Reads documents of definitions: Markdown with front matter, YAML, JSON."""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from ksi_agents.definition import Definition
from ksi_agents.events import Document, Format, Problem
from ksi_agents.fields import faults_of
from ksi_daemon.fields import Fault, written
from ksi_daemon.yaml_text import BadYaml, Path, YamlDocument, read_yaml_documents

__all__ = ["Parsed", "parsed_of", "read_document"]

FORMATS: Final[Mapping[str, Format]] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
}
MAX_DEFINITIONS: Final = 1000
PROMPT: Final = ("prompt",)

_FRONT: Final = re.compile(r"---[ \t]*\r?\n(?P<front>.*?\r?\n|)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BEGIN: Final = re.compile(r"\A\s*---[ \t]*$", re.MULTILINE)
_AT_BYTE: Final = re.compile(r"\(byte (\d+)\)")


class Parsed(Struct, frozen=True, kw_only=True):
    """A definition as a document gives it: sound by itself, whatever it extends.

    Attributes:
        name: Its name.
        given: Its own fields, as plain values.
        text: Its own text.
        format: What that is.
        path: Where the text comes from.
        lines: On which line each field stands.
    """

    name: str
    given: dict[str, Any]
    text: str
    format: Format
    path: str
    lines: dict[Path, int]

    def problem(self, message: str, *path: str | int, is_warning: bool = False) -> Problem:
        """Say that something is wrong with a field."""
        return _problem(self.path, self.lines, Fault(path, message), is_warning=is_warning)


class _Raw(Struct, frozen=True):
    """What a document holds, before anything is known of its fields."""

    value: Any
    text: str
    lines: dict[Path, int]
    repeated: tuple[Path, ...] = ()


class _Malformed(Exception):
    """The document can't be read; the message says why."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def read_document(document: Document) -> tuple[list[Parsed], list[Problem]]:
    """Return the definitions of a document, and what is wrong with those that are not sound."""
    kind = document.format or _format_of(document)
    text = document.text.removeprefix("\ufeff")
    try:
        found = _READERS[kind](text)
    except _Malformed as error:
        return [], [Problem(path=document.path, message=str(error), line=error.line)]
    if not found:
        return [], [Problem(path=document.path, message="it holds no definition")]
    parsed: list[Parsed] = []
    problems: list[Problem] = []
    for raw in found[:MAX_DEFINITIONS]:
        faults = _faults(raw)
        problems += [_problem(document.path, raw.lines, fault) for fault in faults]
        if not faults:
            parsed.append(
                Parsed(
                    name=raw.value["name"],
                    given=raw.value,
                    text=raw.text,
                    format=kind,
                    path=document.path,
                    lines=raw.lines,
                )
            )
    if len(found) > MAX_DEFINITIONS:
        message = f"it holds more than {MAX_DEFINITIONS} definitions"
        problems.append(Problem(path=document.path, message=message))
    return parsed, problems


def parsed_of(definition: Definition, path: str) -> tuple[Parsed, list[Problem]]:
    """Return a definition that was made in Python as if it stood in a document."""
    given = msgspec.json.decode(msgspec.json.encode(definition))
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    made = Parsed(name=definition.name, given=given, text=text, format="yaml", path=path, lines={})
    return made, [_problem(path, {}, fault) for fault in faults_of(given)]


def _format_of(document: Document) -> Format:
    known = FORMATS.get(PurePosixPath(document.path).suffix.lower())
    if known is not None:
        return known
    text = document.text.removeprefix("\ufeff").lstrip()
    if text.startswith("{"):
        return "json"
    return "markdown" if text.startswith("---") else "yaml"


def _faults(raw: _Raw) -> list[Fault]:
    if not isinstance(raw.value, dict):
        return [Fault((), "a definition is a mapping of fields, such as name: helper")]
    repeated = [Fault(path, "it stands twice") for path in raw.repeated]
    return repeated + faults_of(raw.value)


def _problem(
    path: str, lines: Mapping[Path, int], fault: Fault, *, is_warning: bool = False
) -> Problem:
    place = fault.path
    while place and place not in lines:
        place = place[:-1]
    return Problem(
        path=path,
        message=fault.message,
        line=lines.get(place),
        field=written(fault.path),
        is_warning=is_warning,
    )


# -- formats --------------------------------------------------------------------------------------


def _read_yaml(text: str) -> list[_Raw]:
    return [
        _Raw(each.value, _alone(each.text), each.lines, each.repeated)
        for each in _documents(text)
        if each.value is not None
    ]


def _alone(text: str) -> str:
    """Return a document of a stream as it would stand by itself, wherever in it that is."""
    return f"{_BEGIN.sub('', text).strip()}\n"


def _documents(text: str) -> list[YamlDocument]:
    try:
        return read_yaml_documents(text)
    except BadYaml as error:
        raise _Malformed(str(error), error.line) from error


def _read_json(text: str) -> list[_Raw]:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise _Malformed(f"it is no JSON: {error}", _line_of(text, str(error))) from error
    except RecursionError as error:
        raise _Malformed("it is nested too deep") from error
    try:
        # JSON is YAML, but for a few characters; where it can't be read as such no line is named.
        (placed,) = read_yaml_documents(text)
    except ValueError:
        return [_Raw(value, text, {})]
    return [_Raw(value, text, placed.lines, placed.repeated)]


def _line_of(text: str, message: str) -> int:
    found = _AT_BYTE.search(message)
    if found is None:
        return text.count("\n") + 1  # it ends too soon
    return text.encode("utf-8", "replace")[: int(found[1])].count(b"\n") + 1


def _read_markdown(text: str) -> list[_Raw]:
    front = _FRONT.match(text)
    if front is None:
        message = "it begins with front matter: between two lines of --- its name at least"
        raise _Malformed(message, 1)
    # The line of --- is kept for the count, as a comment.
    documents = [each for each in _documents(f"#\n{front['front']}") if each.value is not None]
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise _Malformed("its front matter is a mapping of fields, such as name: helper", 2)
    value, lines = documents[0].value, documents[0].lines
    body = text[front.end() :].replace("\r\n", "\n").strip()
    if not body:
        return [_Raw(value, text, lines, documents[0].repeated)]
    if "prompt" in value:
        raise _Malformed("its prompt stands in the front matter and as the body", lines[PROMPT])
    begin = text[: front.end()].count("\n") + 1
    return [_Raw({**value, "prompt": body}, text, {**lines, PROMPT: begin}, documents[0].repeated)]


_READERS: Final[Mapping[Format, Callable[[str], list[_Raw]]]] = {
    "markdown": _read_markdown,
    "yaml": _read_yaml,
    "json": _read_json,
}

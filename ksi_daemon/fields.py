"""Holds the fields of a document to those of a Struct, and names each that does not fit.

A document is plain values, as JSON or YAML has them, of whoever wrote it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jsonschema_rs
import msgspec
from msgspec import Struct, inspect

from ksi_daemon.protocol.names import did_you_mean
from ksi_daemon.yaml_text import Path

__all__ = ["Fault", "Fields", "first_line", "why_no_schema", "written"]

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 50
MAX_INTEGER: Final = 2**63
MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_TOLD_CHARACTERS: Final = 500

_TOLD: Final = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_STEP: Final = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<place>\d+)\]")

# Schemas come from strangers: their patterns are matched in linear time, by an engine that knows no
# look-around, and what they refer to elsewhere is not fetched.
_PATTERNS: Final = jsonschema_rs.RegexOptions()


class Fault(Struct, frozen=True):
    """What does not fit, at the field that a path leads to."""

    path: Path
    message: str


def written(path: Path) -> str:
    """Write the path of a field: ``probes[0].prompt``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def first_line(error: object) -> str:
    """Return the first line of what an error says, at a length that can be told."""
    return (str(error).splitlines() or [""])[0][:MAX_TOLD_CHARACTERS]


def why_no_schema(schema: dict[str, Any]) -> str:
    """Say why something is no sound JSON Schema; an empty string where it is one."""
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        return f"the schema is larger than {MAX_SCHEMA_BYTES} bytes"
    try:
        jsonschema_rs.validator_for(schema, pattern_options=_PATTERNS, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # its ValidationError is one
        return f"it is no sound JSON Schema: {first_line(error)}"
    return ""


class Fields:
    """The fields that a kind of document may have.

    Args:
        struct: What they are made of.
        what: What such a document is called: ``definition``.
        patterns: What is said, instead of a pattern, where a text does not match it.
    """

    def __init__(
        self, struct: type[Struct], what: str, patterns: Mapping[str, str] | None = None
    ) -> None:
        self._type = _struct_type(struct)
        self._what = what
        # Errors have a pattern as Python writes it.
        self._patterns = {repr(each)[1:-1]: told for each, told in (patterns or {}).items()}

    def faults(self, given: dict[str, Any]) -> list[Fault]:
        """Return what is wrong with the names, the types and the bounds of fields.

        Where it is nothing, they can be converted to the Struct.
        """
        faults = list(self._impure(given, ()))
        if faults:
            return faults
        if len(msgspec.json.encode(given)) > MAX_BYTES:
            return [Fault((), f"it comes to more than {MAX_BYTES:,} bytes")]
        return [*_unknown(given, self._type, ()), *self._misfits(given, self._type, ())]

    # -- values ---------------------------------------------------------------------------------

    def _impure(self, value: Any, path: Path) -> Iterator[Fault]:
        """Yield what JSON, or the store, has no word for."""
        if len(path) > MAX_DEPTH:
            yield Fault(path, f"it is nested more than {MAX_DEPTH} deep")
        elif isinstance(value, dict):
            for key, each in value.items():
                if isinstance(key, str) and not self._why_impure(key):
                    yield from self._impure(each, (*path, key))
                else:
                    yield Fault(path, f"{key!r:.100} is no key: write it in quotes")
        elif isinstance(value, list):
            for place, each in enumerate(value):
                yield from self._impure(each, (*path, place))
        elif why := self._why_impure(value):
            yield Fault(path, why)

    def _why_impure(self, value: Any) -> str:
        if isinstance(value, str):
            return "" if _is_text(value) else "it has characters that are no text"
        if value is None or isinstance(value, bool):
            return ""
        if isinstance(value, int):
            return "" if abs(value) < MAX_INTEGER else "the number is too large"
        if isinstance(value, float):
            return "" if math.isfinite(value) else f"{value} is no number"
        return f"a {type(value).__name__} is no value of a {self._what}"

    # -- types ----------------------------------------------------------------------------------

    def _misfits(
        self, given: dict[str, Any], kind: inspect.StructType, path: Path
    ) -> Iterator[Fault]:
        """Yield the first thing that does not fit in each field."""
        for field, hint in zip(kind.fields, msgspec.structs.fields(kind.cls), strict=True):
            name = field.encode_name
            if name in given:
                yield from self._misfit(given[name], field.type, hint.type, (*path, name))
            elif field.required:
                yield Fault(path, f"it has no {name}")

    def _misfit(self, value: Any, kind: inspect.Type, hint: Any, path: Path) -> Iterator[Fault]:
        try:
            msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            inner = list(self._inner_misfits(value, kind, path))
            yield from inner or [self._told(error, kind, path)]

    def _inner_misfits(self, value: Any, kind: inspect.Type, path: Path) -> Iterator[Fault]:
        """Yield what does not fit in each Struct of a list or a mapping."""
        if isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
            parts: list[tuple[str | int, Any]] = list(enumerate(value))
            inner = kind.item_type
        elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
            parts, inner = list(value.items()), kind.value_type
        else:
            return
        if isinstance(inner, inspect.StructType):
            for step, each in parts:
                if isinstance(each, dict):
                    yield from self._misfits(each, inner, (*path, step))

    def _told(self, error: msgspec.ValidationError, kind: inspect.Type, path: Path) -> Fault:
        match = _TOLD.fullmatch(str(error))
        assert match is not None  # it matches anything
        inner: Path = ()
        for step in _STEP.finditer((match["path"] or "").partition("[...]")[0]):
            inner = (*inner, step["key"] if step["place"] is None else int(step["place"]))
        what = match["what"]
        found = _type_at(kind, inner)
        told = next((each for text, each in self._patterns.items() if text in what), None)
        if told is not None:
            what = told
        elif what.startswith("Invalid enum value") and isinstance(found, inspect.LiteralType):
            what = f"{what}: write {' or '.join(map(str, found.values))}"
        return Fault((*path, *inner), f"{what[:1].lower()}{what[1:]}"[:MAX_TOLD_CHARACTERS])


def _struct_type(struct: type[Struct]) -> inspect.StructType:
    kind = inspect.type_info(struct)
    assert isinstance(kind, inspect.StructType)
    return kind


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _unknown(value: Any, kind: inspect.Type, path: Path) -> Iterator[Fault]:
    """Yield the fields that there are none of."""
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            if isinstance(each, inspect.StructType | inspect.VarTupleType | inspect.DictType):
                yield from _unknown(value, each, path)
    elif isinstance(kind, inspect.StructType) and isinstance(value, dict):
        yield from _unknown_of(value, kind, path)
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for place, each in enumerate(value):
            yield from _unknown(each, kind.item_type, (*path, place))
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for key, each in value.items():
            yield from _unknown(each, kind.value_type, (*path, key))


def _unknown_of(value: dict[str, Any], kind: inspect.StructType, path: Path) -> Iterator[Fault]:
    known = {field.encode_name: field.type for field in kind.fields}
    for key, each in value.items():
        if key in known:
            yield from _unknown(each, known[key], (*path, key))
        else:
            hint = did_you_mean(key, known) or f"; there are {', '.join(known)}"
            yield Fault((*path, key), f"there is no field {key!r:.100}{hint}")


def _type_at(kind: inspect.Type, path: Path) -> inspect.Type:
    """Return the type of what a path leads to, as far as it is known."""
    for step in path:
        if isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        elif isinstance(kind, inspect.StructType):
            kind = next((f.type for f in kind.fields if f.encode_name == step), inspect.AnyType())
    if isinstance(kind, inspect.UnionType):
        literals = [each for each in kind.types if isinstance(each, inspect.LiteralType)]
        return literals[0] if literals else kind
    return kind

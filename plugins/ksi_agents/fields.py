"""Holds the fields of a document to what a definition may say, and names each that does not fit."""

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import jsonschema_rs
import msgspec
from msgspec import Struct, inspect

from ksi_agents.definition import Definition, Probe, Restart, Wake
from ksi_agents.events import NAME_PATTERN
from ksi_daemon.protocol import InvalidData
from ksi_daemon.protocol.names import did_you_mean
from ksi_daemon.yaml_text import Path
from ksi_workflows.api import next_time

__all__ = ["Fault", "faults_of", "written"]

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 50
MAX_INTEGER: Final = 2**63
MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_TOLD_CHARACTERS: Final = 500
MAX_FAULTS: Final = 100

_TOLD: Final = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?", re.DOTALL)
_STEP: Final = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<place>\d+)\]")
_NAME: Final = (
    "a name is made of small letters, digits, '.', '-' and '_', 63 at most, and begins and ends "
    "with a letter or digit"
)
_TYPE: Final = inspect.type_info(Definition)

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


def faults_of(given: dict[str, Any]) -> list[Fault]:
    """Return what is wrong with the fields of a definition; none where they are sound."""
    faults = list(_impure(given, ()))
    if faults:
        return faults[:MAX_FAULTS]
    if len(msgspec.json.encode(given)) > MAX_BYTES:
        return [Fault((), f"it comes to more than {MAX_BYTES:,} bytes")]
    faults = [*_unknown(given, _TYPE, ()), *_misfits(given)]
    return (faults or list(_unsound(msgspec.convert(given, Definition))))[:MAX_FAULTS]


def _impure(value: Any, path: Path) -> Iterator[Fault]:
    """Yield what JSON, or the store, has no word for."""
    if len(path) > MAX_DEPTH:
        yield Fault(path, f"it is nested more than {MAX_DEPTH} deep")
    elif isinstance(value, dict):
        for key, each in value.items():
            if isinstance(key, str) and not _why_impure(key):
                yield from _impure(each, (*path, key))
            else:
                yield Fault(path, f"{key!r:.100} is no key: write it in quotes")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _impure(each, (*path, place))
    elif why := _why_impure(value):
        yield Fault(path, why)


def _why_impure(value: Any) -> str:
    if isinstance(value, str):
        return "" if _is_text(value) else "it has characters that are no text"
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if abs(value) < MAX_INTEGER else "the number is too large"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is no number"
    return f"a {type(value).__name__} is no value of a definition"


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


# -- names of fields ------------------------------------------------------------------------------


def _unknown(value: Any, kind: inspect.Type, path: Path) -> Iterator[Fault]:
    """Yield the fields that there are none of."""
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            if isinstance(each, inspect.StructType | inspect.VarTupleType):
                yield from _unknown(value, each, path)
    elif isinstance(kind, inspect.StructType) and isinstance(value, dict):
        known = {field.name: field.type for field in kind.fields}
        for key, each in value.items():
            if key in known:
                yield from _unknown(each, known[key], (*path, key))
            else:
                hint = did_you_mean(key, known) or f"; there are {', '.join(known)}"
                yield Fault((*path, key), f"there is no field {key!r:.100}{hint}")
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for place, each in enumerate(value):
            yield from _unknown(each, kind.item_type, (*path, place))


# -- types ----------------------------------------------------------------------------------------


def _misfits(given: dict[str, Any]) -> Iterator[Fault]:
    """Yield the first thing that does not fit in each field."""
    assert isinstance(_TYPE, inspect.StructType)
    for field, hint in zip(_TYPE.fields, msgspec.structs.fields(Definition), strict=True):
        if field.name in given:
            try:
                msgspec.convert(given[field.name], hint.type)
            except msgspec.ValidationError as error:
                yield _told(error, field)
        elif field.required:
            yield Fault((), f"it has no {field.name}")


def _told(error: msgspec.ValidationError, field: inspect.Field) -> Fault:
    match = _TOLD.fullmatch(str(error))
    assert match is not None  # it matches anything
    path: Path = (field.name,)
    for step in _STEP.finditer((match["path"] or "").partition("[...]")[0]):
        path = (*path, step["key"] if step["place"] is None else int(step["place"]))
    what = match["what"]
    kind = _type_at(field.type, path[1:])
    if NAME_PATTERN in what:
        what = _NAME
    elif what.startswith("Invalid enum value") and isinstance(kind, inspect.LiteralType):
        what = f"{what}: write {' or '.join(map(str, kind.values))}"
    return Fault(path, f"{what[:1].lower()}{what[1:]}"[:MAX_TOLD_CHARACTERS])


def _type_at(kind: inspect.Type, path: Path) -> inspect.Type:
    """Return the type of what a path leads to, as far as it is known."""
    for step in path:
        if isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        elif isinstance(kind, inspect.StructType):
            kind = next((f.type for f in kind.fields if f.name == step), inspect.AnyType())
    if isinstance(kind, inspect.UnionType):
        literals = [each for each in kind.types if isinstance(each, inspect.LiteralType)]
        return literals[0] if literals else kind
    return kind


# -- sense ----------------------------------------------------------------------------------------


def _unsound(definition: Definition) -> Iterator[Fault]:
    """Yield what fits by its type, and makes no sense."""
    for path, name in _names(definition):
        if name.endswith("\n"):  # a pattern's end lets it pass
            yield Fault(path, "it ends with a line break")
    if definition.extends == definition.name:
        yield Fault(("extends",), "it can't extend itself")
    for name in ("input", "output"):
        why = _why_no_schema(getattr(definition, name))
        if why:
            yield Fault((name,), why)
    yield from _unsound_restart(definition.restart)
    for place, wake in enumerate(definition.schedule):
        yield from _unsound_wake(wake, ("schedule", place))
    for place, probe in enumerate(definition.probes):
        yield from _unsound_probe(probe, ("probes", place))


def _names(definition: Definition) -> Iterator[tuple[Path, str]]:
    yield ("name",), definition.name
    yield ("extends",), definition.extends or ""
    yield ("permissions",), definition.permissions
    yield from ((("tools", place), each) for place, each in enumerate(definition.tools or ()))
    yield from ((("deny", place), each) for place, each in enumerate(definition.deny))
    for place, wake in enumerate(definition.schedule):
        yield ("schedule", place, "event"), wake.event or ""


def _why_no_schema(schema: dict[str, Any] | None) -> str:
    if schema is None:
        return ""
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        return f"the schema is larger than {MAX_SCHEMA_BYTES} bytes"
    try:
        jsonschema_rs.validator_for(schema, pattern_options=_PATTERNS, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # its ValidationError is one
        return f"it is no sound JSON Schema: {_first_line(error)}"
    return ""


def _unsound_restart(restart: Restart) -> Iterator[Fault]:
    if restart.max_delay_s < restart.delay_s:
        yield Fault(("restart",), "max_delay_s is shorter than delay_s")


def _unsound_wake(wake: Wake, path: Path) -> Iterator[Fault]:
    if (wake.cron is None) == (wake.event is None):
        yield Fault(path, "it has either a cron or an event")
    elif wake.cron is not None:
        try:
            next_time(wake.cron, wake.timezone, datetime.now(UTC))
        except InvalidData as error:
            is_zone = "time zone" in error.message
            yield Fault((*path, "timezone" if is_zone else "cron"), _first_line(error.message))


def _unsound_probe(probe: Probe, path: Path) -> Iterator[Fault]:
    for name in ("prompt", "expect"):
        is_there = getattr(probe, name) is not None
        if probe.kind == "custom" and not is_there:
            yield Fault(path, f"a custom probe needs its own {name}")
        elif probe.kind != "custom" and is_there:
            yield Fault((*path, name), f"a probe of kind {probe.kind} has no {name} of its own")


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [""])[0][:MAX_TOLD_CHARACTERS]

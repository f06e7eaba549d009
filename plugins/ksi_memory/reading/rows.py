"""Reads rows of YAML, JSON and lines of JSON, each of which becomes an item.

What a file may hold: a list of rows; rows by their keys; ``{table: …, items: [rows]}``; or lists of
rows by their tables. A row's own fields are those of an item; whatever else it has are attributes.
"""

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from ksi_memory.events import Edge, NewItem
from ksi_memory.reading import plain
from ksi_memory.reading.document import Row, Rows, Unreadable
from ksi_memory.reading.text import decoded
from ksi_memory.reading.yaml_text import read_yaml

__all__ = ["are_plainly_rows", "read_rows", "values_of"]

MAX_ROWS: Final = 200_000
KEYS: Final = ("key", "name", "id")
LISTS: Final = ("items", "rows")
TIMES: Final = ("starts_at", "ends_at", "valid_from")
TEXTS: Final = ("title", "body", "category", "session", "owner")
ALIASES: Final = {"text": "body", "content": "body", "description": "body", "label": "title"}
# What a person may write; where an item comes from is the file.
FIELDS: Final = frozenset({*TIMES, *TEXTS, "persons", "place", "edges", "attributes"})


def values_of(data: bytes, name: str) -> list[Any]:
    """Return the documents, or lines, of a file by its name's ending.

    Raises:
        Unreadable: It is not what its name says.
    """
    text = decoded(data)
    if name.endswith((".jsonl", ".ndjson")):
        return [[_line(line, number) for number, line in _lines(text)]]
    if name.endswith(".json"):
        return [_json(text)]
    return read_yaml(text)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _line(line: str, number: int) -> Any:
    """Return what a line holds; one that is none spoils no other."""
    try:
        return _json(line)
    except Unreadable as error:
        return _Broken(f"line {number}: {error}")


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Unreadable(f"it is no JSON: {error}") from error


def are_plainly_rows(values: list[Any]) -> bool:
    """Say whether there are lists of rows alone, each of which has a field ``key``."""
    return bool(values) and all(
        isinstance(value, list) and value and all(_bears_key(row) for row in value)
        for value in values
    )


def _bears_key(row: Any) -> bool:
    return isinstance(row, _Broken) or (isinstance(row, dict) and bool(row.get("key")))


def read_rows(values: list[Any], table: str = "") -> Rows | None:
    """Make rows of what a file holds; ``None`` where it holds none.

    Args:
        values: Its documents.
        table: The table that was asked for; without it the file must name one.

    Raises:
        Unreadable: There are too many.
    """
    found: list[Row] = []
    for value in values:
        rows = _rows_of(value, table)
        if rows is None:
            return None
        first = len(found)
        found += [
            _row(first + at, to_table, key, row) for at, (to_table, key, row) in enumerate(rows)
        ]
        if len(found) > MAX_ROWS:
            raise Unreadable(f"it has more than {MAX_ROWS:,} rows: split it")
    return Rows(rows=tuple(found)) if found else None


class _Broken(Struct, frozen=True):
    """A line that can't be read."""

    why: str


_Raw: TypeAlias = tuple[str, str, dict[Any, Any]]


def _rows_of(value: Any, table: str) -> list[_Raw] | None:
    """Return the rows of a document, each with its table and, if it stood before it, its key."""
    if isinstance(value, list):
        if value and not table and all(isinstance(each, _Broken) for each in value):
            return None
        rows = [_with_table(each, table) for each in value]
        return [row for row in rows if row is not None] if None not in rows else None
    if not isinstance(value, dict):
        return None
    listed = next((value[name] for name in LISTS if isinstance(value.get(name), list)), None)
    if listed is not None and (table or isinstance(value.get("table"), str)):
        return _rows_of(listed, table or value["table"])
    if _key_in(value) and (table or isinstance(value.get("table"), str)):
        row = _with_table(value, table)
        return None if row is None else [row]
    return _by_name(value, table)


def _by_name(value: dict[Any, Any], table: str) -> list[_Raw] | None:
    if not value or not all(isinstance(name, str) for name in value):
        return None
    if table and all(isinstance(each, dict) for each in value.values()):
        return [(table, name, each) for name, each in value.items()]
    if all(isinstance(each, list) and each for each in value.values()) and not table:
        found: list[_Raw] = []
        for name, listed in value.items():
            rows = [(name, "", each) for each in listed if isinstance(each, dict) and _key_in(each)]
            if len(rows) < len(listed):
                return None
            found += rows
        return found
    return None


def _with_table(row: Any, table: str) -> _Raw | None:
    if not isinstance(row, dict):  # told of as what it is, below
        return (table, "", {"": row}) if table or isinstance(row, _Broken) else None
    named = row.get("table")
    if table:
        return table, "", row
    return (named, "", row) if isinstance(named, str) and _key_in(row) else None


def _key_in(row: dict[Any, Any]) -> bool:
    return any(row.get(name) not in (None, "") for name in KEYS)


def _row(place: int, table: str, key: str, given: dict[Any, Any]) -> Row:
    """Make an item of a row, or say why it can't be one."""
    shown = key or f"row {place}"
    try:
        fields = {plain.text_of(name): value for name, value in given.items()}
        if "" in fields:
            what = fields[""]
            why = what.why if isinstance(what, _Broken) else "it is no row: a row has fields"
            raise Unreadable(why)
        fields.pop("table", None)
        key, fields = _keyed(key, fields)
        shown = key
        return Row(place=place, key=key, table=table, item=_item(key, fields))
    except (Unreadable, RecursionError) as error:
        return Row(place=place, key=shown[:200], table=table, why=str(error))
    except msgspec.ValidationError as error:
        return Row(place=place, key=shown[:200], table=table, why=str(error))


def _keyed(key: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if key:
        return key, fields
    name = next((name for name in KEYS if fields.get(name) not in (None, "")), None)
    if name is None:
        raise Unreadable("it has no key: name it in 'key', 'name' or 'id'")
    found = plain.text_of(fields[name]).strip()
    if not found:
        raise Unreadable("its key is empty")
    rest = {each: value for each, value in fields.items() if each != name}
    if name == "name":
        rest.setdefault("title", found)
    return found, rest


def _item(key: str, fields: dict[str, Any]) -> NewItem:
    known: dict[str, Any] = {"key": key}
    attributes: dict[str, Any] = {}
    for name, value in fields.items():
        field = name if name in FIELDS else ALIASES.get(name, "")
        if field and field not in fields.keys() - {name}:
            known[field] = _field(field, value)
        else:
            attributes[name] = plain.plain(value)
    if "edges" in known:
        known["edges"] = known["edges"] or ()
    if attributes or "attributes" in known:
        given = known.pop("attributes", None)
        if given is not None and not isinstance(given, dict):
            raise Unreadable("its attributes are no table of names and values")
        known["attributes"] = {**(given or {}), **attributes}
    return msgspec.convert(known, NewItem)


def _field(field: str, value: Any) -> Any:
    if value is None:
        return None if field != "owner" else ""
    if field in TIMES:
        found = plain.time_of(value, field)
        if found is None:
            raise Unreadable(f"{field}: {str(value)[:40]!r} is no time; write 2024-05-01T12:00:00Z")
        return found
    if field in TEXTS:
        return plain.text_of(value)
    if field == "persons":
        return plain.names_of(value)
    if field == "edges":
        return tuple(_edges(value))
    return plain.plain(value)


def _edges(value: Any) -> Iterator[Edge]:
    """Yield edges as they are written: a list of keys or of edges, or keys by relation."""
    if isinstance(value, dict) and "to" not in value:
        for relation, targets in value.items():
            for target in targets if isinstance(targets, list) else [targets]:
                yield _edge(target, plain.text_of(relation))
        return
    for each in value if isinstance(value, list) else [value]:
        yield _edge(each)


def _edge(value: Any, relation: str = "") -> Edge:
    given = dict(value) if isinstance(value, dict) else {"to": plain.text_of(value)}
    if relation:
        given["relation"] = relation
    if "type" in given:
        given.setdefault("relation", given.pop("type"))
    unknown = given.keys() - set(Edge.__struct_fields__)
    if unknown:
        raise Unreadable(f"an edge has {', '.join(sorted(map(str, unknown)))}, which is unknown")
    if isinstance(given.get("to"), int | float):
        given["to"] = plain.text_of(given["to"])
    return msgspec.convert(given, Edge)

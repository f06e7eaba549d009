"""The JSON Schema of a kind of document, for editors: what each field is for is told in it."""

import re
from collections.abc import Iterator
from inspect import getdoc
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

from ksi_daemon.schemas import with_common_patterns

__all__ = ["document_schema"]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_ATTRIBUTE: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def document_schema(struct: type[Struct], title: str) -> dict[str, Any]:
    """Return the schema of documents with the fields of a Struct, described by its docstrings."""
    schema = with_common_patterns(msgspec.json.schema(struct))
    parts: dict[str, Any] = schema["$defs"]
    for each in {*_structs(inspect.type_info(struct))}:
        _describe(parts[each.__name__], each)
    top = parts.pop(struct.__name__)
    return {"$schema": DIALECT, **top, "title": title, "$defs": parts}


def _structs(kind: inspect.Type) -> Iterator[type[Struct]]:
    """Yield the Structs that something is made of; none of them is made of itself."""
    if isinstance(kind, inspect.StructType):
        yield kind.cls
        for field in kind.fields:
            yield from _structs(field.type)
    elif isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _structs(each)
    elif isinstance(kind, inspect.VarTupleType):
        yield from _structs(kind.item_type)
    elif isinstance(kind, inspect.DictType):
        yield from _structs(kind.value_type)


def _describe(part: dict[str, Any], struct: type[Struct]) -> None:
    doc = getdoc(struct) or ""
    part["additionalProperties"] = False
    part["description"] = _plain(doc.partition("\n\n")[0])
    names = dict(zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True))
    for field, text in _ATTRIBUTE.findall(doc):
        name = names[field]
        part["properties"][name] = {**part["properties"][name], "description": _plain(text)}


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")

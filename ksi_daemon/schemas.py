"""The JSON Schemas of events, made of the types that their handlers declare."""

from typing import Any

import msgspec

from ksi_daemon.routes import Route

Schema = dict[str, Any]


def schema_of(kind: Any) -> Schema | None:
    """Return the JSON Schema (draft 2020-12) of a type, or ``None`` for plain data."""
    if kind is Any:
        return None
    try:
        schema: Schema = with_common_patterns(msgspec.json.schema(kind))
    except TypeError:
        return None  # a type that msgspec can decode by a hook only
    return schema


def with_common_patterns(schema: Any) -> Any:
    r"""Return a schema with its patterns as everybody reads them.

    Ours end with ``\Z``, as Python's ``$`` also matches before a line break at the end; elsewhere
    ``$`` does not, and ``\Z`` is a letter.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(with_common_patterns(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    common = {name: with_common_patterns(part) for name, part in schema.items()}
    pattern = common.get("pattern")
    if isinstance(pattern, str) and pattern.endswith(r"\Z"):
        start = r"\A" if pattern.startswith(r"\A") else "^"
        common["pattern"] = f"^{pattern.removeprefix(start)[:-2]}$"
    return common


def schemas_of(route: Route) -> tuple[Schema | None, Schema | None]:
    """Return the schemas of a route's payload and of its answer, or of one chunk of it."""
    data = route.data_schema or schema_of(route.data_type)
    result = route.result_schema or schema_of(route.result_type)
    return data, result

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
        return msgspec.json.schema(kind)
    except TypeError:
        return None  # a type that msgspec can decode by a hook only


def schemas_of(route: Route) -> tuple[Schema | None, Schema | None]:
    """Return the schemas of a route's payload and of its answer, or of one chunk of it."""
    data = route.data_schema or schema_of(route.data_type)
    result = route.result_schema or schema_of(route.result_type)
    return data, result

"""JSON Schemas of arguments: what they look like to models, and what holds arguments to them."""

from collections.abc import Callable
from typing import Any, Final

import jsonschema_rs
import msgspec

from ksi_daemon.protocol import InvalidData

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_TOLD_CHARS: Final = 500

# Schemas come from strangers: their patterns are matched in linear time, by an engine that knows no
# look-around, and what they refer to elsewhere is not fetched.
_PATTERNS: Final = jsonschema_rs.RegexOptions()


def checker_of(name: str, schema: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what holds arguments to a schema and hands them on.

    Raises:
        InvalidData: It is no schema of an object, or too large.
    """
    if schema.get("type") != "object":
        raise InvalidData(f"the schema of {name} is to be that of an object")
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidData(f"the schema of {name} is larger than {MAX_SCHEMA_BYTES} bytes")
    try:
        validator = jsonschema_rs.validator_for(schema, pattern_options=_PATTERNS, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # its ValidationError is one
        told = str(error).splitlines()[0][:MAX_TOLD_CHARS]
        raise InvalidData(f"the schema of {name} is not sound: {told}") from error

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            validator.validate(arguments)
        except jsonschema_rs.ValidationError as error:
            path = "$" + "".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path
            )
            raise InvalidData(
                f"the arguments of {name}: {error.message[:MAX_TOLD_CHARS]} at {path}",
                details={"kind": "arguments", "path": path},
            ) from error
        return arguments

    return check


def flattened(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Put the object itself at the top of a schema that only refers to it: models want it so."""
    own = schema.get("$ref", "").removeprefix("#/$defs/")
    if own in definitions:
        schema = definitions[own]
        others = {key: value for key, value in definitions.items() if key != own}
        if f'"#/$defs/{own}"'.encode() not in msgspec.json.encode([schema, others]):
            definitions = others
    kept = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {**kept, "$defs": definitions} if definitions else kept

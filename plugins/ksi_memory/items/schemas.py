"""Holds the items of registered tables to their schemas."""

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import jsonschema_rs
import msgspec

from ksi_daemon.protocol import InvalidData, NotFound
from ksi_daemon.protocol.names import did_you_mean
from ksi_memory.items.ids import item_id
from ksi_memory.tables import TABLES

MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_TOLD_CHARACTERS: Final = 500
MAX_CHECKS: Final = 200

Check = Callable[[dict[str, Any]], str | None]

# Schemas come from strangers: their patterns are matched in linear time, by an engine that knows no
# look-around, and what they refer to elsewhere is not fetched.
_PATTERNS: Final = jsonschema_rs.RegexOptions()


def schema_key(kind: str, name: str) -> str:
    """Return the key under which a schema is remembered."""
    return f"{kind}:{name}"


def schema_id(kind: str, name: str) -> UUID:
    """Return the id under which a schema is remembered."""
    return item_id("schemas", schema_key(kind, name))


def no_such_table(name: str) -> NotFound:
    """Return the error for a table that nobody has registered."""
    hint = did_you_mean(name, list(TABLES))
    return NotFound(
        f"there is no table {name}{hint}; `ksi schema register` makes one",
        details={"tables": sorted(TABLES)},
    )


def check_of(name: str, schema: dict[str, Any]) -> Check:
    """Return what says what about an object does not fit a schema, if anything.

    Raises:
        InvalidData: It is no sound schema, or too large.
    """
    size = len(msgspec.json.encode(schema))
    if size > MAX_SCHEMA_BYTES:
        raise InvalidData(f"the schema of {name} has {size:,} bytes; at most {MAX_SCHEMA_BYTES:,}")
    try:
        validator = jsonschema_rs.validator_for(schema, pattern_options=_PATTERNS, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # its ValidationError is one
        told = str(error).splitlines()[0][:MAX_TOLD_CHARACTERS]
        raise InvalidData(f"the schema of {name} is not sound: {told}") from error

    def check(given: dict[str, Any]) -> str | None:
        try:
            validator.validate(given)
        except jsonschema_rs.ValidationError as error:
            path = "$" + "".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path
            )
            told = error.message[:MAX_TOLD_CHARACTERS]
            return f"its attributes don't fit the schema of {name}: {told} at {path}"
        return None

    return check


class Checks:
    """The schemas that were read lately, ready to be held against."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], Check] = {}

    def of(self, name: str, schema: dict[str, Any]) -> Check:
        """Return what checks objects against a schema."""
        at = (name, msgspec.json.encode(schema))
        found = self._known.get(at)
        if found is None:
            if len(self._known) >= MAX_CHECKS:
                self._known.pop(next(iter(self._known)))
            found = self._known[at] = check_of(name, schema)
        return found

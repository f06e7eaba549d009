"""Holds what an agent is told to the JSON Schema that its definition has for it."""

from typing import Any, Final

import jsonschema_rs
import msgspec

from ksi_daemon.protocol import InvalidData

MAX_TOLD_CHARACTERS: Final = 500

# Schemas come from strangers: their patterns are matched in linear time, by an engine that knows no
# look-around, and what they refer to elsewhere is not fetched.
_PATTERNS: Final = jsonschema_rs.RegexOptions()


def check_input(name: str, schema: dict[str, Any] | None, prompt: str) -> None:
    """Refuse a message that does not fit: it is to be JSON, or text where a string is wanted.

    Raises:
        InvalidData: It does not; the message says where.
    """
    if schema is None:
        return
    why = _misfit(schema, prompt)
    if why is not None:
        raise InvalidData(
            f"{name} is told JSON that fits its definition's input: {why}",
            details={"kind": "input", "path": "$.prompt"},
        )


def _misfit(schema: dict[str, Any], prompt: str) -> str | None:
    try:
        value = prompt if schema.get("type") == "string" else msgspec.json.decode(prompt)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return f"it is no JSON: {_told(error)}"
    try:
        jsonschema_rs.validator_for(schema, pattern_options=_PATTERNS, offline=True).validate(value)
    except jsonschema_rs.ValidationError as error:
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path
        )
        return f"{_told(error.message)} at ${path[:MAX_TOLD_CHARACTERS]}"
    except (ValueError, RecursionError, jsonschema_rs.ReferencingError) as error:
        return _told(error)
    return None


def _told(error: object) -> str:
    return str(error).partition("\n")[0][:MAX_TOLD_CHARACTERS]

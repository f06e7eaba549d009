"""What a turn is to put out: holds answers to their JSON Schema, and says what does not fit."""

from typing import Any, Final

import jsonschema_rs
import msgspec

from ksi_daemon.protocol import Failed, InvalidData
from ksi_models.events import Message, Part, TextPart

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_TOLD_CHARACTERS: Final = 500
OBJECTION: Final = "The answer does not fit the JSON Schema that it is to follow: "
MISFIT: Final = "misfit"  # a turn's mark for an answer that did not fit; other marks are digests

# Schemas come from strangers: their patterns are matched in linear time, by an engine that knows no
# look-around, and what they refer to elsewhere is not fetched.
_PATTERNS: Final = jsonschema_rs.RegexOptions()


def check_schema(schema: dict[str, Any] | None) -> None:
    """Refuse what no answer could be held to.

    Raises:
        InvalidData: It is no JSON Schema, or too large.
    """
    if schema is None:
        return
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise _unsound(f"larger than {MAX_SCHEMA_BYTES} bytes")
    try:
        _validator(schema)
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # its ValidationError is one
        raise _unsound(f"not sound: {_told(error)}") from error


def misfit_of(schema: dict[str, Any] | None, parts: tuple[Part, ...]) -> str | None:
    """Return what is wrong with an answer, if anything is."""
    if schema is None:
        return None
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return f"it is not JSON: {_told(error)}"
    try:
        _validator(schema).validate(value)
    except jsonschema_rs.ValidationError as error:
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path
        )
        return f"{_told(error.message)} at ${path[:MAX_TOLD_CHARACTERS]}"
    except (ValueError, RecursionError) as error:  # it is nested too deep to be looked at
        return _told(error)
    return None


def objection(misfit: str) -> tuple[Part, ...]:
    """Return what a model is told whose answer does not fit."""
    text = f"{OBJECTION}{misfit}\nAnswer again, with nothing but the JSON that fits."
    return (TextPart(text),)


def is_objection(message: Message) -> bool:
    """Say whether a message is what a model is told of its answer, and no user's."""
    part = message.parts[0] if message.parts else None
    return isinstance(part, TextPart) and part.text.startswith(OBJECTION)


def given_up(misfit: str, retries: int) -> Failed:
    """Return what a turn fails with whose model does not find an answer that fits."""
    times = f"was asked {retries + 1} times" if retries else "was asked once"
    return Failed(
        f"the model {times} (completion.output_retries), and its answer does not fit the "
        f"output_schema: {misfit}",
        details={"kind": "output", "setting": "completion.output_retries"},
    )


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(schema, pattern_options=_PATTERNS, offline=True)


def _unsound(why: str) -> InvalidData:
    return InvalidData(f"the output_schema is {why}", details={"path": "$.output_schema"})


def _told(error: object) -> str:
    return (str(error).splitlines() or [""])[0][:MAX_TOLD_CHARACTERS]

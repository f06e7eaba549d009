"""Makes a question of a form that a server wants filled in, and reads what a person answers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from ksi_daemon.protocol.wire import DECODE_ERRORS
from ksi_mcp.client.tools.results import fits
from ksi_mcp.client.tools.text import cleaned

MAX_FIELDS: Final = 20
MAX_MESSAGE_CHARS: Final = 4_000
MAX_FIELD_CHARS: Final = 500
MAX_SCHEMA_BYTES: Final = 65_536
YES: Final = frozenset({"yes", "true", "y", "1"})
NO: Final = frozenset({"no", "false", "n", "0"})
KINDS: Final = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "yes or no",
    "array": "some of",
}

Answers: TypeAlias = dict[str, Any]


class Form(Struct, frozen=True):
    """What a server wants to know: its words, and a flat JSON Schema of an object."""

    message: str
    schema: dict[str, Any]

    @property
    def is_bearable(self) -> bool:
        """Whether a person can be asked to fill it in: it is flat, and not too large."""
        fields, required = self.schema.get("properties", {}), self.schema.get("required", [])
        return (
            isinstance(fields, dict)
            and len(fields) <= MAX_FIELDS
            and all(isinstance(each, dict) for each in fields.values())
            and isinstance(required, list)
            and all(isinstance(each, str) for each in required)
            and len(msgspec.json.encode(self.schema)) <= MAX_SCHEMA_BYTES
        )

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        """What is to be filled in, by name."""
        found: dict[str, dict[str, Any]] = self.schema.get("properties", {})
        return found

    @property
    def required(self) -> frozenset[str]:
        """What may not be left out."""
        return frozenset(self.schema.get("required", ()))


class MisfitError(Exception):
    """An answer that is none to a form; the message says why."""


def question_of(form: Form, server: str, mark: str) -> str:
    """Return what a person is asked.

    Args:
        form: What the server wants to know.
        server: Its name.
        mark: What nobody could guess who wrote the form.
    """
    told = [cleaned(form.message, MAX_MESSAGE_CHARS)]
    told += [f"- {_told(name, form)}" for name in form.fields]
    words = "\n".join(told)
    return (
        f"The MCP server {server} asks something, in its own words between the two lines {mark}:\n"
        f"{mark}\n{words}\n{mark}\n{_how(form)}"
    )


def _told(name: str, form: Form) -> str:
    field = form.fields[name]
    values = choices_of(field)
    kind = KINDS.get(str(field.get("type")), "one of" if values else "text")
    if values:
        kind = f"{kind} {', '.join(values)}"
    titles = (str(field[key]) for key in ("title", "description") if field.get(key))
    notes = [kind, *titles, *(() if name in form.required else ("may be left out",))]
    return cleaned(f"{name}: {'; '.join(notes)}", MAX_FIELD_CHARS)


def choices_of(field: Mapping[str, Any]) -> list[str]:
    """Return the values that a field may have, where they are given."""
    items = field.get("items")
    of = items if isinstance(items, dict) else field
    named = of.get("oneOf") or of.get("anyOf")
    listed = of.get("enum") or [each.get("const") for each in _dicts_in(named)]
    return [str(each) for each in listed if each is not None] if isinstance(listed, list) else []


def _dicts_in(value: object) -> list[dict[str, Any]]:
    listed = value if isinstance(value, list) else []
    return [each for each in listed if isinstance(each, dict)]


def _how(form: Form) -> str:
    if not form.fields:
        return "Answer yes, or drop the call."
    if len(form.fields) == 1:
        return "Answer with that alone, or drop the call."
    names = " ".join(f"{cleaned(name, MAX_FIELD_CHARS)}=…" for name in form.fields)
    return f"Answer with a line for each ({names}) or with JSON, or drop the call."


def answers_in(form: Form, text: str) -> Answers:
    """Return what a person has filled in.

    Raises:
        MisfitError: That does not fit the form.
    """
    given = _given(form, text.strip())
    unknown = [name for name in given if name not in form.fields]
    if unknown:
        raise MisfitError(f"nothing is called {unknown[0]!r}")
    answers = {name: _value(form.fields[name], name, value) for name, value in given.items()}
    if missing := sorted(form.required - answers.keys()):
        raise MisfitError(f"{missing[0]} is wanted")
    if not fits(answers, form.schema):
        raise MisfitError("it does not fit what is asked")
    return answers


def _given(form: Form, text: str) -> dict[str, Any]:
    if not form.fields:
        return {}
    if text.startswith("{"):
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except DECODE_ERRORS as error:
            raise MisfitError(f"it is no JSON object: {error}") from error
    if len(form.fields) == 1:
        return dict.fromkeys(form.fields, text)
    return dict(_lines(text))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if line.strip() and not equals:
            raise MisfitError(f"{line.strip()[:100]!r} is no name=value")
        if line.strip():
            yield name.strip(), value.strip()


def _value(field: Mapping[str, Any], name: str, value: Any) -> Any:
    """Return a value as its field has it; what was not text is left as it is."""
    if not isinstance(value, str):
        return value
    read: Callable[[str], Any] | None = READERS.get(str(field.get("type")))
    if read is None:
        return value
    try:
        return read(value)
    except ValueError as error:
        raise MisfitError(f"{name} is to be {KINDS[str(field['type'])]}") from error


def _boolean(text: str) -> bool:
    if text.lower() not in YES | NO:
        raise ValueError(text)
    return text.lower() in YES


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


READERS: Final[dict[str, Callable[[str], Any]]] = {
    "integer": int,
    "number": float,
    "boolean": _boolean,
    "array": _list,
}

"""Understands what is asked: the dialect, or a mode and what it takes."""

from datetime import UTC, datetime
from typing import Final

import msgspec

from ksi_daemon.protocol import InvalidData
from ksi_memory import events as e
from ksi_memory.querying import rem

# What a mode is about; all else is a clause.
_OPERANDS: Final[dict[e.Mode, str]] = {
    "lookup": "keys",
    "search": "query",
    "fuzzy": "query",
    "traverse": "keys",
    "timeline": "subject",
    "sql": "query",
}
_DEFAULTS: Final = {field.name: field.default for field in msgspec.structs.fields(e.MemoryQuery)}
_CLAUSES: Final = {clause.field: name for name, clause in rem.CLAUSES.items()}


def understood(request: e.MemoryQuery, max_chars: int) -> e.MemoryQuery:
    """Return what is asked, by its mode.

    Raises:
        InvalidData: That can't be said.
    """
    for name in ("text", "query"):
        text = getattr(request, name)
        if text is not None and len(text) > max_chars:
            raise InvalidData(
                f"a question has at most {max_chars:,} characters (memory.max_query_chars), and "
                f"this one has {len(text):,}",
                details={"path": f"$.{name}"},
            )
    asked = _of_text(request) if request.text is not None else request
    if asked.mode is None:
        raise InvalidData('say what you ask: {"text": "SEARCH …"}, or a mode and what it takes')
    _check_operand(asked)
    _check_clauses(asked)
    return _in_utc(asked)


def _of_text(request: e.MemoryQuery) -> e.MemoryQuery:
    """Read the dialect; what it doesn't say, the other fields may."""
    assert request.text is not None
    for name in ("mode", "query", "keys", "subject"):
        if getattr(request, name) != _DEFAULTS[name]:
            raise InvalidData(
                f"text says it all: send no {name} with it", details={"path": f"$.{name}"}
            )
    asked = rem.parse(request.text)
    more = {
        field: value
        for field in _CLAUSES
        if (value := getattr(request, field)) != _DEFAULTS[field]
        and getattr(asked, field) == _DEFAULTS[field]
    }
    return msgspec.structs.replace(asked, **more)


def _check_operand(asked: e.MemoryQuery) -> None:
    assert asked.mode is not None
    operand = _OPERANDS[asked.mode]
    for name in ("query", "keys", "subject"):
        if name != operand and getattr(asked, name) != _DEFAULTS[name]:
            raise InvalidData(f"{asked.mode} takes no {name}", details={"path": f"$.{name}"})
    value = getattr(asked, operand)
    for each in value if isinstance(value, tuple) else (value or "",):
        refuse_what_is_no_text(operand, each)
    if operand != "subject" and not (
        value and all(each.strip() for each in value if operand == "keys")
    ):
        raise InvalidData(f"{asked.mode} needs {operand}", details={"path": f"$.{operand}"})
    if operand == "query" and not value.strip():
        raise InvalidData(f"{asked.mode} needs a query", details={"path": "$.query"})
    if asked.mode == "traverse" and len(asked.keys) > 1:
        raise InvalidData("traverse takes one key", details={"path": "$.keys"})


def _check_clauses(asked: e.MemoryQuery) -> None:
    assert asked.mode is not None
    taken = rem.TAKEN[asked.mode]
    for field, name in _CLAUSES.items():
        value = getattr(asked, field)
        if value == _DEFAULTS[field]:
            continue
        if name not in (*taken, "EXPLAIN"):
            raise InvalidData(f"{asked.mode} takes no {field}", details={"path": f"$.{field}"})
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str):
                refuse_what_is_no_text(field, each)


def refuse_what_is_no_text(field: str, text: str) -> None:
    """See to it that a text can be kept.

    Raises:
        InvalidData: It has a zero byte.
    """
    if "\0" in text:
        raise InvalidData(f"there is a zero byte in {field}", details={"path": f"$.{field}"})


def _in_utc(asked: e.MemoryQuery) -> e.MemoryQuery:
    """Return it with times in UTC, as those are that say no zone."""
    times: dict[str, datetime] = {}
    for field in ("since", "until", "as_of"):
        at = getattr(asked, field)
        if at is None:
            continue
        try:
            times[field] = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        except OverflowError as error:
            raise InvalidData(
                f"{field} is beyond all times", details={"path": f"$.{field}"}
            ) from error
    return msgspec.structs.replace(asked, **times) if times else asked

"""The state that an agent shares with a front end: the agent changes it by a tool."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ksi_daemon.protocol import InvalidData

UPDATE_STATE: Final = "update_state"
TOOL: Final = {
    "name": UPDATE_STATE,
    "description": (
        "Change the state that you share with the front end. What is given takes the place of what "
        "is there, object by object; null takes a field away."
    ),
    "parameters": {
        "type": "object",
        "properties": {"changes": {"type": "object"}},
        "required": ["changes"],
    },
}

Operation = dict[str, Any]


def changes_of(arguments: str) -> dict[str, Any]:
    """Return what a call of the tool wants changed.

    Raises:
        InvalidData: That is no object.
    """
    try:
        asked = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidData(f"the arguments are not JSON: {error}") from error
    changes = asked.get("changes") if isinstance(asked, dict) else None
    if not isinstance(changes, dict):
        raise InvalidData("changes: it has to be an object, with the fields that change")
    return changes


def changed(state: Any, changes: Any) -> Any:
    """Return a state with changes, as a merge patch has them (RFC 7396)."""
    if not isinstance(changes, dict):
        return changes
    merged = dict(state) if isinstance(state, dict) else {}
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = changed(merged.get(key), value)
    return merged


def operations(before: Any, after: Any, path: str = "") -> Iterator[Operation]:
    """Yield what makes one state of another, as a patch has it (RFC 6902)."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if msgspec.json.encode(before) != msgspec.json.encode(after):  # in Python 0 is False
            yield {"op": "replace", "path": path, "value": after}
        return
    for key in before.keys() - after.keys():
        yield {"op": "remove", "path": f"{path}/{_escaped(key)}"}
    for key, value in after.items():
        where = f"{path}/{_escaped(key)}"
        if key in before:
            yield from operations(before[key], value, where)
        else:
            yield {"op": "add", "path": where, "value": value}


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")

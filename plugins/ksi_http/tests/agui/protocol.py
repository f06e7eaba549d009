"""The protocol's own word on what an event is."""

import functools
from typing import Any


def check_event(event: dict[str, Any]) -> None:
    """Raise where an event breaks the protocol."""
    _schema().validate_python(event)


@functools.cache
def _schema() -> Any:
    from ag_ui.core import Event  # noqa: PLC0415  late: it takes a while, and few workers need it
    from pydantic import TypeAdapter  # noqa: PLC0415  late: it takes a while

    return TypeAdapter(Event)

"""Fills a definition's fields with those of the definition that it extends."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ksi_agents.definition import Definition

__all__ = ["MAX_LEVELS", "extended", "full"]

MAX_LEVELS: Final = 16
MERGED: Final = ("memory", "settings", "limits", "restart", "labels")

_BASE: Final = re.compile(r"\{\{\s*base\s*\}\}")


def extended(own: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a definition comes to that extends another; both as plain values.

    Its own fields stand, and the other's where it has none. Of memory, settings, limits, restart
    and labels that holds for each of their fields. What either denies is denied. In its own prompt
    ``{{ base }}`` stands for the other's.
    """
    found = {**base, **own}
    for name in MERGED:
        if name in own and name in base:
            found[name] = {**base[name], **own[name]}
    denied = [*base.get("deny", ()), *own.get("deny", ())]
    if denied:
        found["deny"] = list(dict.fromkeys(denied))
    if "prompt" in own:
        prompt = base.get("prompt", "")
        found["prompt"] = _BASE.sub(lambda _: prompt, own["prompt"])
    return found


def full(definition: Definition) -> dict[str, Any]:
    """Return a definition with every default, as plain values."""
    return {**_full(definition), "model": list(definition.models)}


def _full(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _full(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [_full(each) for each in value]
    return value

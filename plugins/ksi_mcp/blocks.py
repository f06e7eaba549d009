"""Tells in words what is in a block of MCP: a text, an image, a sound or a resource."""

from collections.abc import Mapping
from typing import Any


def told_of(block: Mapping[str, Any]) -> str:
    """Return a text as it is, and of anything else what it is and how large."""
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text", ""))
    if kind in ("image", "audio"):
        return f"[{kind}: {kind_of(block)}, {size_of(block.get('data'))}]"
    if kind == "resource_link":
        notes = (block.get(each) for each in ("uri", "title", "name", "description"))
        return f"[resource: {'; '.join(str(each) for each in notes if each)}]"
    if kind == "resource":
        return _told_of_resource(block.get("resource") or {})
    return f"[{kind}]"


def _told_of_resource(resource: Mapping[str, Any]) -> str:
    named = f"resource: {resource.get('uri', '')}"
    if "text" in resource:
        return f"[{named}]\n{resource['text']}"
    return f"[{named}, {kind_of(resource)}, {size_of(resource.get('blob'))}]"


def kind_of(block: Mapping[str, Any]) -> str:
    """Return of which kind some data is said to be."""
    return str(block.get("mimeType", "of no kind"))


def size_of(base64: object) -> str:
    """Return how large some data is."""
    text = str(base64 or "")
    return f"{len(text) * 3 // 4 - text[-2:].count('=')} bytes"

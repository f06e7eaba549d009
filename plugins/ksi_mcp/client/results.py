"""Makes text of what a server's tool returned."""

import json
from collections.abc import Mapping
from typing import Any, Final

import jsonschema_rs
import msgspec

from ksi_mcp.client.text import cleaned

MAX_URI_CHARS: Final = 500
_PATTERNS: Final = jsonschema_rs.RegexOptions()


def text_of(result: Mapping[str, Any], output: dict[str, Any] | None) -> str:
    """Return what a tool returned as text for a model.

    Args:
        result: As MCP has it in JSON.
        output: The JSON Schema that it was to fit.
    """
    parts = [_told(each) for each in result.get("content") or ()]
    structured = result.get("structuredContent")
    has_text = any(each.get("type") == "text" for each in result.get("content") or ())
    if structured is not None and not has_text:
        parts.append(cleaned(json.dumps(structured, ensure_ascii=False)))
    if output is not None and not result.get("isError") and not _fits(structured, output):
        parts.append("[The result does not fit the schema that the server gave for it.]")
    return "\n".join(parts)


def _told(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    if kind == "text":
        return cleaned(str(block.get("text", "")))
    if kind in ("image", "audio"):
        return f"[{kind}: {_kind_of(block)}, {_size(block.get('data'))}, not shown]"
    if kind == "resource_link":
        return f"[resource: {_uri(block)}]"
    if kind == "resource":
        resource = block.get("resource") or {}
        if "text" in resource:
            return f"[resource: {_uri(resource)}]\n{cleaned(str(resource['text']))}"
        return f"[resource: {_uri(resource)}, {_size(resource.get('blob'))}, not shown]"
    return f"[{cleaned(str(kind), 100)}: not shown]"


def _kind_of(block: Mapping[str, Any]) -> str:
    return cleaned(str(block.get("mimeType", "of no kind")), 100)


def _uri(block: Mapping[str, Any]) -> str:
    return cleaned(str(block.get("uri", "")), MAX_URI_CHARS)


def _size(base64: object) -> str:
    return f"{len(str(base64 or '')) * 3 // 4} bytes"


def _fits(structured: object, output: dict[str, Any]) -> bool:
    """Say whether a result fits its schema; in linear time, and without a look elsewhere."""
    try:
        validator = jsonschema_rs.validator_for(output, pattern_options=_PATTERNS, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError):
        return False
    return bool(validator.is_valid(msgspec.to_builtins(structured)))

"""Makes safe what a server's tool returned: its words for models, its files for all others."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, Final
from urllib.parse import quote

import jsonschema_rs
import msgspec

from ksi_mcp.blocks import told_of
from ksi_mcp.client.tools.text import cleaned
from ksi_mcp.exchange import Content

MAX_URI_CHARS: Final = 500
# Each is kept and handed on as it is: as many as an answer may sensibly have.
MAX_FILES: Final = 50
OUR_SCHEME: Final = "ksi:"
_MEDIA_TYPE: Final = re.compile(r"[a-z]{1,20}/[a-zA-Z0-9][a-zA-Z0-9.+-]{0,80}")
_PATTERNS: Final = jsonschema_rs.RegexOptions()

Block = dict[str, Any]


def returned_of(
    result: Mapping[str, Any], output: dict[str, Any] | None, fence: Callable[[str], str]
) -> str | Content:
    """Return what a tool returned: text where that is all, else blocks of MCP.

    Args:
        result: As MCP has it in JSON.
        output: The JSON Schema that it was to fit.
        fence: Marks words as the server's.
    """
    made: list[Block] = []
    for is_file, group in groupby(_pieces(result, output), key=lambda each: isinstance(each, dict)):
        if is_file:
            made.extend(each for each in group if isinstance(each, dict))
        else:
            made.append({"type": "text", "text": fence("\n".join(map(str, group)))})
    if not made:
        return fence("")
    return made[0]["text"] if [each["type"] for each in made] == ["text"] else Content(blocks=made)


def _pieces(result: Mapping[str, Any], output: dict[str, Any] | None) -> Iterator[str | Block]:
    """Yield the words of a result as text, and its files as blocks."""
    content = result.get("content") or ()
    files = 0
    for block in content:
        file = _file(block) if files < MAX_FILES else None
        files += file is not None
        yield cleaned(told_of(block)) if file is None else file
    structured = result.get("structuredContent")
    if structured is not None and not any(each.get("type") == "text" for each in content):
        yield cleaned(json.dumps(structured, ensure_ascii=False))
    if output is not None and not result.get("isError") and not fits(structured, output):
        yield "[The result does not fit the schema that the server gave for it.]"


def _file(block: Mapping[str, Any]) -> Block | None:
    """Return an image, a sound or another file that is one, with nothing else in its block."""
    kind = block.get("type")
    if kind in ("image", "audio"):
        return _data(kind, block.get("mimeType"), block.get("data"))
    if kind != "resource":
        return None
    resource = block.get("resource") or {}
    media_type, data = resource.get("mimeType"), resource.get("blob")
    uri = quote(str(resource.get("uri", "")), safe=":/?#[]@!$&'()*+,;=%~")
    if not _is_file(media_type, data) or len(uri) > MAX_URI_CHARS:
        return None
    family = str(media_type).partition("/")[0]
    if family in ("image", "audio"):
        return _data(family, media_type, data)
    if uri.lower().startswith(OUR_SCHEME):  # it would name what is ours
        return None
    return {"type": "resource", "resource": {"uri": uri, "mimeType": media_type, "blob": data}}


def _data(kind: str, media_type: object, data: object) -> Block | None:
    if not _is_file(media_type, data) or not str(media_type).startswith(f"{kind}/"):
        return None
    return {"type": kind, "data": data, "mimeType": media_type}


def _is_file(media_type: object, data: object) -> bool:
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        return False
    try:
        return bool(base64.b64decode(data, validate=True)) if isinstance(data, str) else False
    except (binascii.Error, ValueError):
        return False


def fits(structured: object, output: dict[str, Any]) -> bool:
    """Say whether a result fits its schema; in linear time, and without a look elsewhere."""
    try:
        validator = jsonschema_rs.validator_for(output, pattern_options=_PATTERNS, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError):
        return False
    return bool(validator.is_valid(msgspec.to_builtins(structured)))

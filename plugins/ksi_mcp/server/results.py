"""Turns what came of a call into what MCP says of it."""

from typing import Any, Final

import mcp_types as types
import msgspec
from pydantic import TypeAdapter, ValidationError

from ksi_daemon.protocol import KsiError
from ksi_daemon.protocol.wire import DECODE_ERRORS
from ksi_mcp.server.reach import Reach
from ksi_tools.events import ToolCalled

CONTENT: Final = "mcp_content"
BLOCKS: Final = TypeAdapter(list[types.ContentBlock])
START: Final = f'{{"{CONTENT}":'
OUTPUT: Final = "ksi://outputs/"


def of_called(called: ToolCalled) -> types.CallToolResult:
    """Return what a tool returned, or what went wrong with it."""
    if called.status != "done":
        return _failed(called)
    data = _json_of(called)
    if isinstance(data, dict) and CONTENT in data:
        own = _own_content(data)
        if own is not None:
            return own
    content: list[types.ContentBlock] = [text(called.content)]
    if called.output_ref is not None:
        content.append(
            types.ResourceLink(
                name="the whole output",
                uri=f"{OUTPUT}{called.output_ref}",
                size=called.size_bytes,
                mime_type="text/plain",
            )
        )
    return types.CallToolResult(
        content=content, structured_content=data if isinstance(data, dict) else None
    )


def _failed(called: ToolCalled) -> types.CallToolResult:
    """Tell of a call that came to nothing, waits for a person, or is in doubt."""
    code = called.status if called.error is None else called.error.code
    meta = {"ksi/status": called.status, "ksi/call_id": called.call_id, "ksi/code": code}
    return types.CallToolResult(
        content=[text(f"{code}: {called.content}")], is_error=True, _meta=meta
    )


def of_error(reach: Reach, error: KsiError) -> types.CallToolResult:
    """Tell of an error of the call itself: what is called has not seen it."""
    told = f"{error.code}: {reach.shown(error)}"
    meta: dict[str, Any] = {"ksi/code": error.code}
    if error.retry_after_s is not None:
        meta["ksi/retry_after_s"] = error.retry_after_s
    return types.CallToolResult(content=[text(told)], is_error=True, _meta=meta)


def text(words: str) -> types.TextContent:
    """Return a block of text."""
    return types.TextContent(text=words)


def _json_of(called: ToolCalled) -> Any:
    """Return the JSON that a tool returned; ``None`` where it is text, or not all of it is here."""
    if called.output_ref is not None or called.content[:1] != "{":
        return None
    try:
        return msgspec.json.decode(called.content)
    except DECODE_ERRORS:
        return None


def _own_content(data: dict[str, Any]) -> types.CallToolResult | None:
    """Return the blocks that a tool made itself, if that is what they are."""
    try:
        blocks = BLOCKS.validate_python(data[CONTENT], by_name=False)
    except ValidationError:
        return None
    structured = data.get("structured")
    return types.CallToolResult(
        content=blocks,
        structured_content=structured if isinstance(structured, dict) else None,
        is_error=data.get("is_error") is True,
    )

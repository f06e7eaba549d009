"""Lets the tools of a list that are tools be heard of, although others of it are none.

The SDK takes a list as a whole or not at all.
"""

from typing import Any, Final

from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCResponse
from mcp_types.methods import validate_server_result
from pydantic import ValidationError

from ksi_mcp.client.tools.definitions import MAX_OWN_NAME_CHARS, NO_TOOL

MODERN_RESULT: Final = "resultType"  # only the newer protocol has it
MAX_WHY_CHARS: Final = 200


def mended(message: SessionMessage) -> SessionMessage:
    """Return an answer; one that lists tools with what is none of them marked as such."""
    answer = message.message
    if not isinstance(answer, JSONRPCResponse) or not isinstance(answer.result.get("tools"), list):
        return message
    wrong = _wrong(answer.result)
    if not wrong:
        return message
    tools = [
        _marked(each, wrong[index]) if index in wrong else each
        for index, each in enumerate(answer.result["tools"])
    ]
    result = {**answer.result, "tools": tools}
    return SessionMessage(answer.model_copy(update={"result": result}), message.metadata)


def _wrong(result: dict[str, Any]) -> dict[int, str]:
    """Return which tools are none by their place, and why."""
    version = "2026-07-28" if MODERN_RESULT in result else "2025-11-25"
    try:
        validate_server_result("tools/list", version, result)
    except ValidationError as error:
        return {
            index: f"{'.'.join(map(str, inner)) or 'it'}: {each['msg']}"[:MAX_WHY_CHARS]
            for each in error.errors(include_url=False, include_context=False, include_input=False)
            for index, inner in [_place(each["loc"])]
            if index is not None
        }
    return {}


def _place(loc: tuple[int | str, ...]) -> tuple[int | None, tuple[int | str, ...]]:
    """Return which tool is meant, and what of it."""
    match loc:
        case ("tools", int(index), *inner):
            return index, tuple(inner)
    return None, loc


def _marked(tool: Any, why: str) -> dict[str, Any]:
    name = tool.get("name") if isinstance(tool, dict) else None
    return {
        "name": name[:MAX_OWN_NAME_CHARS] if isinstance(name, str) else "",
        "inputSchema": {"type": "object"},
        "_meta": {NO_TOOL: why},
    }

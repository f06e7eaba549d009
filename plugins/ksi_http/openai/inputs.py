"""Makes turns of what OpenAI's clients send, which is all that was ever said, each time."""

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_http.openai.shapes import ChatMessage, ChatRequest, Chosen, ContentPart

EFFORTS: Final = {
    "none": "off",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}
CONVERSATION: Final = "conversation_id"


class News(Struct, frozen=True, kw_only=True):
    """What is new in a request.

    Attributes:
        said: The parts of what the user says now.
        answers: What came of calls of the client's tools, by their ids.
        before: The messages before those.
    """

    said: list[dict[str, Any]]
    answers: dict[str, str]
    before: tuple[ChatMessage, ...]


def news_of(asked: ChatRequest) -> News:
    """Return what comes after the agent's last message.

    Raises:
        InvalidData: Nothing is new.
    """
    messages = asked.messages
    end = len(messages)
    while end and messages[end - 1].role != "assistant":
        end -= 1
    said: list[dict[str, Any]] = []
    answers: dict[str, str] = {}
    for place, each in enumerate(messages[end:], end):
        if each.role == "user":
            said += parts_of(each, place)
        elif each.role == "tool" and each.tool_call_id is not None:
            answers[each.tool_call_id] = text_of(each) or "(nothing)"
    if not said and not answers:
        raise InvalidData(
            "messages: nothing is new; the last one has to be the user's, or a tool's",
            details={"path": "$.messages"},
        )
    return News(said=said, answers=answers, before=messages[:end])


def parts_of(message: ChatMessage, place: int) -> list[dict[str, Any]]:
    """Return the parts of a message as turns have them.

    Raises:
        InvalidData: There is something that models are not handed on.
    """
    if isinstance(message.content, tuple):
        return [_part_of(each, place) for each in message.content]
    return [{"kind": "text", "text": message.content}] if message.content else []


def _part_of(part: ContentPart, place: int) -> dict[str, Any]:
    if part.type in ("text", "refusal"):
        return {"kind": "text", "text": part.text}
    url = str(part.image_url.get("url", "")) if part.type == "image_url" else ""
    head, comma, data = url.partition(",")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise InvalidData(
            f"messages[{place}]: parts are texts here, and images within the request "
            "(image_url with data:…;base64,…)",
            details={"path": f"$.messages[{place}].content"},
        )
    media_type = head.removeprefix("data:").removesuffix(";base64")
    return {"kind": "file", "media_type": media_type or "image/png", "data": data}


def text_of(message: ChatMessage) -> str:
    """Return what a message says, as far as it is text."""
    if isinstance(message.content, tuple):
        return "\n".join(part.text for part in message.content if part.text)
    return message.content or ""


def system_of(messages: Iterable[ChatMessage]) -> str | None:
    """Return what the model is told by whoever wrote the client."""
    told = [text_of(each) for each in messages if each.role in ("system", "developer")]
    return "\n\n".join(each for each in told if each) or None


def history_of(before: tuple[ChatMessage, ...]) -> list[dict[str, Any]]:
    """Return earlier messages for a conversation that does not have them."""
    names = {call.id: call.function.name for each in before for call in each.tool_calls or ()}
    history = []
    for place, each in enumerate(before):
        parts: list[dict[str, Any]] = []
        if each.role == "tool":
            call = each.tool_call_id or ""
            if call not in names:
                raise InvalidData(f"messages[{place}]: no message before it has that tool_call_id")
            result = {"id": call, "name": names[call], "content": text_of(each)}
            parts = [{"kind": "tool_result", **result}]
        elif each.role in ("user", "assistant"):
            parts = parts_of(each, place)
            parts += [
                {"kind": "tool_call", "id": call.id, **msgspec.to_builtins(call.function)}
                for call in each.tool_calls or ()
            ]
        if parts:
            history.append({"role": each.role, "parts": parts})
    return history


def options_of(asked: ChatRequest) -> dict[str, Any]:
    """Return how the turn is to be had: settings, schema and the client's tools."""
    options = {
        "settings": _settings_of(asked),
        "output_schema": _schema_of(asked),
        "client_tools": client_tools_of(asked),
    }
    return {name: value for name, value in options.items() if value}


def client_tools_of(asked: ChatRequest) -> list[dict[str, Any]]:
    """Return the client's tools that the model may call."""
    choice = asked.tool_choice
    only = choice.function.name if isinstance(choice, Chosen) else None
    functions = [tool.function for tool in asked.tools or ()] if choice != "none" else []
    found = [
        {
            "name": each.name,
            "description": each.description or "",
            "parameters": each.parameters or {"type": "object", "properties": {}},
        }
        for each in functions
        if only in (None, each.name)
    ]
    if only is not None and not found:
        raise InvalidData(f"tool_choice: there is no tool {only!r} in tools")
    return found


def _settings_of(asked: ChatRequest) -> dict[str, Any]:
    stop = (asked.stop,) if isinstance(asked.stop, str) else asked.stop
    is_forced = isinstance(asked.tool_choice, Chosen) or asked.tool_choice == "required"
    settings = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": asked.max_completion_tokens or asked.max_tokens,
        "stop": stop or None,
        "seed": asked.seed,
        "thinking": EFFORTS.get(asked.reasoning_effort or ""),
        "tool_choice": "required" if is_forced and asked.tools else None,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _schema_of(asked: ChatRequest) -> dict[str, Any] | None:
    wanted = asked.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidData("response_format: json_schema.schema is missing")
    return wanted.json_schema.schema


def conversation_of(asked: ChatRequest) -> str | None:
    """Return the conversation that the client names, if it does.

    Raises:
        InvalidData: It names none that there could be.
    """
    named = (asked.metadata or {}).get(CONVERSATION)
    if named is not None and not isinstance(named, str):
        raise InvalidData(f"metadata.{CONVERSATION}: a text")
    return named


def digest_of(whose: tuple[str | None, ...], messages: Iterable[ChatMessage]) -> str:
    """Return what tells one history from another; spaces at the ends don't count."""
    said = [
        [each.role, text_of(each).strip(), [call.id for call in each.tool_calls or ()]]
        for each in messages
        if each.role not in ("system", "developer")
    ]
    return hashlib.sha256(msgspec.json.encode([whose, said])).hexdigest()

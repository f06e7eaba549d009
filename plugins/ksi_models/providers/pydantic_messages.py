"""Translates between our messages and those of pydantic-ai."""

# It is imported once somebody asks one of its models: it takes a second and 60 MB.

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from pydantic_ai import messages as theirs

from ksi_models.events import (
    FilePart,
    Finish,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
)
from ksi_models.providers.openai_messages import sound_arguments

SIGNATURE: Final = "pydantic-ai:"
FINISHES: Final[dict[str, Finish]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_call": "tool_calls",
}


class Signature(Struct, frozen=True, omit_defaults=True):
    """What a provider wants back with its thinking, and whose it is."""

    provider: str | None = None
    signature: str | None = None
    id: str | None = None
    details: dict[str, Any] | None = None


_SIGNATURE: Final = msgspec.json.Decoder(Signature)


# -- to theirs ------------------------------------------------------------------------------------


def to_theirs(system: str | None, messages: Sequence[Message]) -> list[theirs.ModelMessage]:
    """Return a conversation as theirs; requests and responses alternate."""
    written: list[theirs.ModelMessage] = []
    asked: list[theirs.ModelRequestPart] = []
    if system:
        asked.append(theirs.SystemPromptPart(system))
    for message in messages:
        if message.role != "assistant":
            asked += _request(message)
            continue
        answered = _response(message)
        if asked and answered:
            written.append(theirs.ModelRequest(asked))
            asked = []
        if answered:
            written.append(theirs.ModelResponse(answered))
    written.append(theirs.ModelRequest(asked))
    return written


def _request(message: Message) -> list[theirs.ModelRequestPart]:
    results: list[theirs.ModelRequestPart] = [
        theirs.ToolReturnPart(
            part.name,
            part.content,
            part.id,
            outcome="failed" if part.is_error else "success",
        )
        for part in message.parts
        if isinstance(part, ToolResultPart)
    ]
    content = [_content(part) for part in message.parts if isinstance(part, TextPart | FilePart)]
    if not content:
        return results
    if message.role == "system":
        text = "\n\n".join(each for each in content if isinstance(each, str))
        return [*results, theirs.SystemPromptPart(text)]
    only = content[0] if len(content) == 1 and isinstance(content[0], str) else content
    return [*results, theirs.UserPromptPart(only)]


def _content(part: TextPart | FilePart) -> Any:
    if isinstance(part, TextPart):
        return part.text
    name = part.name or part.media_type
    if part.data is None:
        return _linked(part)
    if part.media_type.startswith("text/") or part.media_type == "application/json":
        return f"{name}:\n{part.data.decode(errors='replace')}"
    return theirs.BinaryContent(data=part.data, media_type=part.media_type)


def _linked(part: FilePart) -> Any:
    url = part.url or ""
    if part.media_type.startswith("image/"):
        return theirs.ImageUrl(url)
    if part.media_type == "application/pdf":
        return theirs.DocumentUrl(url)
    return f"[file {part.name or ''}: {url}]"


def _response(message: Message) -> list[theirs.ModelResponsePart]:
    found: list[theirs.ModelResponsePart] = []
    for part in message.parts:
        match part:
            case TextPart(text=text) if text:
                found.append(theirs.TextPart(text))
            case ThinkingPart():
                if (thought := _thought(part)) is not None:
                    found.append(thought)
            case ToolCallPart(id=call_id, name=name, arguments=arguments):
                found.append(theirs.ToolCallPart(name, sound_arguments(arguments), call_id))
    return found


def _thought(part: ThinkingPart) -> theirs.ThinkingPart | None:
    """Return thinking that one of their providers signed; nobody else's goes back."""
    if part.signature is None or not part.signature.startswith(SIGNATURE):
        return None
    try:
        signed = _SIGNATURE.decode(part.signature.removeprefix(SIGNATURE))
    except msgspec.DecodeError:
        return None
    return theirs.ThinkingPart(
        part.text,
        id=signed.id,
        signature=signed.signature,
        provider_name=signed.provider,
        provider_details=signed.details,
    )


# -- from theirs ----------------------------------------------------------------------------------


def from_theirs(response: theirs.ModelResponse) -> Message:
    """Return an answer of theirs."""
    parts = [_part(part, response.provider_name) for part in response.parts]
    return Message("assistant", tuple(part for part in parts if part is not None))


def _part(part: theirs.ModelResponsePart, provider: str | None) -> Part | None:
    match part:
        case theirs.TextPart():
            return TextPart(part.content) if part.content else None
        case theirs.ThinkingPart():
            return ThinkingPart(part.content, _signed(part, provider))
        case theirs.ToolCallPart():
            return ToolCallPart(part.tool_call_id, part.tool_name, arguments_of(part.args))
        case theirs.FilePart():
            return FilePart(part.content.media_type, part.content.data)
    return None


def _signed(part: theirs.ThinkingPart, provider: str | None) -> str | None:
    if part.signature is None and part.id is None and not part.provider_details:
        return None
    signature = Signature(
        provider=part.provider_name or provider,
        signature=part.signature,
        id=part.id,
        details=part.provider_details,
    )
    return SIGNATURE + msgspec.json.encode(signature, enc_hook=str).decode()


def arguments_of(arguments: Any) -> str:
    """Return a call's arguments as JSON."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return msgspec.json.encode(arguments or {}).decode()

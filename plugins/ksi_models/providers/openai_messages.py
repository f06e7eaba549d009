"""Writes a question as an OpenAI-compatible server wants it."""

import base64
from typing import Any, Final

import msgspec

from ksi_models.events import (
    FilePart,
    Message,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
)
from ksi_models.provider import Question

# The signature of thinking that came in a field of this wire, which names the field.
FIELD_SIGNATURE: Final = "openai-wire:"
THINKING_FIELDS: Final = ("reasoning_content", "reasoning")
AUDIO_FORMATS: Final = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3"}
OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
EFFORTS: Final = {"off": "minimal", "low": "low", "medium": "medium", "high": "high"}


class Quirks(msgspec.Struct):
    """What a server or a model of it has shown that it can't do.

    Attributes:
        no_stream_options: It refuses to be asked for the usage.
        completion_tokens: It wants ``max_completion_tokens``.
        no_sampling: It refuses ``temperature`` and ``top_p``.
        no_effort: It refuses ``reasoning_effort``.
    """

    no_stream_options: bool = False
    completion_tokens: bool = False
    no_sampling: bool = False
    no_effort: bool = False

    def learn(self, told: str) -> bool:
        """Learn from a refusal; returns whether asking again makes sense."""
        before = msgspec.structs.astuple(self)
        self.no_stream_options |= "stream_options" in told or "include_usage" in told
        self.completion_tokens |= "max_completion_tokens" in told
        self.no_sampling |= "temperature" in told or "top_p" in told
        self.no_effort |= "reasoning_effort" in told
        return before != msgspec.structs.astuple(self)


def request_body(question: Question, quirks: Quirks, *, stream: bool = True) -> dict[str, Any]:
    """Return the body of a request to ``/chat/completions``."""
    body: dict[str, Any] = {"model": question.model, "messages": _messages(question)}
    if stream:
        body["stream"] = True
        if not quirks.no_stream_options:
            body["stream_options"] = {"include_usage": True}
    _add_tools(body, question)
    _add_settings(body, question, quirks)
    if question.output_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": question.output_schema},
        }
    body.update(question.settings.extra)
    return body


def _add_tools(body: dict[str, Any], question: Question) -> None:
    if not question.tools:
        return
    body["tools"] = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in question.tools
    ]
    if question.settings.tool_choice != "auto":
        body["tool_choice"] = question.settings.tool_choice


def _add_settings(body: dict[str, Any], question: Question, quirks: Quirks) -> None:
    settings = question.settings
    if not quirks.no_sampling:
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.top_p is not None:
            body["top_p"] = settings.top_p
    if settings.max_tokens is not None:
        name = "max_completion_tokens" if quirks.completion_tokens else "max_tokens"
        body[name] = settings.max_tokens
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.seed is not None:
        body["seed"] = settings.seed
    if settings.thinking is not None and not quirks.no_effort:
        body["reasoning_effort"] = EFFORTS[settings.thinking]


def _messages(question: Question) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = []
    if question.system:
        written.append({"role": "system", "content": question.system})
    messages = question.messages
    # Thinking goes back only while the model is still at the same answer.
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    for index, message in enumerate(messages):
        if message.role == "assistant":
            written.append(_assistant(message, with_thinking=index > last_user))
        else:
            written.extend(_others(message))
    return written


def _assistant(message: Message, *, with_thinking: bool) -> dict[str, Any]:
    text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
    calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": sound_arguments(part.arguments)},
        }
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    written: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if calls:
        written["tool_calls"] = calls
    if with_thinking:
        for part in message.parts:
            if isinstance(part, ThinkingPart) and part.signature:
                field = part.signature.removeprefix(FIELD_SIGNATURE)
                if field in THINKING_FIELDS:
                    written[field] = part.text
    return written


def sound_arguments(arguments: str) -> str:
    """Return a call's arguments as JSON of an object, since servers break on others."""
    try:
        OBJECT.decode(arguments)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        pass
    else:
        return arguments
    return "{}" if not arguments.strip() else msgspec.json.encode({"invalid": arguments}).decode()


def _others(message: Message) -> list[dict[str, Any]]:
    results = [
        {"role": "tool", "tool_call_id": part.id, "content": part.content}
        for part in message.parts
        if isinstance(part, ToolResultPart)
    ]
    parts = [part for part in message.parts if isinstance(part, TextPart | FilePart)]
    if not parts:
        return results
    role = "system" if message.role == "system" else "user"
    if all(isinstance(part, TextPart) for part in parts):
        text = "\n\n".join(part.text for part in parts if isinstance(part, TextPart))
        return [*results, {"role": role, "content": text}]
    return [*results, {"role": role, "content": [_content(part) for part in parts]}]


def _content(part: TextPart | FilePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if part.data is None:
        if part.media_type.startswith("image/") and part.url:
            return {"type": "image_url", "image_url": {"url": part.url}}
        return {"type": "text", "text": f"[file {part.name or ''}: {part.url}]"}
    if part.media_type.startswith("text/") or part.media_type == "application/json":
        name = part.name or part.media_type
        return {"type": "text", "text": f"{name}:\n{part.data.decode(errors='replace')}"}
    encoded = base64.b64encode(part.data).decode()
    if part.media_type in AUDIO_FORMATS:
        audio = {"data": encoded, "format": AUDIO_FORMATS[part.media_type]}
        return {"type": "input_audio", "input_audio": audio}
    url = f"data:{part.media_type};base64,{encoded}"
    if part.media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": part.name or "file", "file_data": url}}

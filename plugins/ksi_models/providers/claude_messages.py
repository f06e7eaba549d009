"""Speaks the lines of JSON that the ``claude`` command reads and writes."""

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_models.events import (
    FilePart,
    Finish,
    Message,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    Usage,
)
from ksi_models.provider import ProviderError
from ksi_models.providers.answer import AnswerBuilder
from ksi_models.providers.errors import Redact, brief, kind_of

SIGNATURE: Final = "claude-cli:"
FINISHES: Final[dict[str, Finish]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
API_ERROR: Final = re.compile(r"API Error: (\d{3})\b")
IMAGES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
GO_ON: Final = "Go on with this conversation: answer what follows it, which is its last message."


class Line(Struct):
    """A line that the command writes; what it is of is told by ``type``."""

    type: str = ""
    subtype: str | None = None
    session_id: str | None = None
    model: str | None = None
    tools: list[Any] | None = None
    mcp_servers: list[Any] | None = None
    event: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    error: Any = None
    is_error: bool = False
    result: str | None = None
    errors: list[Any] | None = None
    usage: dict[str, Any] | None = None
    api_error_status: int | None = None


_LINE: Final = msgspec.json.Decoder(Line)


class ClaudeReader:
    """Makes an answer of the command's lines.

    Attributes:
        session: The session that the command keeps the conversation in.
        is_done: Whether the answer is whole.
    """

    def __init__(self, provider: str, max_characters: int, redacted: Redact) -> None:
        self.provider = provider
        self.answer = AnswerBuilder(max_characters)
        self.session: str | None = None
        self.is_done = False
        self.finish: Finish = "stop"
        self.usage: Usage | None = None
        self.served: str | None = None
        self.signature: str | None = None
        self._redacted = redacted

    def read(self, line: bytes) -> None:
        """Take a line.

        Raises:
            ProviderError: It is an error, makes no sense, or shows that the command acts by itself.
        """
        try:
            told = _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProviderError(
                "malformed", f"{self.provider} wrote a line that can't be read: {error}"
            ) from error
        if told.session_id:
            self.session = told.session_id
        match told.type:
            case "system":
                self._begin(told)
            case "stream_event":
                self._event(told.event or {})
            case "assistant":
                self._message(told)
            case "user":
                self._refuse_results(told.message or {})
            case "result":
                self._end(told)

    def _begin(self, told: Line) -> None:
        if told.subtype != "init":
            return
        self.served = told.model or self.served
        if told.tools or told.mcp_servers:
            raise _acting("has tools of its own that can't be switched off; update it")

    def _event(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "content_block_start":
                self._refuse_tool(event.get("content_block"))
            case "content_block_delta":
                self._delta(_object(event.get("delta")))
            case "message_delta":
                self._stopped(_object(event.get("delta")).get("stop_reason"))

    def _delta(self, delta: dict[str, Any]) -> None:
        text = delta.get("text")
        thinking = delta.get("thinking")
        if isinstance(text, str) and text:
            self.answer.text(text)
        elif isinstance(thinking, str) and thinking:
            self.answer.thinking(thinking)

    def _message(self, told: Line) -> None:
        """Take a whole message: its text only where it was not streamed before."""
        message = told.message or {}
        blocks = message.get("content")
        blocks = blocks if isinstance(blocks, list) else []
        for block in blocks:
            self._refuse_tool(block)
        if told.error:
            words = " ".join(str(b.get("text", "")) for b in blocks if isinstance(b, dict))
            raise self._refusal(f"{_words(told.error)} {words}", None)
        if self.answer.is_empty:
            for block in blocks:
                if isinstance(block, dict):
                    self._delta(block)
        self._stopped(message.get("stop_reason"))

    def _stopped(self, reason: Any) -> None:
        if isinstance(reason, str):
            self.finish = FINISHES.get(reason, "other")

    def _refuse_tool(self, block: Any) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind.endswith("tool_use"):
            raise _acting("tried to use a tool of its own, and was ended")

    def _refuse_results(self, message: dict[str, Any]) -> None:
        blocks = message.get("content")
        for block in blocks if isinstance(blocks, list) else []:
            if isinstance(block, dict) and str(block.get("type", "")).endswith("tool_result"):
                raise _acting("has used a tool of its own, and was ended")

    def _end(self, told: Line) -> None:
        if told.is_error or (told.subtype or "success") != "success":
            words = [told.result, *(_words(each) for each in told.errors or ()), told.subtype]
            raise self._refusal(" ".join(w for w in words if w), told.api_error_status)
        if self.answer.is_empty and told.result:
            self.answer.text(told.result)
        self.usage = _usage(told.usage)
        self.is_done = True

    def _refusal(self, told: str, status: int | None) -> ProviderError:
        words = told.lower()
        if "/login" in words or "log in" in words or "authenticat" in words:
            return ProviderError(
                "login", f"{self.provider} is not logged in: run `claude` once and log in"
            )
        said = brief(told, self._redacted)
        if status is None and (found := API_ERROR.search(told)):
            status = int(found[1])
        if "limit" in words and ("usage" in words or "reset" in words or "hit your" in words):
            return ProviderError("rate_limited", f"{self.provider} has no more to give: {said}")
        return ProviderError(kind_of(status, told), f"{self.provider} failed: {said}")


def _acting(what: str) -> ProviderError:
    return ProviderError("refused", f"the claude command {what}: only KSI's own gate calls tools")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _words(error: Any) -> str:
    if isinstance(error, dict):
        return " ".join(str(error.get(name, "")) for name in ("type", "message"))
    return str(error)


def _usage(told: dict[str, Any] | None) -> Usage | None:
    if told is None:
        return None

    def count(name: str) -> int:
        value = told.get(name)
        return max(0, value) if isinstance(value, int) else 0

    read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    return Usage(
        input_tokens=count("input_tokens") + read + written,
        output_tokens=count("output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
    )


# -- what it reads -------------------------------------------------------------------------------


def user_line(blocks: list[dict[str, Any]]) -> bytes:
    """Return the line that says what a user says."""
    message = {"role": "user", "content": blocks}
    line = {"type": "user", "message": message, "parent_tool_use_id": None, "session_id": "default"}
    return msgspec.json.encode(line) + b"\n"


def blocks_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as the content of one."""
    return [block for message in messages for part in message.parts for block in _blocks(part)]


def _blocks(part: Any) -> list[dict[str, Any]]:
    match part:
        case TextPart(text=text):
            return [_text(text)] if text else []
        case ToolResultPart(name=name, content=content):
            return [_text(f"Result of {name}: {content}")]
        case ToolCallPart(name=name, arguments=arguments):
            return [_text(f"Called {name} with {arguments}")]
        case FilePart():
            return [_file(part)]
    return []


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _file(part: FilePart) -> dict[str, Any]:
    name = part.name or part.media_type
    if part.data is None:
        return _text(f"[file {name}: {part.url}]")
    if part.media_type.startswith("text/") or part.media_type == "application/json":
        return _text(f"{name}:\n{part.data.decode(errors='replace')}")
    encoded = base64.b64encode(part.data).decode()
    source = {"type": "base64", "media_type": part.media_type, "data": encoded}
    if part.media_type in IMAGES:
        return {"type": "image", "source": source}
    if part.media_type == "application/pdf":
        return {"type": "document", "source": source}
    raise ProviderError("invalid", f"the claude command reads no {part.media_type}: {name}")


def transcript(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a conversation that the command does not know as one message.

    What was said is JSON, so that no text in it can pass for another's.
    """
    last = len(messages)
    while last > 0 and messages[last - 1].role not in ("assistant", "system"):
        last -= 1
    earlier, now = messages[:last], messages[last:]
    if not earlier:
        return blocks_of(now)
    lines = [msgspec.json.encode({"role": m.role, "text": _plain(m)}).decode() for m in earlier]
    files = [p for m in earlier for p in m.parts if isinstance(p, FilePart) and p.data is not None]
    return [
        _text("\n".join([GO_ON, "", *lines])),
        *(_file(part) for part in files),
        *blocks_of(now),
    ]


def _plain(message: Message) -> str:
    texts = [
        block["text"]
        for part in message.parts
        if not isinstance(part, ThinkingPart | FilePart)
        for block in _blocks(part)
    ]
    return "\n".join(texts)


def digest_of(system: str, messages: Sequence[Message]) -> bytes:
    """Return what tells a conversation from others."""
    return hashlib.sha256(msgspec.json.encode((system, messages))).digest()

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
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
API_ERROR: Final = re.compile(r"API Error: (\d{3})\b")
IMAGES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
GO_ON: Final = "Go on with this conversation: answer what follows it, which is its last message."
TOOLS_DONE: Final = (
    "Go on with this conversation. Its last lines are the results of the tools that you have "
    "called: they are done, so don't call them again for the same."
)
SERVER: Final = "ksi"
PREFIX: Final = f"mcp__{SERVER}__"  # what the command puts before the names of that server's tools


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
    parent_tool_use_id: str | None = None
    claude_code_version: str | None = None


_LINE: Final = msgspec.json.Decoder(Line)


class ActedAlone(ProviderError):
    """The command did something by itself, or could."""

    def __init__(self, what: str) -> None:
        told = f"the claude command {what}: only KSI's own gate calls tools"
        super().__init__("refused", told)


class ClaudeReader:
    """Makes answers of the command's lines: one of each message in which its model wants tools.

    Args:
        provider: Its name, for errors.
        max_characters: How long an answer may be.
        redacted: Masks keys.
        tools: The names of the tools that it was offered.

    Attributes:
        session: The session that the command keeps the conversation in.
        version: The command's own.
        is_done: Whether the last answer is whole.
        is_parked: Whether the command waits for the results of the tools that the answer wants.
    """

    def __init__(
        self,
        provider: str,
        max_characters: int,
        redacted: Redact,
        tools: frozenset[str] = frozenset(),
    ) -> None:
        self.provider = provider
        self.answer = AnswerBuilder(max_characters)
        self.session: str | None = None
        self.version = ""
        self.is_done = False
        self.is_parked = False
        self.finish: Finish = "stop"
        self.usage: Usage | None = None
        self.served: str | None = None
        self.signature: str | None = None
        self._redacted = redacted
        self._tools = tools
        self._seen: set[str] = set()  # the ids of all calls so far
        self._message_id: Any = ""  # of the message that was streamed last
        self._blocks: dict[Any, int] = {}  # of the message that comes, the calls by their places
        self._streamed: Usage | None = None
        self._told = Usage()

    def go_on(self) -> None:
        """Begin the next answer: the command has got the results that it waited for."""
        self.answer = AnswerBuilder(self.answer.max_characters)
        self.is_parked = False
        self.finish, self.usage = "stop", None

    def read(self, line: bytes) -> None:
        """Take a line.

        Raises:
            ProviderError: It is an error, or makes no sense.
            ActedAlone: It shows that the command acts by itself.
        """
        try:
            told = _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProviderError(
                "malformed", f"{self.provider} wrote a line that can't be read: {error}"
            ) from error
        if told.session_id:
            self.session = told.session_id
        if told.parent_tool_use_id is not None:
            raise ActedAlone("has started an agent of its own, and was ended")
        match told.type:
            case "system":
                self._begin(told)
            case "stream_event":
                self._event(told.event or {})
            case "assistant":
                self._message(told)
            case "user":
                self._results(told.message or {})
            case "result":
                self._end(told)

    def _begin(self, told: Line) -> None:
        if told.subtype != "init":
            return
        self.served = told.model or self.served
        self.version = told.claude_code_version or ""
        ours = {f"{PREFIX}{name}" for name in self._tools}
        servers = [_object(each) for each in told.mcp_servers or ()]
        names = {each.get("name") for each in servers} - ({SERVER} if self._tools else set())
        if any(tool not in ours for tool in told.tools or ()) or names:
            raise ActedAlone("has tools of its own that can't be switched off; update it")
        if self._tools and not any(each.get("status") == "connected" for each in servers):
            raise ProviderError("server", f"{self.provider} does not reach KSI's tools")

    def _event(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                self._start(_object(event.get("message")))
            case "content_block_start":
                self._tool(event.get("content_block"), event.get("index"))
            case "content_block_delta":
                self._delta(_object(event.get("delta")), event.get("index"))
            case "message_delta":
                self._stopped(_object(event.get("delta")).get("stop_reason"))
                self._count({"output_tokens": _object(event.get("usage")).get("output_tokens")})
            case "message_stop":
                self._park()

    def _start(self, message: dict[str, Any]) -> None:
        self._message_id = message.get("id")
        self._blocks = {}
        self._count({**_object(message.get("usage")), "output_tokens": None})

    def _delta(self, delta: dict[str, Any], place: Any = None) -> None:
        text = delta.get("text")
        thinking = delta.get("thinking")
        arguments = delta.get("partial_json")
        if isinstance(text, str) and text:
            self.answer.text(text)
        elif isinstance(thinking, str) and thinking:
            self.answer.thinking(thinking)
        elif isinstance(arguments, str) and place in self._blocks:
            self.answer.arguments(self._blocks[place], arguments)

    def _message(self, told: Line) -> None:
        """Take a whole message: of it only what was not streamed before."""
        message = told.message or {}
        blocks = message.get("content")
        blocks = blocks if isinstance(blocks, list) else []
        if told.error:
            words = " ".join(str(b.get("text", "")) for b in blocks if isinstance(b, dict))
            raise self._refusal(f"{_words(told.error)} {words}", None)
        if self.answer.is_empty and message.get("id") != self._message_id:
            for block in blocks:
                if isinstance(block, dict):
                    self._delta(block)
        is_new = [self._tool(block, None) for block in blocks]
        self._stopped(message.get("stop_reason"))
        if any(is_new):
            self._park()

    def _stopped(self, reason: Any) -> None:
        if isinstance(reason, str):
            self.finish = FINISHES.get(reason, "other")

    # -- tools ----------------------------------------------------------------------------------

    def _tool(self, block: Any, place: Any) -> bool:
        """Take a call of a tool; say whether it is one of ours that was not known yet.

        One of a tool that it does not have is answered by the command itself, with an error.
        """
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str) or not kind.endswith("tool_use"):
            return False
        if kind != "tool_use" or not self._tools:
            raise ActedAlone("tried to use a tool of its own, and was ended")
        call_id, name = str(block.get("id", "")), str(block.get("name", "")).removeprefix(PREFIX)
        if (
            call_id in self._seen
            or f"{PREFIX}{name}" != block.get("name")
            or name not in self._tools
        ):
            return False
        self._seen.add(call_id)
        index = self.answer.begin_call(call_id, name)
        if place is not None:
            self._blocks[place] = index
        elif arguments := block.get("input"):
            self.answer.arguments(index, msgspec.json.encode(arguments).decode())
        return True

    def _park(self) -> None:
        if self.answer.calls and not self.is_parked:
            self.is_parked = True
            self.usage, self._streamed = self._streamed, None
            if self.usage is not None:
                self._told = _sum(self._told, self.usage, 1)

    def _results(self, message: dict[str, Any]) -> None:
        """Refuse what shows that a tool was used which is none of ours."""
        blocks = message.get("content")
        for block in blocks if isinstance(blocks, list) else []:
            if not isinstance(block, dict) or not str(block.get("type", "")).endswith(
                "tool_result"
            ):
                continue
            is_ours = block.get("tool_use_id") in self._seen
            if not is_ours and not (self._tools and block.get("is_error") is True):
                raise ActedAlone("has used a tool of its own, and was ended")

    def _count(self, told: dict[str, Any]) -> None:
        """Add up what a message took; the command itself tells it for all together, at the end."""
        usage = _usage(told) if any(told.values()) else None
        if usage is not None:
            self._streamed = _sum(self._streamed or Usage(), usage, 1)

    def _end(self, told: Line) -> None:
        if told.is_error or (told.subtype or "success") != "success":
            words = [told.result, *(_words(each) for each in told.errors or ()), told.subtype]
            raise self._refusal(" ".join(w for w in words if w), told.api_error_status)
        if self.answer.is_empty and told.result:
            self.answer.text(told.result)
        usage = _usage(told.usage)
        self.usage = self._streamed if usage is None else _sum(usage, self._told, -1)
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


def _sum(some: Usage, more: Usage, sign: int) -> Usage:
    names = Usage.__struct_fields__
    sums = {name: getattr(some, name) + sign * getattr(more, name) for name in names}
    return Usage(**{name: max(0, count) for name, count in sums.items()})


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
    last, go_on = len(messages), GO_ON
    if messages and messages[-1].role == "tool":
        go_on = TOOLS_DONE
    while go_on is GO_ON and last > 0 and messages[last - 1].role not in ("assistant", "system"):
        last -= 1
    earlier, now = messages[:last], messages[last:]
    if not earlier:
        return blocks_of(now)
    lines = [msgspec.json.encode({"role": m.role, "text": _plain(m)}).decode() for m in earlier]
    files = [p for m in earlier for p in m.parts if isinstance(p, FilePart) and p.data is not None]
    return [
        _text("\n".join([go_on, "", *lines])),
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

"""Writes conversations down, as JSON or Markdown, and reads what was written as JSON."""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta, Struct

from ksi_completion import tokens
from ksi_completion.conversations import Found, Row
from ksi_completion.events import Globs, Text
from ksi_completion.messages import body_of, decode_parts, encode_parts
from ksi_daemon.protocol import InvalidData
from ksi_models.events import (
    FilePart,
    ModelSettings,
    Part,
    Role,
    TextPart,
    ThinkingPart,
    ToolCallPart,
)

FORMAT: Final = "ksi-conversation"
PIECE_CHARACTERS: Final = 64 * 1024


class About(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a document says of the conversation as a whole."""

    title: Annotated[str, Meta(max_length=200)] = ""
    model: Annotated[str, Meta(max_length=200)] | None = None
    agent: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    system: Text | None = None
    tools: Globs | None = None
    settings: ModelSettings | None = None


class Written(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message in a document."""

    turn: Annotated[int, Meta(ge=0, le=2**53)]
    role: Role
    parts: tuple[Part, ...]
    created_at: Annotated[datetime, Meta(tz=True)]
    model: Annotated[str, Meta(max_length=200)] | None = None


class Document(Struct, frozen=True, kw_only=True):
    """A conversation as ``conversation:export`` writes it."""

    format: Literal["ksi-conversation"]
    version: Literal[1]
    conversation: About
    messages: tuple[Written, ...]


class Writer(Protocol):
    """Writes a conversation, message by message."""

    def begin(self) -> str:
        """Return what comes before the messages."""

    def message(self, row: Row) -> str:
        """Return a message."""

    def end(self) -> str:
        """Return what comes after them."""


class JsonWriter:
    """Writes what can be read in again, a message a line."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._is_first = True

    def begin(self) -> str:
        """Return the document up to its messages."""
        found = self._found
        settings = found.settings
        about = About(
            title=found.title,
            model=found.model,
            agent=found.agent,
            system=found.system,
            tools=found.tools,
            settings=msgspec.json.decode(settings, type=ModelSettings) if settings else None,
        )
        told = msgspec.json.encode(about).decode()
        return f'{{"format":"{FORMAT}","version":1,"conversation":{told},"messages":['

    def message(self, row: Row) -> str:
        """Return a message; what is stored is written as it is."""
        written: dict[str, Any] = {
            "turn": row.turn,
            "role": row.role,
            "parts": msgspec.Raw(row.parts.encode()),
            "created_at": row.created_at,
        }
        if row.model is not None:
            written["model"] = row.model
        comma, self._is_first = "" if self._is_first else ",", False
        return f"{comma}\n{msgspec.json.encode(written).decode()}"

    def end(self) -> str:
        """Close the document."""
        return "\n]}\n"


class MarkdownWriter:
    """Writes what a person reads."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def begin(self) -> str:
        """Return the title and the system prompt."""
        title = self._found.title or self._found.id
        text = f"# {' '.join(title.split())}\n"
        return text + (f"\n{_quoted(self._found.system)}\n" if self._found.system else "")

    def message(self, row: Row) -> str:
        """Return a message under a heading of who said it and when."""
        who = {"user": "User", "assistant": "Assistant", "tool": "Tool", "system": "System"}
        model = f" ({row.model})" if row.model else ""
        at = f"{row.created_at:%Y-%m-%d %H:%M:%S} UTC"
        parts = [_markdown(part) for part in decode_parts(row.parts)]
        return "\n".join([f"\n## {who[row.role]}{model}, {at}\n", *parts])

    def end(self) -> str:
        """Return nothing."""
        return ""


WRITERS: Final[Mapping[str, Callable[[Found], Writer]]] = {
    "json": JsonWriter,
    "markdown": MarkdownWriter,
}


def _markdown(part: Part) -> str:
    if isinstance(part, TextPart):
        return f"{part.text}\n"
    if isinstance(part, ThinkingPart):
        return f"{_quoted(part.text)}\n"
    if isinstance(part, FilePart):
        where = part.url or f"{len(part.data or b'')} bytes"
        return f"*File {part.name or 'without a name'}, {part.media_type}, {where}*\n"
    if isinstance(part, ToolCallPart):
        return f"*Calls `{part.name}`:*\n\n{_fenced(part.arguments, 'json')}\n"
    failed = " (failed)" if part.is_error else ""
    return f"*Result of `{part.name}`{failed}:*\n\n{_fenced(part.content)}\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _fenced(text: str, language: str = "") -> str:
    """Fence a text with more ticks than it has in a row."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces that fit into frames."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def read_document(document: dict[str, Any]) -> Document:
    """Return a document that was decoded from JSON.

    Raises:
        InvalidData: It is none, or none of this version; ``details["path"]`` says where.
    """
    try:
        return msgspec.convert(document, Document)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        place = f"$.document{path.rstrip('`')}"
        message = f"this is no document that conversation:export wrote: {text} at {place}"
        raise InvalidData(message, details={"path": place}) from error


def rows_of(document: Document) -> tuple[list[Row], list[str]]:
    """Return the rows of a document's messages, and their texts; turns never go back.

    Raises:
        InvalidData: A message belongs to a turn before that of the one before it.
    """
    rows: list[Row] = []
    bodies: list[str] = []
    turn = 0
    for number, written in enumerate(document.messages, 1):
        if written.turn < turn:
            raise InvalidData(
                "the messages' turns are not in order",
                details={"path": f"$.document.messages[{number - 1}].turn"},
            )
        turn = written.turn
        row = Row(
            number=number,
            turn=turn,
            role=written.role,
            parts=encode_parts(written.parts),
            tokens=tokens.of_parts(written.parts),
            created_at=written.created_at,
            model=written.model,
        )
        rows.append(row)
        bodies.append(body_of(written.parts))
    return rows, bodies

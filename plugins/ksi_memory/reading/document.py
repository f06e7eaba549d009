"""What a reader makes of a file."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias

from msgspec import Struct

from ksi_memory.events import Edge, NewItem
from ksi_memory.loading.chunks import Form

__all__ = ["Document", "FindsLink", "Reading", "Row", "Rows", "Unreadable"]

FindsLink: TypeAlias = Callable[[str], str | None]
"""Returns the key of the document that a link's target means, if it means one."""


class Unreadable(Exception):
    """A file can't be read; the message is the reason that people are told."""


class Document(Struct, frozen=True, kw_only=True):
    """A text with its structure.

    Attributes:
        text: What is cut into chunks.
        form: How its structure is to be read.
        offset: Where in the file ``text`` begins, in characters.
        title: A line; empty where it says none.
        summary: What it says of itself.
        category: Narrows searches.
        attributes: Anything else.
        persons: Who wrote it, or whom it is about.
        starts_at: When it was written, or what it tells of happened.
        ends_at: Until when.
        edges: What it hangs together with.
    """

    text: str
    form: Form = "text"
    offset: int = 0
    title: str = ""
    summary: str = ""
    category: str | None = None
    attributes: dict[str, Any] = {}
    persons: tuple[str, ...] = ()
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    edges: tuple[Edge, ...] = ()


class Row(Struct, frozen=True, kw_only=True):
    """A row of a file of rows, or why it is none; ``place`` is where it stands, from 0 on."""

    place: int
    key: str
    table: str = ""
    item: NewItem | None = None
    why: str = ""


class Rows(Struct, frozen=True, kw_only=True):
    """The rows of a file."""

    rows: tuple[Row, ...]


Reading: TypeAlias = Document | Rows

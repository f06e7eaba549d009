"""Chooses the reader of a file, by its name's ending and by what stands in it."""

import asyncio
import mimetypes
from pathlib import PurePosixPath
from typing import Any, Final

from msgspec import Struct

from ksi_memory.reading import html, mail, markdown, rows, text
from ksi_memory.reading.document import Document, FindsLink, Reading, Unreadable
from ksi_memory.reading.documents import DOCUMENTS, Extractor

__all__ = ["VERSION", "Given", "Reader", "media_type_of"]

VERSION: Final = 1  # what was read by another one is read again

MARKDOWN: Final = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd"})
HTML: Final = frozenset({".html", ".htm", ".xhtml"})
MAIL: Final = frozenset({".eml"})
ROWS: Final = frozenset({".yaml", ".yml", ".json", ".jsonl", ".ndjson"})
CODE: Final = frozenset(
    (
        ".bash",
        ".bat",
        ".c",
        ".cc",
        ".cfg",
        ".clj",
        ".cmake",
        ".conf",
        ".cpp",
        ".cs",
        ".css",
        ".csv",
        ".cxx",
        ".dart",
        ".diff",
        ".el",
        ".erl",
        ".ex",
        ".exs",
        ".f90",
        ".fish",
        ".fs",
        ".go",
        ".gradle",
        ".graphql",
        ".groovy",
        ".h",
        ".hh",
        ".hpp",
        ".hs",
        ".ini",
        ".java",
        ".jl",
        ".js",
        ".jsx",
        ".kt",
        ".kts",
        ".lisp",
        ".lua",
        ".m",
        ".mjs",
        ".mk",
        ".ml",
        ".mm",
        ".nim",
        ".nix",
        ".patch",
        ".php",
        ".pl",
        ".pm",
        ".proto",
        ".ps1",
        ".py",
        ".pyi",
        ".r",
        ".rb",
        ".rs",
        ".scala",
        ".scss",
        ".sh",
        ".sql",
        ".svelte",
        ".swift",
        ".tcl",
        ".tf",
        ".toml",
        ".ts",
        ".tsv",
        ".tsx",
        ".v",
        ".vb",
        ".vim",
        ".vue",
        ".xml",
        ".zig",
        ".zsh",
    )
)
CODE_NAMES: Final = frozenset({"dockerfile", "makefile", "justfile", "jenkinsfile", "gemfile"})
TYPES: Final = {
    **dict.fromkeys(MARKDOWN, "text/markdown"),
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".jsonl": "application/jsonl",
    ".ndjson": "application/jsonl",
    **DOCUMENTS,
}
# Where a text in prose goes, whatever its form; rows are asked for by any other table.
PROSE_TABLES: Final = frozenset({"resources", "ontologies"})


def media_type_of(name: str) -> str:
    """Return what kind of file bears such a name."""
    ending = PurePosixPath(name).suffix.lower()
    return TYPES.get(ending) or mimetypes.guess_type(name)[0] or "application/octet-stream"


class Given(Struct, frozen=True, kw_only=True):
    """A file that is to be read.

    Attributes:
        name: Its name.
        data: What stands in it.
        table: Where it is to go; empty: wherever it belongs.
        find: Makes keys of its links.
    """

    name: str
    data: bytes
    table: str = ""
    find: FindsLink

    @property
    def ending(self) -> str:
        """How its name ends."""
        return PurePosixPath(self.name).suffix.lower()


class Reader:
    """Reads files of all kinds.

    Args:
        extractor: Reads PDF, DOCX and their like.
        max_characters: How long a text may be.
    """

    def __init__(self, extractor: Extractor, max_characters: int) -> None:
        self._extractor = extractor
        self._max_characters = max_characters

    async def read(self, given: Given) -> tuple[Reading, str]:
        """Return what a file holds, and the table where it belongs; rows know their own.

        Raises:
            Unreadable: It can't be read; the message is the reason.
        """
        if not given.data:
            raise Unreadable("it is empty")
        if given.ending in DOCUMENTS:
            found: Reading = await self._extractor.read(given.data, given.ending, given.find)
        else:
            found = await asyncio.to_thread(_read, given)
        if isinstance(found, Document):
            self._check(found)
        is_markdown = given.ending in MARKDOWN
        return found, given.table or ("ontologies" if is_markdown else "resources")

    def _check(self, document: Document) -> None:
        if not document.text.strip() and not document.title:
            raise Unreadable("it holds no text")
        if len(document.text) > self._max_characters:
            raise Unreadable(
                f"its text has {len(document.text):,} characters; at most "
                f"{self._max_characters:,} are read (memory.max_document_characters)"
            )


def _read(given: Given) -> Reading:
    ending = given.ending
    if ending in MARKDOWN:
        return markdown.read_markdown(given.data, given.find)
    if ending in HTML:
        return html.read_html(given.data, given.find)
    if ending in MAIL:
        return mail.read_mail(given.data)
    if ending in ROWS:
        return _rows_or_text(given)
    if ending in CODE or given.name.lower() in CODE_NAMES:
        return text.read_code(given.data)
    return _text(given)


def _rows_or_text(given: Given) -> Reading:
    """Read rows where a table is told, by the file or by who asks; what else there is, as text."""
    wants_rows = bool(given.table) and given.table not in PROSE_TABLES
    try:
        values: list[Any] = rows.values_of(given.data, given.name.lower())
        is_asked_for = wants_rows or (bool(given.table) and rows.are_plainly_rows(values))
        found = rows.read_rows(values, given.table if is_asked_for else "")
    except Unreadable:
        if wants_rows:
            raise
        found = None
    if found is not None:
        return found
    if wants_rows:
        raise Unreadable("it holds no rows: a list, each with its key, or rows by their keys")
    return text.read_code(given.data)


def _text(given: Given) -> Document:
    try:
        return text.read_text(given.data)
    except Unreadable as error:
        kind = media_type_of(given.name)
        if kind.startswith("text/") or given.ending in (".txt", ".log", ".rst", ".org"):
            raise
        raise Unreadable(f"{kind} is not read, and {error}") from error

"""Reads Markdown: front matter, headings, and links, which become edges."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from ksi_memory.events import Edge
from ksi_memory.loading.chunks import headings_of, without_fences
from ksi_memory.reading import plain
from ksi_memory.reading.document import Document, FindsLink, Unreadable
from ksi_memory.reading.text import decoded
from ksi_memory.reading.yaml_text import read_yaml

__all__ = ["links_of", "read_markdown", "read_markdown_text"]

MAX_EDGES: Final = 1000
MAX_KEY: Final = 1000
MAX_SUMMARY: Final = 1000
LINKS_TO: Final = "links_to"

_FRONT: Final = re.compile(
    r"---[ \t]*\r?\n(.*?)(?:^|\n)(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL
)
_FIELD: Final = re.compile(r"\s*(?:#.*\n\s*)*[\w\"'][^\n]{0,200}?:(?:\s|$)")
_CODE: Final = re.compile(r"`[^`\n]{1,1000}`")
_WIKI: Final = re.compile(r"\[\[([^\[\]\n|]{1,1000})(?:\|[^\[\]\n]{0,1000})?\]\]")
_INLINE: Final = re.compile(
    r"\]\(\s*(?:<([^<>\n]{1,2000})>|([^\s()<>]{1,2000}(?:\([^\s()]{0,500}\)[^\s()]{0,500})?))"
    r"(?:\s+(?:\"[^\"\n]{0,500}\"|'[^'\n]{0,500}'))?\s*\)"
)
_REFERENCE: Final = re.compile(r"^ {0,3}\[[^\]\n]{1,500}\]:\s*<?([^\s<>]{1,2000})>?", re.MULTILINE)

_TITLE: Final = ("title", "name", "subject")
_SUMMARY: Final = ("description", "summary", "abstract", "excerpt")
_PERSONS: Final = ("persons", "people", "person", "author", "authors", "participants", "attendees")
_START: Final = ("starts_at", "start", "date", "created", "created_at", "published")
_END: Final = ("ends_at", "end")
_CATEGORY: Final = ("category", "type", "kind")


def read_markdown(data: bytes, find: FindsLink) -> Document:
    """Read a Markdown file.

    Raises:
        Unreadable: It is no text, or its front matter can't be read.
    """
    return read_markdown_text(decoded(data), find)


def read_markdown_text(text: str, find: FindsLink) -> Document:
    """Read a Markdown text; see `read_markdown`."""
    front, begins = _front_matter(text)
    body = text[begins:]
    try:
        document = _headed(body, front)
    except Unreadable as error:
        raise Unreadable(f"its front matter: {error}") from error
    edges = (*_edges_of_fields(front, find), *_edges_of_links(body, find))
    return _with(document, offset=begins, edges=tuple(dict.fromkeys(edges))[:MAX_EDGES])


def _with(document: Document, **changed: Any) -> Document:
    fields = {name: getattr(document, name) for name in document.__struct_fields__}
    return Document(**{**fields, **changed})


# -- front matter ---------------------------------------------------------------------------------


def _front_matter(text: str) -> tuple[dict[str, Any], int]:
    """Return the fields before a text, and where the text begins."""
    match = _FRONT.match(text)
    if match is None or not _FIELD.match(match[1]):
        return {}, 0  # a rule, then text
    try:
        found = read_yaml(match[1])
    except Unreadable as error:
        raise Unreadable(f"its front matter: {error}") from error
    if len(found) != 1 or not isinstance(found[0], dict):
        return {}, 0
    return {plain.text_of(key): value for key, value in found[0].items()}, match.end()


def _headed(text: str, front: dict[str, Any]) -> Document:
    """Make a document of a text and its front matter."""
    rest = dict(front)
    title = _taken(rest, _TITLE)
    summary = _taken(rest, _SUMMARY)
    persons = tuple(
        dict.fromkeys(
            _bare(name)
            for field in _PERSONS
            for name in plain.names_of(rest.pop(field, None))
            if 0 < len(_bare(name)) <= MAX_KEY
        )
    )
    starts_at, ends_at = plain.span_of(_time(rest, _START), _time(rest, _END))
    category = next((str(front[field]) for field in _CATEGORY if _is_line(front.get(field))), None)
    for name, value in rest.items():
        for each in value if isinstance(value, list) else [value]:
            plain.time_of(each, name)  # a date that doesn't exist is told, wherever it stands
    headings = headings_of(text)
    return Document(
        text=text,
        form="markdown",
        title=(title or (headings[0].title if headings else ""))[:2000],
        summary=summary[:MAX_SUMMARY],
        category=category[:200] if category else None,
        attributes={name: plain.plain(value) for name, value in rest.items()},
        persons=persons,
        starts_at=starts_at,
        ends_at=ends_at,
    )


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _taken(rest: dict[str, Any], names: tuple[str, ...]) -> str:
    """Take out the first of some fields that is a line."""
    for name in names:
        if _is_line(rest.get(name)):
            return plain.text_of(rest.pop(name)).strip()
        if isinstance(rest.get(name), int | float):
            return plain.text_of(rest.pop(name))
    return ""


def _time(rest: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Take out the first of some fields that is a time; what is none stays an attribute."""
    for name in names:
        if plain.time_of(rest.get(name), name) is not None:
            return rest.pop(name)
    return None


def _bare(name: str) -> str:
    """Return a name without what makes it a link."""
    match = _WIKI.fullmatch(name.strip())
    return (match[1] if match else name).strip()


# -- links ----------------------------------------------------------------------------------------


def _edges_of_fields(front: dict[str, Any], find: FindsLink) -> Iterator[Edge]:
    """Yield an edge for each ``[[link]]`` in the front matter; the field is the relation."""
    for name, value in front.items():
        for each in value if isinstance(value, list) else [value]:
            for match in _WIKI.finditer(each) if isinstance(each, str) else ():
                if (key := _key_of(match[1], find)) is not None and 0 < len(name) <= 200:
                    yield Edge(to=key, relation=name)


def _edges_of_links(text: str, find: FindsLink) -> Iterator[Edge]:
    for target in links_of(text):
        if (key := _key_of(target, find)) is not None:
            yield Edge(to=key, relation=LINKS_TO)


def links_of(text: str) -> Iterator[str]:
    """Yield the targets of a text's links in their order, but for those in code."""
    shown = _CODE.sub("", without_fences(text)) if "`" in text or "~~~" in text else text
    for match in _WIKI.finditer(shown):
        yield match[1]
    for match in _INLINE.finditer(shown):
        yield unquote(match[1] or match[2])
    for match in _REFERENCE.finditer(shown):
        yield unquote(match[1])


def _key_of(target: str, find: FindsLink) -> str | None:
    """Return the key that a link's target names, if it names one."""
    target = target.strip()
    if not target or target.startswith("#"):
        return None
    if "://" in target[:20] or target[:7].lower() == "mailto:":
        key: str | None = target
    else:
        try:
            path = urlsplit(target).path if "#" in target or "?" in target else target
        except ValueError:  # it looks like an address with a bad port
            path = target
        key = find(path.strip()) if path.strip() else None
    if key is None or not 0 < len(key) <= MAX_KEY or "\0" in key:
        return None
    return key


def beside(document: str, target: str) -> str:
    """Return the key of a path that is written in a document with another key."""
    if target.startswith("/"):
        root = document.partition("/")[0]
        return posixpath.normpath(f"{root}/{target.lstrip('/')}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), target))

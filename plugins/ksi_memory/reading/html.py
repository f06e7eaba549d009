"""Reads HTML, by the standard library's parser: what a person would see, with its structure."""

import re
from html.parser import HTMLParser
from typing import Final

from ksi_memory.reading import plain
from ksi_memory.reading.document import Document, FindsLink, Unreadable
from ksi_memory.reading.markdown import read_markdown_text
from ksi_memory.reading.text import decoded, refuse_what_is_no_text

__all__ = ["markdown_of", "read_html"]

_HIDDEN: Final = frozenset({"script", "style", "template", "noscript", "svg", "math", "head"})
_BLOCKS: Final = frozenset(
    (
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "html",
        "main",
        "nav",
        "ol",
        "p",
        "section",
        "summary",
        "table",
        "tbody",
        "thead",
        "tfoot",
        "tr",
        "ul",
    )
)
_HEADINGS: Final = {f"h{depth}": depth for depth in range(1, 7)}
_CELLS: Final = ("td", "th")
_BLANK: Final = re.compile(r"\s+")
_EMPTY: Final = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_NO_TAG: Final = re.compile(r"<(?![A-Za-z/!?][^<>]{0,2000}>)")
_CHARSET: Final = re.compile(
    rb"<meta[^>]{0,200}charset=[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE
)
_NAMES: Final = {
    "title": ("og:title",),
    "summary": ("description", "og:description"),
    "author": ("author", "article:author"),
    "date": ("date", "article:published_time", "dcterms.date"),
}


def _tamed(markup: str) -> str:
    """Return a page that the parser reads in a time that grows with its length alone.

    It tries whatever begins and has no end again and again: a comment, a tag, a quoted value. So
    comments go before, and what is no whole tag is made the sign that it is.
    """
    kept, end = [], 0
    while (start := markup.find("<!--", end)) >= 0:
        kept.append(markup[end:start])
        closed = markup.find("-->", start + 4)
        end = len(markup) if closed < 0 else closed + 3
    return _NO_TAG.sub("&lt;", "".join((*kept, markup[end:])))


class _Page(HTMLParser):
    """Writes down what is seen, as Markdown."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title = ""
        self.meta: dict[str, str] = {}
        self._hidden = 0
        self._in_title = False
        self._in_code = 0
        self._links: list[tuple[int, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what begins."""
        given = {name: value or "" for name, value in attrs}
        if tag == "title":
            self._in_title = not self.title
        elif tag == "meta":
            self._note(given)
        elif tag in _HIDDEN:
            self._hidden += 1
        elif not self._hidden:
            self._begin(tag, given)

    def _begin(self, tag: str, given: dict[str, str]) -> None:
        if tag in _HEADINGS:
            self.parts.append("\n\n" + "#" * _HEADINGS[tag] + " ")
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag == "br":
            self.parts.append("\n")
        elif tag == "pre":
            self._in_code += 1
            self.parts.append("\n\n```\n")
        elif tag in _CELLS:
            self.parts.append(" | ")
        elif tag == "a" and given.get("href"):
            self._links.append((len(self.parts), given["href"]))
        elif tag in _BLOCKS:
            self.parts.append("\n" if tag == "tr" else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        """Note what ends."""
        if tag == "title":
            self._in_title = False
        elif tag in _HIDDEN:
            self._hidden = max(self._hidden - 1, 0)
        elif self._hidden:
            return
        elif tag == "pre" and self._in_code:
            self._in_code -= 1
            self.parts.append("\n```\n\n")
        elif tag == "a" and self._links:
            self._link(*self._links.pop())
        elif tag in _HEADINGS or (tag in _BLOCKS and tag != "tr"):
            self.parts.append("\n\n")

    def _link(self, began: int, target: str) -> None:
        label = _BLANK.sub(" ", "".join(self.parts[began:])).strip()
        target = target.strip()
        if target.startswith(("#", "javascript:", "data:")) or re.search(r"[\s<>]", target):
            return
        if label and "\n" not in "".join(self.parts[began:]):
            self.parts[began:] = [f"[{label.replace('[', '(').replace(']', ')')}](<{target}>)"]

    def handle_data(self, data: str) -> None:
        """Take in text."""
        if self._in_title:
            self.title += data
        elif not self._hidden:
            self.parts.append(data if self._in_code else _BLANK.sub(" ", data))

    def _note(self, given: dict[str, str]) -> None:
        name = (given.get("name") or given.get("property") or "").lower()
        if name and given.get("content"):
            self.meta.setdefault(name, given["content"])

    def named(self, field: str) -> str:
        """Return what the page says of itself."""
        found = (self.meta[name] for name in _NAMES[field] if name in self.meta)
        return _BLANK.sub(" ", next(found, "")).strip()


def markdown_of(markup: str) -> tuple[str, _Page]:
    """Return a page as Markdown.

    Raises:
        Unreadable: The parser gives up.
    """
    page = _Page()
    try:
        page.feed(_tamed(markup))
        page.close()
    except (AssertionError, ValueError, RecursionError) as error:  # what the parser knows to raise
        raise Unreadable(f"it is no HTML that can be read: {error}") from error
    lines = (
        line.strip(" \t") if "|" not in line else line for line in "".join(page.parts).split("\n")
    )
    return _EMPTY.sub("\n\n", "\n".join(lines)).strip() + "\n", page


def read_html(data: bytes, find: FindsLink) -> Document:
    """Read a page.

    Raises:
        Unreadable: It is no text.
    """
    text, page = markdown_of(_decoded(data))
    refuse_what_is_no_text(text)
    document = read_markdown_text("\n" + text, find)
    return Document(
        text=document.text,
        form="markdown",
        title=(_BLANK.sub(" ", page.title).strip() or page.named("title") or document.title)[:2000],
        summary=page.named("summary")[:1000],
        persons=plain.names_of([page.named("author")[:1000]]),
        starts_at=plain.time_of(page.named("date"), "date"),
        edges=document.edges,
    )


def _decoded(data: bytes) -> str:
    """Decode a page: UTF-8, or what it declares."""
    try:
        return decoded(data)
    except Unreadable:
        declared = _CHARSET.search(data[:2048])
        if declared is None or b"\0" in data:
            raise
        try:
            return data.decode(declared[1].decode())
        except (UnicodeDecodeError, LookupError, ValueError):
            pass
        raise

"""Reads plain text and code."""

import codecs
import re
from typing import Final

from ksi_memory.reading.document import Document, Unreadable

__all__ = ["decoded", "read_code", "read_text", "refuse_what_is_no_text"]

# The longer ones first: that of UTF-16 begins that of UTF-32.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE: Final = re.compile(r"[^\s].*")
MAX_TITLE: Final = 200


def decoded(data: bytes) -> str:
    """Return a file's text: UTF-8, or what its first bytes say.

    Raises:
        Unreadable: It is none.
    """
    encoding, body = "utf-8", data
    for mark, name in _MARKS:
        if data.startswith(mark):
            encoding, body = name, data[len(mark) :]
            break
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        if (zero := data.find(b"\0")) >= 0:
            raise Unreadable(f"it is no text: its byte {zero} is zero") from error
        at = error.start + len(data) - len(body)
        wrong = body[error.start]
        raise Unreadable(
            f"it is not {encoding.upper()}: its byte {at} is 0x{wrong:02x}; convert it first"
        ) from error
    refuse_what_is_no_text(text)
    return text


def refuse_what_is_no_text(text: str) -> None:
    """See to it that a text can be kept.

    Raises:
        Unreadable: It has a character that stands for nothing that is written.
    """
    if (zero := text.find("\0")) >= 0:
        raise Unreadable(f"it is no text: its character {zero} is a zero")
    if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
        raise Unreadable("it is no text: it has half of a surrogate pair")


def read_text(data: bytes) -> Document:
    """Read prose without marks; its first line is its title where it is a short one."""
    text = decoded(data)
    first = _LINE.search(text)
    line = first[0].strip() if first else ""
    return Document(text=text, title=line if len(line) <= MAX_TITLE else "")


def read_code(data: bytes) -> Document:
    """Read code, or data in a form for machines."""
    return Document(text=decoded(data), form="code")

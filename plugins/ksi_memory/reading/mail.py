"""Reads an e-mail, by the standard library: who wrote to whom, when, and what it says."""

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.errors import MessageError
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from typing import Any, Final

from ksi_memory.loading.chunks import Form
from ksi_memory.reading.document import Document, Unreadable
from ksi_memory.reading.html import markdown_of
from ksi_memory.reading.text import refuse_what_is_no_text

__all__ = ["read_mail"]

MAX_PERSONS: Final = 100
MAX_PARTS: Final = 1000
NEEDED: Final = ("From", "Date", "Subject", "Message-ID", "Received", "To")
# What the parser and its header registry are known to raise on hostile input.
FAULTS: Final = (
    MessageError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    RecursionError,
)  # fmt: skip


def read_mail(data: bytes) -> Document:
    """Read a message; of what is attached only the names are kept.

    Raises:
        Unreadable: It is none, or has no text.
    """
    try:
        return _read(data)
    except FAULTS as error:
        raise Unreadable(f"it is no e-mail that can be read: {error}") from error


def _read(data: bytes) -> Document:
    message = message_from_bytes(data, policy=policy.default)
    assert isinstance(message, EmailMessage)
    if not any(_header(message, name) for name in NEEDED):
        raise Unreadable("it is no e-mail: it has no headers")
    text, form = _body(message)
    refuse_what_is_no_text(text)
    attributes: dict[str, Any] = {
        "message_id": _header(message, "Message-ID")[:1000],
        "in_reply_to": _header(message, "In-Reply-To")[:1000],
        "from": _header(message, "From")[:1000],
        "to": _header(message, "To")[:2000],
        "attachments": _attached(message),
    }
    return Document(
        text=text,
        form=form,
        title=_header(message, "Subject")[:2000],
        category="mail",
        attributes={name: value for name, value in attributes.items() if value},
        persons=_persons(message),
        starts_at=_date(message),
    )


def _header(message: EmailMessage, name: str) -> str:
    value = message.get(name)
    return "" if value is None else " ".join(_kept(str(value)).split())


def _kept(text: str) -> str:
    """Return a header without bytes that are no text, which the parser hands on as they are."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _persons(message: EmailMessage) -> tuple[str, ...]:
    written = [_header(message, name) for name in ("From", "To", "Cc")]
    found = (name.strip() or address.strip() for name, address in getaddresses(written))
    return tuple(dict.fromkeys(each[:200] for each in found if each))[:MAX_PERSONS]


def _date(message: EmailMessage) -> datetime | None:
    written = _header(message, "Date")
    if not written:
        return None
    try:
        found = parsedate_to_datetime(written)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError) as error:
        raise Unreadable(f"its date, {written[:60]!r}, is no time that exists") from error


def _body(message: EmailMessage) -> tuple[str, Form]:
    """Return what a message says: its plain text, or else its page."""
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        raise Unreadable("it is an e-mail without text")
    content = part.get_content()
    if not isinstance(content, str):
        raise Unreadable("it is an e-mail without text")
    if part.get_content_subtype() == "html":
        return markdown_of(content)[0], "markdown"
    return content, "text"


def _attached(message: EmailMessage) -> list[str]:
    names = []
    for count, part in enumerate(message.walk()):
        if count >= MAX_PARTS:
            break
        if name := part.get_filename():
            names.append(_kept(str(name))[:200])
    return names

"""What a front end's message says: text, and images and files within it or by their address."""

import base64
import binascii
import mimetypes
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import InvalidData

MAX_FILES: Final = 20  # of one request, its history included
MAX_ADDRESS: Final = 8000
MEDIA: Final = ("image", "audio", "video", "document")
LINKED: Final = ("image/", "application/pdf")  # what models are told the address of
USUAL: Final = {"image": "image/png"}  # of an address that does not say what is there


class Source(Struct, frozen=True, kw_only=True, rename="camel"):
    """Where the bytes of a part are."""

    type: str
    value: str
    mime_type: str | None = None


class ContentPart(Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of a message; one of the type ``binary`` has no source, as older front ends send it.

    ``metadata.filename`` is a file's name.
    """

    type: str
    text: str = ""
    source: Source | None = None
    metadata: Any = None
    mime_type: str | None = None
    data: str | None = None
    url: str | None = None
    filename: str | None = None

    @property
    def name(self) -> str | None:
        """The file's name."""
        named = self.metadata.get("filename") if isinstance(self.metadata, dict) else self.filename
        return named[:200] if isinstance(named, str) and named else None


def read(content: Any, of: str) -> tuple[ContentPart, ...]:
    """Return the parts of a message's content.

    Args:
        content: A text, or parts.
        of: The message, for errors.

    Raises:
        InvalidData: It is neither.
    """
    if isinstance(content, str):
        return (ContentPart(type="text", text=content),) if content else ()
    try:
        return msgspec.convert(content or (), tuple[ContentPart, ...])
    except msgspec.ValidationError as error:
        raise InvalidData(f"the content of {of}: {error}") from error


def as_part(part: ContentPart, of: str) -> dict[str, Any]:
    """Return a part as turns have it.

    Raises:
        InvalidData: It is of a kind that models are not handed on, or makes no sense.
    """
    if part.type == "text":
        return {"kind": "text", "text": part.text}
    if part.type == "binary":
        source = _source_of(part, of)
    elif part.type in MEDIA and part.source is not None:
        source = part.source
    else:
        raise InvalidData(
            f"{of}: a part of the type {part.type[:50]!r} is not read here; there are text, "
            f"{', '.join(MEDIA)}, these with a source"
        )
    return {"kind": "file", **_file(part, source, of), **({"name": part.name} if part.name else {})}


def _source_of(part: ContentPart, of: str) -> Source:
    if part.data:
        return Source(type="data", value=part.data, mime_type=part.mime_type)
    if part.url:
        return Source(type="url", value=part.url, mime_type=part.mime_type)
    raise InvalidData(f"{of}: a file is sent as its data, or by its url")


def _file(part: ContentPart, source: Source, of: str) -> dict[str, str]:
    if source.type == "url":
        if source.value[:5].lower() == "data:":
            return _within(source.value, of)
        return _linked(part, source, of)
    if source.type != "data":
        raise InvalidData(
            f"{of}: a file is sent as its data, or by its url; {source.type[:50]!r} is somebody "
            "else's to read"
        )
    if not source.mime_type:
        raise InvalidData(f"{of}: a file's data needs its mimeType")
    return {"media_type": source.mime_type, "data": _checked(source.value, of)}


def _within(address: str, of: str) -> dict[str, str]:
    """Read what is in an address itself (RFC 2397)."""
    head, comma, data = address[5:].partition(",")
    media_type, *more = head.split(";")
    if not comma or "base64" not in more:
        raise InvalidData(f"{of}: an address with data has to be data:<type>;base64,<data>")
    return {"media_type": media_type or "text/plain", "data": _checked(data, of)}


def _linked(part: ContentPart, source: Source, of: str) -> dict[str, str]:
    address = urlsplit(source.value) if len(source.value) <= MAX_ADDRESS else None
    if address is None or address.scheme not in ("http", "https") or not address.hostname:
        raise InvalidData(f"{of}: the url of a file is http or https, or has the data in it")
    guessed = mimetypes.guess_type(address.path)[0] or USUAL.get(part.type, "")
    media_type = source.mime_type or guessed
    if not media_type.startswith(LINKED):
        raise InvalidData(
            f"{of}: models read images and PDFs by their address, and no "
            f"{(media_type or part.type)[:100]}: send its data"
        )
    return {"media_type": media_type, "url": source.value}


def _checked(data: str, of: str) -> str:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidData(f"{of}: the data of a file is no base64") from error
    return data

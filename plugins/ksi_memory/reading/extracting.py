"""The process that reads one document by Kreuzberg: the file on stdin, the answer on stdout.

It imports little, since it is started for each.
"""

import resource
import sys
from typing import Any, Final

import msgspec
from msgspec import Struct

MAX_WRITTEN_BYTES: Final = 256 * 1024 * 1024  # its library unpacks another one


class Extracted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the process answers: the text as Markdown, and what the file says of itself."""

    text: str = ""
    title: str = ""
    persons: tuple[str, ...] = ()
    created: str = ""
    pages: int = 0
    why: str = ""


def main(media_type: str, memory_mb: int, cpu_s: int, max_characters: int) -> None:
    """Read a document within limits, and write what came of it."""
    _limit(memory_mb, cpu_s)
    data = sys.stdin.buffer.read()
    try:
        found = extracted(data, media_type)
    except MemoryError:
        found = Extracted(why=f"it needs more than {memory_mb} MB (memory.reader_memory_mb)")
    if len(found.text) > max_characters:
        found = Extracted(
            why=f"its text has {len(found.text):,} characters; at most {max_characters:,} are "
            "read (memory.max_document_characters)"
        )
    sys.stdout.buffer.write(msgspec.json.encode(found))


def _limit(memory_mb: int, cpu_s: int) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, memory_mb * 1024 * 1024),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, MAX_WRITTEN_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        lowest = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (lowest, lowest))


def extracted(data: bytes, media_type: str) -> Extracted:
    """Return what Kreuzberg makes of a document, or why it can't."""
    import kreuzberg  # noqa: PLC0415  after the limits hold, and only where it is needed

    config = kreuzberg.ExtractionConfig(use_cache=False, output_format="markdown")
    try:
        result = kreuzberg.extract_bytes_sync(data, media_type, config)
    except (kreuzberg.KreuzbergError, RuntimeError, ValueError, OSError) as error:
        return Extracted(why=_line(error))
    said: dict[str, Any] = dict(result.metadata)
    core = said.get("core_properties")
    known = {**(core if isinstance(core, dict) else {}), **{k: v for k, v in said.items() if v}}
    return Extracted(
        text=result.content.encode("utf-8", "replace").decode(),
        title=_text(known.get("title"))[:2000],
        persons=tuple(_names(known.get("authors") or known.get("creator"))),
        created=_text(known.get("created_at") or known.get("created")),
        pages=int(known.get("page_count") or 0),
    )


def _line(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:300]


def _text(value: Any) -> str:
    return " ".join(value.split()).replace("\0", "") if isinstance(value, str) else ""


def _names(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [name[:200] for each in listed[:100] if (name := _text(each))]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))

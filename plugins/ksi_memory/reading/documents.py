"""Reads PDF, DOCX and their like by Kreuzberg, in a process of its own.

Such files are often made to harm who reads them. The process has limits of time and of memory, no
variables of the daemon's, a folder of its own for what its library unpacks, and writes nothing but
its answer; whatever becomes of it, the daemon says that this one file can't be read.
"""

import asyncio
import contextlib
import importlib.util
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from ksi_memory.reading import plain
from ksi_memory.reading.document import Document, FindsLink, Unreadable
from ksi_memory.reading.extracting import Extracted
from ksi_memory.reading.markdown import read_markdown_text
from ksi_memory.reading.text import refuse_what_is_no_text

__all__ = ["DOCUMENTS", "Extractor", "is_installed"]

_OFFICE: Final = "application/vnd.openxmlformats-officedocument"
_OPEN: Final = "application/vnd.oasis.opendocument"
DOCUMENTS: Final = {
    ".pdf": "application/pdf",
    ".docx": f"{_OFFICE}.wordprocessingml.document",
    ".pptx": f"{_OFFICE}.presentationml.presentation",
    ".xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    ".odt": f"{_OPEN}.text",
    ".ods": f"{_OPEN}.spreadsheet",
    ".rtf": "application/rtf",
    ".epub": "application/epub+zip",
    ".doc": "application/msword",
    ".ppt": "application/vnd.ms-powerpoint",
    ".xls": "application/vnd.ms-excel",
    ".msg": "application/vnd.ms-outlook",
}
_ZIPPED: Final = (".docx", ".pptx", ".xlsx", ".odt", ".ods", ".epub")
_PDF_WITHIN: Final = 1024  # a reader looks for its mark so far
_COMPOUND: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_MARKS: Final = {".doc": _COMPOUND, ".ppt": _COMPOUND, ".xls": _COMPOUND, ".msg": _COMPOUND}
_NOT_INSTALLED: Final = "{what} files are read by an extra: install ksi[documents]"
_SILENT: Final = "its reader ended without an answer ({how})"


def is_installed() -> bool:
    """Say whether the extra is there."""
    return importlib.util.find_spec("kreuzberg") is not None


class Extractor(Struct, frozen=True):
    """Has documents read.

    Args:
        folder: For what the library unpacks; nobody else may write there.
        timeout_s: How long a document may take.
        memory_mb: How much memory the process may have.
        max_characters: How long a text may be.
        max_unpacked_bytes: To how much a packed file may come.
    """

    folder: Path
    timeout_s: float
    memory_mb: int
    max_characters: int
    max_unpacked_bytes: int

    async def read(self, data: bytes, ending: str, find: FindsLink) -> Document:
        """Read a document.

        Args:
            data: The file.
            ending: Of its name, one of `DOCUMENTS`.
            find: Makes keys of links.

        Raises:
            Unreadable: It can't be read, takes too long or too much, or the extra is missing.
        """
        self._check(data, ending)
        if not is_installed():
            raise Unreadable(_NOT_INSTALLED.format(what=ending[1:].upper()))
        found = await self._extracted(data, DOCUMENTS[ending])
        if found.why:
            raise Unreadable(f"it is no {ending[1:].upper()} that can be read: {found.why}")
        refuse_what_is_no_text(found.text)
        document = await asyncio.to_thread(read_markdown_text, "\n" + found.text, find)
        return Document(
            text=found.text,
            form="markdown",
            title=found.title or document.title,
            attributes={"pages": found.pages} if found.pages else {},
            persons=found.persons,
            starts_at=_created(found.created),
            edges=document.edges,
        )

    def _check(self, data: bytes, ending: str) -> None:
        """Refuse what is not what it is called, and what would unpack to too much."""
        what = ending[1:].upper()
        if ending == ".pdf" and b"%PDF-" not in data[:_PDF_WITHIN]:
            raise Unreadable("it is no PDF: it does not begin as one")
        if ending == ".rtf" and not data.lstrip()[:5] == b"{\\rtf":
            raise Unreadable("it is no RTF: it does not begin as one")
        mark = _MARKS.get(ending)
        if mark is not None and not data.startswith(mark):
            raise Unreadable(f"it is no {what}: it does not begin as one")
        if ending in _ZIPPED:
            self._check_packed(data, what)

    def _check_packed(self, data: bytes, what: str) -> None:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                size = sum(each.file_size for each in packed.infolist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise Unreadable(f"it is no {what}: {error}") from error
        if size > self.max_unpacked_bytes:
            raise Unreadable(
                f"it unpacks to {size:,} bytes; at most {self.max_unpacked_bytes:,} are read "
                "(memory.max_unpacked_bytes)"
            )

    async def _extracted(self, data: bytes, media_type: str) -> Extracted:
        await asyncio.to_thread(self.folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "ksi_memory.reading.extracting",
            media_type,
            str(self.memory_mb),
            str(int(self.timeout_s) + 1),
            str(self.max_characters),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=self.folder,
            env=self._environment(),
            limit=2**20,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await self._answer(process, data)
        except TimeoutError as error:
            raise Unreadable(
                f"it took longer than {self.timeout_s:g} s to read (memory.reader_timeout_s)"
            ) from error
        finally:
            await _end(process)
        return self._decoded(answer, process.returncode)

    async def _answer(self, process: asyncio.subprocess.Process, data: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it has ended; what it said tells
            process.stdin.write(data)
            await process.stdin.drain()
            process.stdin.close()
        most = 6 * self.max_characters + 2**20  # a character of JSON has six bytes at most
        answer = bytearray()
        while part := await process.stdout.read(2**18):
            answer += part
            if len(answer) > most:
                raise Unreadable("its reader answers without end")
        await process.wait()
        return bytes(answer)

    def _environment(self) -> dict[str, str]:
        """Return what the process needs, and nothing that is secret."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        paths = os.pathsep.join(path for path in sys.path if path)
        return {**kept, "HOME": str(self.folder), "TMPDIR": str(self.folder), "PYTHONPATH": paths}

    def _decoded(self, answer: bytes, code: int | None) -> Extracted:
        try:
            return msgspec.json.decode(answer, type=Extracted)
        except (msgspec.DecodeError, UnicodeDecodeError):
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            bound = f"; it may have {self.memory_mb} MB (memory.reader_memory_mb)"
            raise Unreadable(_SILENT.format(how=how) + bound) from None


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process, whatever it does."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    # Its pipe may hold more than anybody wants; the transport is closed with it.
    transport: Any = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
    await asyncio.shield(process.wait())


def _created(written: str) -> Any:
    with contextlib.suppress(Unreadable):  # what it says of itself is often nonsense
        return plain.time_of(written, "created")
    return None

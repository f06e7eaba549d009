"""The file that security-relevant records stand in until Postgres has them."""

import asyncio
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from ksi_daemon.protocol import Unavailable

log = logging.getLogger(__name__)

READ_BYTES: Final = 1024 * 1024


class Spool:
    """An append-only file of lines, mode 0600, bounded.

    What `append` has returned from survives the end of this process; what `sync` has returned from
    survives the end of the system. The first line names the file's contents, so that Postgres can
    tell what it has of them; where that is all, the file begins anew under another name.

    Args:
        path: The file; it is made.
        max_bytes: How large it may grow.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = -1
        self.name = ""
        self.size = 0
        self.moved = 0  # up to where Postgres has it
        self.refused = 0  # how many records found no room

    def open(self) -> None:
        """Open the file, as the process before has left it."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            log.error("the end of a record was lost", extra={"file": str(self._path)})
            os.ftruncate(self._file, whole)
        first = content[: content.find(b"\n") + 1]
        if not first:
            self._begin()
            return
        self.name = json.loads(first)["spool"]
        self.size, self.moved = whole, len(first)

    def close(self) -> None:
        """Close the file; what stands in it waits for the next start."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def waiting_bytes(self) -> int:
        """How much Postgres does not have yet."""
        return self.size - self.moved

    def append(self, line: bytes) -> int:
        """Write a record, and return where it ends.

        Raises:
            Unavailable: The file is full, or its disk.
        """
        if self.size + len(line) > self._max_bytes:
            self.refused += 1
            raise Unavailable(
                "what is security-relevant can't be recorded: the file that waits for Postgres is "
                "full (journal.spool_bytes)",
                retry_after_s=5.0,
            )
        try:
            written = os.write(self._file, line + b"\n")
            if written <= len(line):
                os.ftruncate(self._file, self.size)
                raise OSError("there was no room for the whole record")
        except OSError as error:
            self.refused += 1
            raise Unavailable(
                f"what is security-relevant can't be recorded: {error}", retry_after_s=5.0
            ) from error
        self.size += written
        return self.size

    async def sync(self) -> None:
        """Have the disk keep what was appended."""
        await asyncio.to_thread(os.fdatasync if hasattr(os, "fdatasync") else os.fsync, self._file)

    def unmoved(self) -> tuple[list[bytes], int]:
        """Return the next records that Postgres does not have, and where they end."""
        part = os.pread(self._file, READ_BYTES, self.moved)
        end = part.rfind(b"\n") + 1
        if not end and part:  # a record is longer than what is read at once
            part = os.pread(self._file, self.waiting_bytes, self.moved)
            end = part.find(b"\n") + 1
        return part[:end].splitlines(), self.moved + end

    def set_moved(self, end: int) -> None:
        """Note that Postgres has all up to ``end``; a file of which it has all is emptied."""
        self.moved = min(max(end, self.moved), self.size)
        if self.moved == self.size and len(self._header()) < self.size:
            self._begin()

    def _begin(self) -> None:
        self.name = secrets.token_hex(8)
        os.ftruncate(self._file, 0)
        self.size = self.moved = os.write(self._file, self._header())

    def _header(self) -> bytes:
        return json.dumps({"spool": self.name}).encode() + b"\n"

"""What the embedded Postgres writes, kept in two files of bounded size."""

import contextlib
import logging
import os
from collections import deque
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
MAX_LINE_BYTES: Final = 4096
TAIL_LINES: Final = 40


class ServerLog:
    """Takes a server's output: into files for people, and its last lines into memory.

    Postgres' own logging collector can't do it: it only ever appends when a file grows beyond its
    size, so that a storm fills the disk.

    Args:
        folder: Where ``postgres.log``, and ``postgres.1.log`` before it, are put.
        max_file_bytes: When the file is put aside for a new one.
    """

    def __init__(self, folder: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self.file = folder / "postgres.log"
        self.earlier_file = folder / "postgres.1.log"
        self._max_file_bytes = max_file_bytes
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._part = b""
        self._handle: int | None = None
        self._size = 0

    def write(self, output: bytes) -> list[str]:
        """Keep output; returns the lines that it completes."""
        self._store(output)
        *whole, rest = (self._part + output).split(b"\n")
        self._part = rest[-MAX_LINE_BYTES:]
        lines = [line[:MAX_LINE_BYTES].decode(errors="replace") for line in whole]
        self._tail.extend(lines)
        return lines

    def tail(self) -> list[str]:
        """Return the last lines, the oldest first."""
        return [*self._tail]

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _store(self, output: bytes) -> None:
        # A full disk must not end who runs the server; the tail is in memory.
        with contextlib.suppress(OSError):
            if self._handle is None or self._size >= self._max_file_bytes:
                self._open()
            if self._handle is not None:
                self._size += os.write(self._handle, output)

    def _open(self) -> None:
        self.close()
        if self.file.exists() and self.file.stat().st_size >= self._max_file_bytes:
            self.file.replace(self.earlier_file)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(self.file, flags, 0o600)
        self._size = os.fstat(self._handle).st_size

"""A terminal for tests: runs a command in it, types, and waits for what it shows."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator, Mapping

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")
BLANKS = re.compile(r"\s+")
ASK_CURSOR = b"\x1b[6n"
WAIT_S = 20.0


class Terminal:
    """A command in a terminal of 80 columns and 24 lines.

    Attributes:
        raw: All bytes that it wrote.
    """

    def __init__(self, line: list[str], environ: Mapping[str, str]) -> None:
        self.raw = b""
        self._seen = 0
        self.pid, self._handle = pty.fork()
        if self.pid == 0:
            os.execvpe(line[0], line, {**environ, "TERM": "xterm-256color"})
        size = struct.pack("HHHH", 24, 80, 0, 0)
        fcntl.ioctl(self._handle, termios.TIOCSWINSZ, size)

    @property
    def text(self) -> str:
        """What it wrote, without what steers a terminal; lines are joined by one blank."""
        return BLANKS.sub(" ", ESCAPES.sub("", self.raw.decode(errors="replace")))

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._handle, text.encode())

    def until(self, words: str) -> str:
        """Wait until words have come that had not been waited for; return what came before them.

        Raises:
            AssertionError: They did not come.
        """
        deadline = time.monotonic() + WAIT_S
        while (at := self.text.find(words, self._seen)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"{words!r} never came after: {self.text[self._seen :]}")
        before = self.text[self._seen : at]
        self._seen = at + len(words)
        return before

    def _read(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._handle], [], [], left)[0]:
            return False
        try:
            data = os.read(self._handle, 65536)
        except OSError:  # the other end is closed
            return False
        self.raw += data
        if ASK_CURSOR in data:
            os.write(self._handle, b"\x1b[1;1R")
        return bool(data)

    def wait(self) -> int:
        """Wait for the command's end; return its exit code."""
        deadline = time.monotonic() + WAIT_S
        while self._read(deadline):
            pass
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, f"it did not end after: {self.text[self._seen :]}"
        _, status = ended
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the command, if it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):
            os.close(self._handle)


@contextlib.contextmanager
def terminal(line: list[str], environ: Mapping[str, str]) -> Iterator[Terminal]:
    """Run a command in a terminal within this block."""
    opened = Terminal(line, environ)
    try:
        yield opened
    finally:
        opened.close()

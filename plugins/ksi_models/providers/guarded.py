"""Runs a command that cannot outlive the daemon, and talks to it in lines."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, cast

import msgspec
from msgspec import Struct

from ksi_daemon.confinement import Confined

GUARD: Final = str(Path(__file__).with_name("guard.py"))
TAIL_BYTES: Final = 4096
GONE_TIMEOUT_S: Final = 8.0  # a second of grace, five for what left the group
REPORT_BYTES: Final = 4096
GO: Final = b"g"


class ProcessBounds(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a command may take with all that it starts, and how many files each may have open."""

    memory_mb: int | None = None
    cpu_s: int | None = None
    open_files: int | None = None


class Ended(Struct, frozen=True, kw_only=True):
    """How a command has ended, and what it took.

    Attributes:
        code: Its exit code, or the negative number of the signal that ended it.
        broken: The bound for which it was ended.
        memory_mb: What it held at most, as far as that was measured.
        cpu_s: The time that it took, as far as that was measured.
        unread_bytes: What was left unread of its input, if that is known: where that was closed.
    """

    code: int
    broken: Literal["memory_mb", "cpu_s"] | None = None
    memory_mb: float = 0.0
    cpu_s: float = 0.0
    unread_bytes: int | None = None

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it."""
        if self.code >= 0:
            return None
        with contextlib.suppress(ValueError):
            return signal.Signals(-self.code).name
        return f"signal {-self.code}"


UNBOUNDED: Final = ProcessBounds()


class _Pipes(asyncio.SubprocessProtocol):
    """Keeps the end of what the command complains about, and hands on what it says."""

    def __init__(self, limit: int, lifeline: socket.socket) -> None:
        self.output = asyncio.StreamReader(limit=limit)
        self.tail = b""
        self.is_cut = False
        self.gone = asyncio.Event()
        self.report = b""
        self.guard = 0
        self.confined: Confined | None = None
        self._lifeline = lifeline
        self.takes_nothing = False
        self._writable = asyncio.Event()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def until_writable(self) -> None:
        await self._writable.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Close what is left: the process has ended, and said all."""
        self._transport.close()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self.output.feed_data(data)
        else:
            tail = self.tail + data
            self.is_cut = self.is_cut or len(tail) > TAIL_BYTES
            self.tail = tail[-TAIL_BYTES:]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.output.feed_eof()
        elif fd == 0:
            self.takes_nothing = True
            self._writable.set()

    def process_exited(self) -> None:
        with contextlib.suppress(OSError):  # the guard itself was killed, and told nothing
            self.report = self._lifeline.recv(REPORT_BYTES)
        self._lifeline.close()
        if self.confined is not None:
            self.confined.discard(self.guard)
        self.gone.set()


class GuardedProcess:
    """A command with a guard: it ends, with all that it started, when `end` is called.

    It also ends when the daemon does, however that happens: the guard sees its line closed.
    """

    def __init__(
        self, transport: asyncio.SubprocessTransport, pipes: _Pipes, lifeline: socket.socket
    ) -> None:
        self._transport = transport
        self._pipes = pipes
        self._lifeline = lifeline
        self._is_ending = False

    @classmethod
    async def start(
        cls,
        command: list[str],
        *,
        environ: Mapping[str, str],
        folder: Path,
        max_line_bytes: int,
        secrets: Mapping[str, str] | None = None,
        bounds: ProcessBounds = UNBOUNDED,
        confined: Confined | None = None,
    ) -> "GuardedProcess":
        """Start it; it reads each secret from the file whose number that variable holds.

        So a secret is in no environment and in no file, where others could read it. With
        ``confined``, which a plugin has, no process of it passes for the daemon's owner.

        Raises:
            OSError: There are no more processes or files to be had.
        """
        with contextlib.ExitStack() as opened:
            numbers = {
                name: _filled_pipe(opened, secret) for name, secret in (secrets or {}).items()
            }
            watched, lifeline = socket.socketpair()
            opened.enter_context(watched)
            lifeline.setblocking(False)
            said = msgspec.json.encode(bounds).decode()
            guard = [sys.executable, "-I", "-S", GUARD, str(watched.fileno()), said]
            try:
                transport, pipes = await asyncio.get_running_loop().subprocess_exec(
                    lambda: _Pipes(max_line_bytes, lifeline),
                    *guard,
                    *command,
                    env={**environ, **{name: str(number) for name, number in numbers.items()}},
                    cwd=folder,
                    pass_fds=(watched.fileno(), *numbers.values()),
                    start_new_session=True,
                )
            except BaseException:  # also when cancelled: nobody else knows the line
                lifeline.close()
                raise
        output = transport.get_pipe_transport(1)  # uvloop's is a ReadTransport in all but name
        pipes.output.set_transport(cast(asyncio.ReadTransport, output))
        if confined is not None and not pipes.gone.is_set():
            confined.add(transport.get_pid())
            pipes.confined = confined
            pipes.guard = transport.get_pid()
        with contextlib.suppress(OSError):  # it has ended already
            lifeline.send(GO)
        return cls(transport, pipes, lifeline)

    @property
    def pid(self) -> int:
        """Return the guard's process id."""
        return self._transport.get_pid()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._pipes.gone.is_set()

    @property
    def complaints(self) -> str:
        """The end of what it wrote to its error output."""
        tail = self._pipes.tail
        if self._pipes.is_cut:  # a line without its beginning may hold half a key
            tail = tail.partition(b"\n")[2]
        return tail.decode(errors="replace").strip()

    @property
    def ended(self) -> Ended:
        """How it ended, once it has; where its guard could not tell that, how the guard did."""
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(self._pipes.report, type=Ended)
        code = self._transport.get_returncode()
        return Ended(code=-signal.SIGKILL if code is None else code)

    def write_and_close(self, data: bytes) -> None:
        """Give it all of its input, as far as it takes any."""
        if self.takes_input:
            self._input.write(data)
            self._input.close()

    @property
    def takes_input(self) -> bool:
        """Whether it can be given input still."""
        return not (self._pipes.takes_nothing or self._input.is_closing())

    async def write(self, data: bytes) -> None:
        """Give it some of its input, and wait while it has much to read still.

        Raises:
            BrokenPipeError: It reads nothing any more, and has not got all of this.
        """
        if self.takes_input:
            self._input.write(data)
            await self._pipes.until_writable()
        if not self.takes_input:
            raise BrokenPipeError("it reads nothing any more")

    @property
    def _input(self) -> asyncio.WriteTransport:
        return cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))

    async def read(self, max_bytes: int) -> bytes:
        """Return what it has said; empty when there is no more."""
        return await self._pipes.output.read(max_bytes)

    async def read_line(self) -> bytes:
        """Return its next line; empty when there are no more.

        Raises:
            ValueError: The line is too long.
        """
        return await self._pipes.output.readline()

    def end(self) -> None:
        """Have it ended, with all that it has started; does not wait for that."""
        if not self._is_ending:
            self._is_ending = True
            with contextlib.suppress(OSError):  # it has ended
                self._lifeline.shutdown(socket.SHUT_WR)

    async def until_gone(self, timeout_s: float = GONE_TIMEOUT_S) -> bool:
        """Wait until it has ended; the guard of one that doesn't is killed after `end`."""
        # Not by `asyncio.timeout`: in a task that is being cancelled the first releases of Python
        # 3.11 take its end for the cancellation, and what is left to do here would not be done.
        waiting = asyncio.Task(self._pipes.gone.wait())
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
        finally:
            waiting.cancel()
        is_gone = self._pipes.gone.is_set()
        if not is_gone and self._is_ending:
            with contextlib.suppress(ProcessLookupError):
                self._transport.kill()  # the kernel tells the command, where it can
        if is_gone or self._is_ending:
            self._transport.close()
        return is_gone


def _filled_pipe(opened: contextlib.ExitStack, secret: str) -> int:
    """Return the end of a pipe that holds a secret; it must fit into what the kernel keeps."""
    read, write = os.pipe()
    opened.callback(os.close, read)
    try:
        os.set_blocking(write, False)
        os.write(write, secret.encode())
    finally:
        os.close(write)
    return read


def can_measure() -> bool:
    """Say whether this system tells what processes hold of memory."""
    return Path("/proc/self/status").exists()

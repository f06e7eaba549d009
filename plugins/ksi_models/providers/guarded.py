"""Runs a command that cannot outlive the daemon, and talks to it in lines."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

GUARD: Final = str(Path(__file__).with_name("guard.py"))
TAIL_BYTES: Final = 4096
GONE_TIMEOUT_S: Final = 8.0  # a second of grace, five for what left the group


class _Pipes(asyncio.SubprocessProtocol):
    """Keeps the end of what the command complains about, and hands on what it says."""

    def __init__(self, limit: int) -> None:
        self.output = asyncio.StreamReader(limit=limit)
        self.tail = b""
        self.gone = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self.output.feed_data(data)
        else:
            self.tail = (self.tail + data)[-TAIL_BYTES:]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.output.feed_eof()

    def process_exited(self) -> None:
        self.gone.set()


class GuardedProcess:
    """A command with a guard: it ends, with all that it started, when `end` is called.

    It also ends when the daemon does, however that happens: the guard sees its pipe closed.
    """

    def __init__(
        self, transport: asyncio.SubprocessTransport, pipes: _Pipes, lifeline: int
    ) -> None:
        self._transport = transport
        self._pipes = pipes
        self._lifeline: int | None = lifeline

    @classmethod
    async def start(
        cls,
        command: list[str],
        *,
        environ: Mapping[str, str],
        folder: Path,
        max_line_bytes: int,
        secrets: Mapping[str, str] | None = None,
    ) -> "GuardedProcess":
        """Start it; it reads each secret from the file whose number that variable holds.

        So a secret is in no environment and in no file, where others could read it.

        Raises:
            OSError: There are no more processes or files to be had.
        """
        with contextlib.ExitStack() as opened:
            numbers = {
                name: _filled_pipe(opened, secret) for name, secret in (secrets or {}).items()
            }
            watched, lifeline = os.pipe()
            opened.callback(os.close, watched)
            guard = [sys.executable, "-I", "-S", GUARD, str(watched)]
            try:
                transport, pipes = await asyncio.get_running_loop().subprocess_exec(
                    lambda: _Pipes(max_line_bytes),
                    *guard,
                    *command,
                    env={**environ, **{name: str(number) for name, number in numbers.items()}},
                    cwd=folder,
                    pass_fds=(watched, *numbers.values()),
                    start_new_session=True,
                )
            except BaseException:  # also when cancelled: nobody else knows the pipe
                os.close(lifeline)
                raise
        output = transport.get_pipe_transport(1)  # uvloop's is a ReadTransport in all but name
        pipes.output.set_transport(cast(asyncio.ReadTransport, output))
        return cls(transport, pipes, lifeline)

    @property
    def pid(self) -> int:
        """Return the guard's process id."""
        return self._transport.get_pid()

    @property
    def complaints(self) -> str:
        """The end of what it wrote to its error output."""
        return self._pipes.tail.decode(errors="replace").strip()

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._transport.get_returncode()

    def write_and_close(self, data: bytes) -> None:
        """Give it all of its input."""
        pipe = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        with contextlib.suppress(ConnectionError):
            pipe.write(data)
            pipe.close()

    async def read_line(self) -> bytes:
        """Return its next line; empty when there are no more.

        Raises:
            ValueError: The line is too long.
        """
        return await self._pipes.output.readline()

    def end(self) -> None:
        """Have it ended, with all that it has started; does not wait for that."""
        if self._lifeline is not None:
            lifeline, self._lifeline = self._lifeline, None
            os.close(lifeline)

    async def until_gone(self, timeout_s: float = GONE_TIMEOUT_S) -> bool:
        """Wait until it has ended; the guard of one that doesn't is killed after `end`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._pipes.gone.wait()
        is_gone = self._pipes.gone.is_set()
        if not is_gone and self._lifeline is None:
            with contextlib.suppress(ProcessLookupError):
                self._transport.kill()  # the kernel tells the command, where it can
        if is_gone or self._lifeline is None:
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

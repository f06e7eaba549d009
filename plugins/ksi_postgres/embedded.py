"""Runs a Postgres of the daemon's own: made, started, watched and stopped with it."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Final, cast

from ksi_daemon.protocol import Failed, TimedOut
from ksi_postgres import children, cluster, leftovers
from ksi_postgres.binaries import Binaries, find_binaries
from ksi_postgres.place import ELSEWHERE, PORT, SUPERUSER, Place
from ksi_postgres.server_log import ServerLog
from ksi_postgres.settings import PostgresSettings

log = logging.getLogger(__name__)

READY_LINE: Final = "database system is ready to accept connections"
PROGRESS_S: Final = 5.0
QUIT_WAIT_S: Final = 3.0
OUTPUT_WAIT_S: Final = 1.0


class EmbeddedServer:
    """One Postgres in one folder, for one process at a time.

    `start` makes the cluster if there is none, ends what an earlier daemon has left, and waits for
    a crash recovery. `wait_end` tells why it went, after which `start` may be called again.
    Start it on the main thread's loop: the kernel stops it with the thread that started it.

    Args:
        folder: Where its files are; another place, linked from there, where its user can't reach.
        settings: The section ``[postgres]``.
        fsync: Whether what is committed survives a power failure; not for tests.
        elsewhere: Where the other place is.

    Attributes:
        superuser: The role that may do everything.
        passwords: The roles' passwords, by role; empty before the first start.
        host: The folder of its socket, which is what clients take for a host.
        port: What the socket is named by.
        is_new: Whether the last `start` made the cluster.

    Raises:
        InvalidData: It can't be there; the message says what to do.
    """

    superuser = SUPERUSER
    port = PORT

    def __init__(
        self,
        folder: Path,
        settings: PostgresSettings | None = None,
        *,
        fsync: bool = True,
        elsewhere: Path = ELSEWHERE,
    ) -> None:
        self.settings = settings or PostgresSettings()
        self.place = Place(folder, self.settings.run_as, elsewhere)
        self.passwords: dict[str, str] = {}
        self.is_new = False
        self._fsync = fsync
        self._lock: int | None = None
        self._log = ServerLog(self.place.log)
        self._postmaster: _Postmaster | None = None

    @property
    def host(self) -> str:
        """The folder of the socket."""
        return str(self.place.socket_folder)

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        running = self._postmaster
        return None if running is None or running.ended.is_set() else running.pid

    def log_tail(self) -> list[str]:
        """Return the last lines that it wrote, the oldest first."""
        return self._log.tail()

    async def start(self) -> None:
        """Start it and return once it answers.

        Raises:
            Conflict: Another process runs it.
            InvalidData: It can't be started as things are; the message says what to do.
            Failed: It ended; the message has its last lines.
            TimedOut: It was not ready within ``start_timeout_s``.
        """
        try:
            await asyncio.to_thread(self.place.prepare)
            if self._lock is None:
                self._lock = self.place.lock()
            if self._postmaster is not None:
                await self._postmaster.end(self.settings.stop_timeout_s)
            await leftovers.clear(self.place, self.settings.stop_timeout_s)
            await asyncio.to_thread(cluster.remove_half_made, self.place)
            binaries = await asyncio.to_thread(lambda: self.place.reachable(find_binaries()))
            arguments = await self._ready_cluster(binaries)
            await self._launch([str(binaries.postgres), *arguments])
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError):
                why = children.explain([str(error)])
                raise Failed(f"Postgres could not start: {why}") from error
            raise

    async def wait_end(self) -> str:
        """Wait until it has ended, and say why it has."""
        if self._postmaster is None:
            return "it was not started"
        await self._postmaster.ended.wait()
        return self._postmaster.reason()

    async def stop(self) -> None:
        """Stop it: in good order within ``stop_timeout_s``, then at once; it recovers then."""
        try:
            if self._postmaster is not None:
                await self._postmaster.end(self.settings.stop_timeout_s)
        finally:
            self._postmaster = None
            self._log.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def _ready_cluster(self, binaries: Binaries) -> list[str]:
        """Make the cluster if there is none; returns the server's arguments."""
        place = self.place
        kept = place.passwords()
        passwords = place.make_passwords(kept)
        self.is_new = not place.data.exists()
        if self.is_new:
            place.keep_passwords(passwords)  # before: a cluster without them is of no use
            await cluster.make(place, binaries, passwords[SUPERUSER], fsync=self._fsync)
        cluster.check_version(place, binaries)
        arguments = await asyncio.to_thread(
            cluster.configuration, place, self.settings, fsync=self._fsync
        )
        if SUPERUSER not in kept and not self.is_new:
            log.warning("the passwords are gone; there are new ones", extra={"in": str(place.root)})
            await cluster.renew_passwords(place, binaries, arguments, passwords)
            await leftovers.clear(place, self.settings.stop_timeout_s)
        if passwords != kept:
            place.keep_passwords(passwords)
        self.passwords = passwords
        return arguments

    async def _launch(self, command: list[str]) -> None:
        loop = asyncio.get_running_loop()
        began_at = time.monotonic()
        _, self._postmaster = await loop.subprocess_exec(
            lambda: _Postmaster(self._log),
            *children.launch_command(self.place, command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            # A Ctrl-C in the daemon's terminal is for the daemon, which needs it to the end.
            start_new_session=True,
        )
        await self._wait_ready(self._postmaster, began_at)

    async def _wait_ready(self, postmaster: "_Postmaster", began_at: float) -> None:
        deadline = began_at + self.settings.start_timeout_s
        while not postmaster.settled.is_set():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimedOut(
                    f"Postgres was not ready within {self.settings.start_timeout_s:g} s; let it "
                    f"have more: postgres.start_timeout_s; it says: {self._log.tail()[-1:]}"
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, PROGRESS_S)):
                    await postmaster.settled.wait()
                    continue
            after_s = round(time.monotonic() - began_at)
            said = "".join(self._log.tail()[-1:])
            log.info("Postgres starts or recovers", extra={"after_s": after_s, "says": said})
        if not postmaster.ready:
            await postmaster.output_is_read()
            raise Failed(f"Postgres could not start: {children.explain(postmaster.told)}")


class _Postmaster(asyncio.SubprocessProtocol):
    """One process of the server, from its start to its end."""

    def __init__(self, kept: ServerLog) -> None:
        self.ready = False
        self.settled = asyncio.Event()  # it is ready, or has ended
        self.ended = asyncio.Event()
        self.told: list[str] = []  # what it said before it was ready
        self._read = asyncio.Event()
        self._log = kept
        self._transport: asyncio.SubprocessTransport

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)  # uvloop's is none by name

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        lines = self._log.write(data)
        if self.ready:
            return
        self.told = [*self.told, *lines][-children.TOLD_LINES :]
        if any(READY_LINE in line for line in lines):
            self.ready = True
            self.settled.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._read.set()

    def process_exited(self) -> None:
        self.ended.set()
        self.settled.set()

    def reason(self) -> str:
        """Say how it ended."""
        code = self._transport.get_returncode() or 0
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        fatal = [line for line in self._log.tail() if "FATAL:" in line or "PANIC:" in line]
        return f"it ended with exit code {code}" + "".join(f": {line}" for line in fatal[-1:])

    async def output_is_read(self) -> None:
        """Wait for its last words, if it has ended; not for those of children that outlive it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OUTPUT_WAIT_S):
                await self._read.wait()

    async def end(self, stop_timeout_s: float) -> None:
        """End it, whatever it takes; when this is cancelled, at once."""
        steps = (
            (signal.SIGINT, stop_timeout_s),
            (signal.SIGQUIT, QUIT_WAIT_S),
            (signal.SIGKILL, QUIT_WAIT_S),
        )
        try:
            for number, patience_s in steps:
                if await self._end_by(number, patience_s):
                    break
        except asyncio.CancelledError:
            self._signal(signal.SIGQUIT)
            raise
        finally:
            if self.ended.is_set():
                self._transport.close()

    async def _end_by(self, number: signal.Signals, patience_s: float) -> bool:
        if self.ended.is_set():
            return True
        if number != signal.SIGINT:
            log.warning("Postgres takes long to stop", extra={"sent": number.name})
        self._signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self.ended.wait()
        return self.ended.is_set()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._transport.send_signal(number)

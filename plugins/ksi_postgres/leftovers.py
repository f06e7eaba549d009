"""Finds and ends what an earlier daemon, or the kernel's out-of-memory killer, has left running."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from ksi_daemon.protocol import Conflict
from ksi_postgres.place import Place

log = logging.getLogger(__name__)

POLL_S: Final = 0.02  # they are nobody's children any more: nothing tells of their end
QUIT_WAIT_S: Final = 5.0
PID_FILE: Final = "postmaster.pid"


async def clear(place: Place, stop_timeout_s: float) -> None:
    """End every Postgres that still runs on the data, and remove what a dead one has left.

    The caller holds the place's lock, so that none of them has anybody who wants it.

    Raises:
        Conflict: One can't be ended.
    """
    found = await asyncio.to_thread(processes_on, place)
    if found:
        log.warning("a Postgres was left running; it is ended", extra={"pids": found})
        await _end(place, found, stop_timeout_s)
    # Postgres itself believes such a file as long as any process bears the number in it.
    (place.data / PID_FILE).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        for file in place.socket_folder.iterdir():
            file.unlink()


async def _end(place: Place, found: list[int], stop_timeout_s: float) -> None:
    """Fast, then at once (it recovers at the next start), then without asking."""
    steps = (
        (signal.SIGINT, stop_timeout_s),
        (signal.SIGQUIT, QUIT_WAIT_S),
        (signal.SIGKILL, QUIT_WAIT_S),
    )
    for number, patience_s in steps:
        postmaster = pid_in_file(place)
        # Children whose postmaster is gone end by themselves, but not before their query has.
        for pid in [postmaster] if postmaster in found and number != signal.SIGKILL else found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            found = await asyncio.to_thread(processes_on, place)
            if not found:
                return
            await asyncio.sleep(POLL_S)
    raise Conflict(f"a Postgres (pid {found[0]}) runs on {place.data} and can't be ended")


def processes_on(place: Place) -> list[int]:
    """List the processes of Postgres that work on the data, whoever started them."""
    try:
        data = place.data.stat()
    except FileNotFoundError:
        return []
    if sys.platform.startswith("linux"):
        found = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in found if _works_on(pid, data, place.user.uid)]
    pid = pid_in_file(place)
    return [pid] if pid and _is_postgres_by_ps(pid, place.data) else []


def _works_on(pid: int, data: os.stat_result, uid: int) -> bool:
    """Say whether a process is a Postgres with that working directory, run by that user."""
    process = Path("/proc") / str(pid)
    try:
        if process.stat().st_uid != uid:
            return False
        folder = (process / "cwd").stat()
        program = (process / "exe").readlink().name
    except OSError:  # it has ended meanwhile, or is somebody else's
        return False
    same = (folder.st_dev, folder.st_ino) == (data.st_dev, data.st_ino)
    return same and program.removesuffix(" (deleted)") == "postgres"


def _is_postgres_by_ps(pid: int, data: Path) -> bool:
    told = subprocess.run(
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
    )
    return b"postgres" in told.stdout and os.fsencode(data) in told.stdout


def pid_in_file(place: Place) -> int | None:
    """Return the process that the data's pid file names."""
    try:
        handle = os.open(place.data / PID_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        first = os.read(handle, 32).split(b"\n")[0].strip()
    finally:
        os.close(handle)
    return int(first) if first.isdigit() else None

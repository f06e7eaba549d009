"""Runs the programs of Postgres, as the user that may."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Final

from ksi_daemon.protocol import Failed, TimedOut
from ksi_postgres.place import Place

LAUNCH: Final = str(Path(__file__).with_name("launch.py"))
TOLD_LINES: Final = 8

# What Postgres says when it can't, and what to do about it.
REMEDIES: Final = (
    ("No space left on device", "make room on that disk"),
    ("Check free disk space", "make room on that disk"),
    ("Disk quota exceeded", "make room within the quota"),
    ("could not create shared memory", "lower postgres.shared_buffers_mb"),
    ("could not map anonymous shared memory", "lower postgres.shared_buffers_mb"),
    ("Operation not permitted", "root may not change its user here: run KSI as another user"),
    ("Permission denied", "let the server's user, postgres.run_as, read and write there"),
    ("Read-only file system", "set postgres.data_folder to a place that can be written to"),
    ("could not locate a valid checkpoint record", "restore a backup: ksi db restore FILE"),
    ("invalid data in file", "restore a backup: ksi db restore FILE"),
    ("could not create lock file", "let the server's user write there"),
)


def launch_command(place: Place, command: list[str]) -> list[str]:
    """Return the command line that becomes a command as the server's user."""
    who = (str(os.getpid()), str(place.user.uid), str(place.user.gid))
    return [sys.executable, "-I", "-S", LAUNCH, *who, *command]


async def run_program(
    place: Place, command: list[str], *, stdin: str = "", timeout_s: float
) -> str:
    """Run a program to its end; returns what it wrote.

    Raises:
        Failed: It failed; the message has its last lines, and what to do where that is known.
        TimedOut: It took too long, and was killed.
    """
    name = Path(command[0]).name
    process = await asyncio.create_subprocess_exec(
        *launch_command(place, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate(stdin.encode())
    except TimeoutError as error:
        raise TimedOut(f"{name} did not end within {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    told = output.decode(errors="replace")
    if process.returncode:
        raise Failed(f"{name} failed: {explain(told.splitlines())}")
    return told


def explain(lines: list[str]) -> str:
    """Return the last lines of an output, with what to do about it where that is known."""
    told = "\n".join(line for line in lines if line.strip())
    remedy = next((f"; {remedy}" for sign, remedy in REMEDIES if sign in told), "")
    return " / ".join(told.splitlines()[-TOLD_LINES:]) + remedy

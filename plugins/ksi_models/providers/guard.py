"""Runs a command and leaves nothing of it behind: ``guard.py LIFELINE COMMAND …``.

A script of its own, run by a bare Python. ``LIFELINE`` is a pipe's end: when its other one is
closed, because the daemon closes it or because the daemon is gone, however it went, the command is
ended with all that it has started. The command has the guard's input and outputs.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1  # prctl(2)
PR_SET_CHILD_SUBREAPER: Final = 36
GRACE_S: Final = 1.0
REAP_S: Final = 5.0


def main(lifeline: int, command: list[str]) -> int:
    """Run the command to its end, or to that of the lifeline; returns its exit code."""
    control(PR_SET_CHILD_SUBREAPER, 1)
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = start(lifeline, command)
    for own in (0, 1, 2):  # the ends of the command's pipes are to be its own
        os.dup2(os.open(os.devnull, os.O_RDWR), own)
    code = watch(child, lifeline, awake)
    kill_group(child, signal.SIGKILL)
    reap_others()
    return code


def start(lifeline: int, command: list[str]) -> int:
    """Start the command in a process group of its own."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        control(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(127)
        os.close(lifeline)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} can't be run: {error}\n".encode())
    os._exit(127)


def watch(child: int, lifeline: int, awake: int) -> int:
    """Wait until the command has ended, or end it when nobody holds the lifeline any more."""
    deadline: float | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code  # as a shell tells that a signal ended it
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            kill_group(child, signal.SIGKILL)
            timeout = 0.05
        watched = [awake] if deadline is not None else [awake, lifeline]
        ready, _, _ = select.select(watched, [], [], timeout)
        if awake in ready:
            os.read(awake, 4096)
        if lifeline in ready:
            kill_group(child, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S


def kill_group(child: int, number: int) -> None:
    """Send a signal to the command and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; on macOS: a zombie
        os.killpg(child, number)


def reap_others() -> None:
    """Kill what left the group: where the kernel can do that, it has become our child."""
    deadline = time.monotonic() + REAP_S
    while time.monotonic() < deadline:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            for child in children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.005)


def children() -> list[int]:
    """Return the processes that are our children now."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    except OSError:
        return []


def control(option: int, value: int) -> None:
    """Ask the kernel for what only Linux has."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

"""Runs a command in bounds and leaves nothing of it behind: ``guard.py LIFELINE BOUNDS COMMAND …``.

A script of its own, run by a bare Python. ``LIFELINE`` is a socket: the command starts when a byte
comes, since by then it is known whose its processes are. When the other end is closed, because the
daemon closes it or because the daemon is gone, however it went, the command is ended with all that
it has started. What it ended with is written there. The command has the guard's input and outputs.

``BOUNDS`` is JSON: how much memory the command may hold and how much CPU time it may take, together
with all that it started, and how many files each of these may have open. Memory is measured, since
the kernel's own limits are no use for it: a JavaScript engine reserves many times the address space
that it ever fills (``RLIMIT_AS``), some of it writable (``RLIMIT_DATA``); and a process that runs
into these says something else each time, and may start another one.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1  # prctl(2)
PR_SET_CHILD_SUBREAPER: Final = 36
GRACE_S: Final = 1.0
REAP_S: Final = 5.0
DRAIN_S: Final = 3.0
READ_BYTES: Final = 65_536
MEASURE_S: Final = 0.2
# What would be free without a process: not the code of programs, which it shares with others.
HELD: Final = ("RssAnon:", "RssShmem:", "VmSwap:")
TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


class Bounds:
    """What the command and all that it started may take, and have taken at most.

    Attributes:
        broken: The bound that they went past, once they did.
    """

    def __init__(
        self,
        memory_mb: int | None = None,
        cpu_s: int | None = None,
        open_files: int | None = None,
    ) -> None:
        self._memory_mb = memory_mb
        self._cpu_s = cpu_s
        self._open_files = open_files
        self._most_mb = 0.0
        self._most_s = 0.0
        self.broken: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether somebody has to look, and can: elsewhere than on Linux only the kernel does."""
        is_any = self._memory_mb is not None or self._cpu_s is not None
        return is_any and Path("/proc/self/stat").exists()

    def impose(self) -> None:
        """Have the kernel hold this process to what it can: before it becomes the command."""
        lower(resource.RLIMIT_CORE, 0)  # what it remembers is not to be left in a file
        if self._open_files is not None:
            lower(resource.RLIMIT_NOFILE, self._open_files)
        if self._cpu_s is not None:
            lower(resource.RLIMIT_CPU, self._cpu_s, self._cpu_s + 1)

    def measure(self) -> None:
        """See what is taken now."""
        taken = [taken_by(pid) for pid in family()]
        held_mb = sum(each[0] for each in taken) / 1024
        spent_s = sum(each[1] for each in taken) / TICKS_A_SECOND
        self._most_mb, self._most_s = max(self._most_mb, held_mb), max(self._most_s, spent_s)
        if self._memory_mb is not None and held_mb > self._memory_mb:
            self.broken = "memory_mb"
        elif self._cpu_s is not None and spent_s > self._cpu_s:
            self.broken = "cpu_s"

    def report(self, code: int) -> dict[str, Any]:
        """Return how it ended."""
        if self.broken is None and self._cpu_s is not None and -code == signal.SIGXCPU:
            self.broken, self._most_s = "cpu_s", max(self._most_s, self._cpu_s)
        return {
            "code": code,
            "broken": self.broken,
            "memory_mb": round(self._most_mb, 1),
            "cpu_s": round(self._most_s, 2),
        }


def main(lifeline: int, bounds: Bounds, command: list[str]) -> int:
    """Run the command to its end, or to that of the lifeline; returns its exit code."""
    control(PR_SET_CHILD_SUBREAPER, 1)
    if not os.read(lifeline, 1):
        return 127  # nobody wants it any more
    close_copies()
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = start(lifeline, bounds, command)
    unread = os.dup(0)  # but for what it leaves of its input
    for own in (0, 1, 2):  # the ends of the command's pipes are to be its own
        os.dup2(os.open(os.devnull, os.O_RDWR), own)
    code = watch(child, lifeline, awake, bounds)
    kill_group(child, signal.SIGKILL)
    reap_others()
    tell(lifeline, {**bounds.report(code), "unread_bytes": left_of(unread, lifeline)})
    return code if code >= 0 else 128 - code  # as a shell tells that a signal ended it


def close_copies() -> None:
    """Close what else leads to where the input and outputs do: uvloop hands each down twice.

    So the command can close its own, and whoever is at the other end is told.
    """
    own = [os.fstat(number) for number in (0, 1, 2)]
    for number in open_numbers():
        with contextlib.suppress(OSError):  # it was open only while all were listed
            if number > 2 and any(os.path.samestat(os.fstat(number), each) for each in own):
                os.close(number)


def open_numbers() -> list[int]:
    """Return the numbers of the files that are open, where the system tells."""
    with contextlib.suppress(OSError):
        return [int(each.name) for each in Path("/dev/fd").iterdir()]
    return []


def start(lifeline: int, bounds: Bounds, command: list[str]) -> int:
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
        bounds.impose()
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} can't be run: {error}\n".encode())
    os._exit(127)


def watch(child: int, lifeline: int, awake: int, bounds: Bounds) -> int:
    """Wait until the command has ended, or end it: out of bounds, or when nobody wants it any more.

    Returns:
        Its exit code, or a signal's negative number.
    """
    deadline: float | None = None
    pause = MEASURE_S if bounds.is_measured else None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if pause is not None:
            bounds.measure()
        if bounds.broken is not None or (deadline is not None and time.monotonic() >= deadline):
            kill_group(child, signal.SIGKILL)  # what left the group is killed after it
            pause = 0.05
        watched = [awake] if deadline is not None else [awake, lifeline]
        ready, _, _ = select.select(watched, [], [], left(deadline, pause))
        if awake in ready:
            os.read(awake, 4096)
        if lifeline in ready:
            kill_group(child, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S


def left(deadline: float | None, pause: float | None) -> float | None:
    """Return how long to wait for news."""
    if deadline is None:
        return pause
    until = max(deadline - time.monotonic(), 0.05)
    return until if pause is None else min(until, pause)


def left_of(number: int, lifeline: int) -> int | None:
    """Return how much was left to read of what nobody else reads any more.

    Returns:
        Nothing where that is not known: who writes there has not closed it in time, and may write
        still, or doesn't want to know.
    """
    size, deadline = 0, time.monotonic() + DRAIN_S
    with contextlib.suppress(OSError):
        while (left_s := deadline - time.monotonic()) > 0:
            if number not in select.select([number, lifeline], [], [], left_s)[0]:
                return None
            data = os.read(number, READ_BYTES)
            if not data:
                return size
            size += len(data)
    return None


def tell(lifeline: int, report: dict[str, Any]) -> None:
    """Write how the command ended to whoever still listens."""
    with contextlib.suppress(OSError), socket.socket(fileno=lifeline) as line:
        line.send(json.dumps(report).encode())


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


def children(pid: int | None = None) -> list[int]:
    """Return the processes that are a process's children now: ours unless said otherwise."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    except OSError:
        pass
    return found


def family() -> Iterator[int]:
    """Yield the processes that the command has become; one that loses its parent becomes ours."""
    waiting = children()
    while waiting:
        pid = waiting.pop()
        waiting.extend(children(pid))
        yield pid


def taken_by(pid: int) -> tuple[int, int]:
    """Return what a process holds, in KiB, and has spent with those it waited for, in ticks."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    except OSError:  # it has ended
        return 0, 0
    held = sum(int(line.split()[1]) for line in lines if line.startswith(HELD))
    return held, sum(map(int, times))


def lower(limit: int, soft: int, hard: int | None = None) -> None:
    """Lower a limit of the kernel's, where it isn't lower anyway."""
    _, highest = resource.getrlimit(limit)
    wanted = soft if hard is None else hard
    most = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
    resource.setrlimit(limit, (min(soft, most), most))


def control(option: int, value: int) -> None:
    """Ask the kernel for what only Linux has."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Bounds(**json.loads(sys.argv[2])), sys.argv[3:]))

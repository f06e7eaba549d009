"""Starts and stops a daemon from outside, and knows it by the lock that it holds."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import msgspec
from msgspec import Struct

from ksi_client.sync import Client
from ksi_daemon.home import Home
from ksi_daemon.protocol import Denied, Failed, InvalidData, KsiError, TimedOut

START_TIMEOUT_S: Final = 300.0
STOP_TIMEOUT_S: Final = 30.0
KILL_WAIT_S: Final = 10.0
SILENCE_S: Final = 15.0  # a daemon binds its socket in its first second; a silent one hangs
PROBE_TIMEOUT_S: Final = 5.0
PROBE_INTERVAL_S: Final = 0.1
POLL_S: Final = 0.02  # the kernel has no way to wait for another process's lock with a time limit
LOG_TAIL_LINES: Final = 12
TAIL_BYTES: Final = 64 * 1024

State = Literal["absent", "silent", "starting", "ready", "draining"]


class Started(Struct, frozen=True, kw_only=True):
    """The daemon that runs now; ``already`` says that it did before."""

    pid: int
    already: bool


class Stopped(Struct, frozen=True, kw_only=True):
    """The daemon that runs no more; ``killed`` says that it had to be."""

    pid: int
    killed: bool


class _Overtaken(Exception):
    """Raised when another start was quicker."""


def start(
    home: Home,
    arguments: Sequence[str] = (),
    *,
    timeout_s: float = START_TIMEOUT_S,
    tell: Callable[[str], None] = lambda message: None,
) -> Started:
    """Start a daemon in the background and return once it is ready.

    A daemon that runs already is waited for, and one that is stopping is replaced.

    Args:
        home: Where it lives.
        arguments: What ``python -m ksi_daemon`` takes besides ``--home``.
        timeout_s: How long it may take to become ready.
        tell: Called with what is being waited for, whenever that changes.

    Raises:
        InvalidData: The home can't be used.
        Failed: It ended before it was ready, does not answer, or was not ready in time.
    """
    home.prepare()
    deadline = heard_at = time.monotonic()
    deadline += timeout_s
    progress = Progress(home, tell)
    while time.monotonic() < deadline:
        pid = home.running_pid()
        if pid is None:
            with contextlib.suppress(_Overtaken):
                return _spawn(home, arguments, deadline, progress)
        state, _ = probe(home)
        if state == "ready":
            return Started(pid=home.running_pid() or 0, already=True)
        if state != "silent":
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > SILENCE_S:
            raise Failed(
                f"a daemon runs in {home.root} (pid {pid}) but does not answer; end it: ksi stop"
            )
        progress.look()
        time.sleep(PROBE_INTERVAL_S)
    raise _not_ready(home, home.running_pid() or 0)


def _spawn(home: Home, arguments: Sequence[str], deadline: float, progress: "Progress") -> Started:
    read, write = os.pipe()
    try:
        with open(os.open(home.startup_file, _REPLACE, 0o600), "wb") as output:  # noqa: PTH123  a handle
            process = subprocess.Popen(
                # -P: whatever lies in the working directory is not to be imported.
                [sys.executable, "-P", "-m", "ksi_daemon", "--home", str(home.root), *arguments],
                cwd="/",
                env={**os.environ, "KSI_READY_FD": str(write)},
                pass_fds=(write,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        os.close(read)
        raise Failed(f"the daemon could not be started: {error}") from error
    finally:
        os.close(write)
    try:
        with open(read, "rb", buffering=0) as pipe:  # noqa: PTH123  a handle
            told = _read_line(pipe.fileno(), deadline, progress)
    except BaseException:
        process.terminate()  # whoever interrupts a start does not want a daemon
        raise
    if told is None:
        raise _not_ready(home, process.pid)
    if b'"pid"' in told:
        return Started(pid=process.pid, already=False)
    process.wait()
    raise _explain(home, told, process.returncode)


_REPLACE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def _read_line(handle: int, deadline: float, progress: "Progress") -> bytes | None:
    """Read a line or what there is before the end; ``None`` when neither came in time."""
    line = b""
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([handle], [], [], min(left_s, 0.5))[0]:
            progress.look()
            continue
        part = os.read(handle, 65536)
        line += part
        if not part or line.endswith(b"\n"):
            return line
    return None


def _explain(home: Home, told: bytes, code: int) -> Exception:
    """Make the error for a daemon that ended before it was ready."""
    if home.running_pid() is not None:
        return _Overtaken()
    with contextlib.suppress(msgspec.DecodeError):
        return Failed(str(msgspec.json.decode(told, type=dict[str, str])["error"]))
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    lines = last_lines(home.startup_file, LOG_TAIL_LINES)
    lines = lines or last_lines(home.log_file, LOG_TAIL_LINES)
    written = "\n".join(f"  {line}" for line in lines)
    return Failed(f"the daemon {how} before it was ready; it wrote:\n{written}".rstrip())


def _not_ready(home: Home, pid: int) -> Failed:
    return Failed(
        f"the daemon (pid {pid}) is not ready yet and goes on starting; "
        f"see: ksi health, and {home.log_file}"
    )


class Progress:
    """Tells what a starting daemon is waiting for."""

    def __init__(self, home: Home, tell: Callable[[str], None]) -> None:
        self._home = home
        self._tell = tell
        self._told = ""
        self._next_look = time.monotonic() + 1.0

    def look(self) -> None:
        """Tell what is being waited for, if that changed; at most once a second."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + 1.0
        state, report = probe(self._home)
        waiting = [p["plugin"] for p in report.get("plugins", ()) if p["health"] == "starting"]
        message = ", ".join(waiting) or {"draining": "the old daemon to end"}.get(state, "")
        message = f"waiting for {message or 'the daemon'}"
        if message != self._told:
            self._told = message
            self._tell(message)


def probe(home: Home, *, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[State, dict[str, Any]]:
    """Ask the daemon of a home how it is; the answer is that of ``system:health``.

    It is asked in the name of the token that was given, and where that may not ask, or is not
    valid, in the user's own. Where neither may, it runs and has not told how it is.
    """
    if home.running_pid() is None:
        return "absent", {}
    for token in (None, ""):
        try:
            client = Client(home.socket, token=token, timeout_s=timeout_s)
        except Denied:
            continue
        except KsiError:
            return "silent", {}
        with client:
            try:
                report: dict[str, Any] = client.request("system:health")
            except Denied:
                continue
            except TimedOut:
                return "silent", {}
            except KsiError:
                return "starting", {}  # the plugin that answers it has not started
        state: State = report["state"]
        return state, report
    return "ready", {}


def stop(home: Home, *, timeout_s: float = STOP_TIMEOUT_S) -> Stopped | None:
    """Stop the daemon of a home and wait for its end; ``None`` when none runs.

    It is asked first, over its socket and by a signal; one that has not ended in time is killed,
    which loses nothing that was accepted.

    Raises:
        InvalidData: ``timeout_s`` is negative.
        Failed: It lives on, even so.
    """
    if not timeout_s >= 0:
        raise InvalidData(f"the time to stop can't be {timeout_s} s")
    pid = home.running_pid()
    if pid is None:
        return None
    if timeout_s > 0:
        _ask_to_stop(home, min(timeout_s, PROBE_TIMEOUT_S))
        if _ended(home, pid, timeout_s):
            return Stopped(pid=pid, killed=False)
    _signal(home, pid, signal.SIGKILL)
    if not _ended(home, pid, KILL_WAIT_S):
        raise Failed(f"the daemon (pid {pid}) can't be ended; it may wait for a disk")
    return Stopped(pid=pid, killed=True)


def _ask_to_stop(home: Home, timeout_s: float) -> None:
    if probe(home, timeout_s=timeout_s)[0] == "draining":
        return  # asked once more, it would give what runs no more time
    try:
        with Client(home.socket, timeout_s=timeout_s) as client:
            client.request("system:shutdown")
    except KsiError:
        _signal(home, home.running_pid(), signal.SIGTERM)


def _signal(home: Home, pid: int | None, number: signal.Signals) -> None:
    """Send a signal to the holder of the lock; any other process with its number is safe."""
    if not pid or home.running_pid() != pid:
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise Failed(f"the daemon (pid {pid}) belongs to another user") from error


def _ended(home: Home, pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while home.running_pid() == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def last_lines(file: Path, count: int) -> list[str]:
    """Return the last lines of a text file; none where there is no file."""
    try:
        with file.open("rb") as stream:
            return tail(stream, count)
    except OSError:
        return []


def tail(stream: BinaryIO, count: int) -> list[str]:
    """Read an open file to its end, and return its last lines."""
    size = stream.seek(0, os.SEEK_END)
    # Most lines are short; where they are not, fewer are shown than were asked for.
    start_at = max(0, size - max(TAIL_BYTES, 512 * count))
    stream.seek(start_at)
    lines = stream.read().decode(errors="replace").split("\n")
    whole = lines[1 if start_at else 0 :]
    if whole and not whole[-1]:
        whole.pop()
    return whole[-count:] if count > 0 else []

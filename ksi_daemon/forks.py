"""Starts programs by forking a process that has imported them: for tests, which start hundreds.

Nine tenths of what a command takes, and of a daemon's start, are imports, the same each time. A
server imports them once and forks for each program. What it forks is a process of its own, with
the arguments, environment and handles that it is given; only what Python itself does before a
program's first line was done before. Where Python would begin differently, by ``LANG`` or
``PYTHONUTF8``, there is a server for that; where forking is not safe, as on macOS, programs are
started as ever.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import IO, Any, Final, Protocol

from ksi_daemon.installed import installed_plugins, version_of

CAN_FORK: Final = sys.platform == "linux"
REQUEST_BYTES: Final = 128 * 1024
HANDLES: Final = 16
# What Python reads when it starts; the path is as easily set later.
PYTHONS_OWN: Final = ("PYTHON", "LC_", "LANG")
SET_LATER: Final = "PYTHONPATH"
# By program what it imports, at once or when it needs it, and the entry points of its parts.
IMPORTED: Final = {
    "ksi_cli": ("ksi_cli.main", "typer._adapters"),
    "ksi_daemon": (
        "ksi_daemon.daemon", "ksi_daemon.loop", "dbos", "psycopg",
        "sqlalchemy.dialects.postgresql.psycopg",
    ),
}  # fmt: skip
PARTS: Final = {"ksi_cli": "ksi.commands", "ksi_daemon": "ksi"}

_ONE: Final = threading.Lock()  # so that threads don't start a server each


class Running(Protocol):
    """A process, forked or started: what of `subprocess.Popen` both have."""

    pid: int

    def poll(self) -> int | None:
        """Return its exit code, once it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal, while it runs."""


class Forked:
    """A process that a server has forked; see `subprocess.Popen`, whose names these are."""

    def __init__(self, told: IO[bytes]) -> None:
        self._told = told
        self.pid = int(told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, once it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it a signal, while it runs."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def __del__(self) -> None:
        self._told.close()


def start(
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    output: Sequence[int] = (1, 2),
    stdin: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Running:
    """Start ``python -P -m module arguments``.

    Args:
        module: What to run.
        arguments: What it finds in ``sys.argv``.
        env: Its whole environment.
        output: The handles of its stdout and stderr.
        stdin: The handle of its stdin; the null device unless given.
        pass_fds: Handles that it gets under the same numbers.
    """
    if not CAN_FORK:
        return execute(module, arguments, env=env, output=output, stdin=stdin, pass_fds=pass_fds)
    own = {n: v for n, v in env.items() if n.startswith(PYTHONS_OWN) and n != SET_LATER}
    with _ONE:
        server = _server(module if module in IMPORTED else "", tuple(sorted(own.items())))
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123  a handle
        handles = (nothing.fileno() if stdin is None else stdin, *output)
        return server.fork(module, arguments, env, handles, pass_fds)


def execute(
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    output: Sequence[int] = (1, 2),
    stdin: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Running:
    """Start the same as ever: the system, too, knows its environment and its arguments."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env=env,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=output[0],
        stderr=output[1],
        pass_fds=pass_fds,
    )


def run(
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    text: str = "",
    timeout_s: float,
) -> "subprocess.CompletedProcess[str]":
    """Run ``python -P -m module arguments`` to its end, with a text on its stdin.

    Raises:
        subprocess.TimeoutExpired: It took too long, and was killed.
    """
    with contextlib.ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(text.encode())
        given.seek(0)
        output = (out.fileno(), err.fileno())
        running = start(module, arguments, env=env, output=output, stdin=given.fileno())
        try:
            code = running.wait(timeout_s)
        except BaseException:
            running.send_signal(signal.SIGKILL)
            running.wait()
            raise
        written = []
        for file in (out, err):
            file.seek(0)
            written.append(file.read().decode())
    return subprocess.CompletedProcess([module, *arguments], code, *written)


# -- the server, from outside ---------------------------------------------------------------------


@functools.cache
def _server(module: str, variables: tuple[tuple[str, str], ...]) -> "_Server":
    return _Server(module, dict(variables))


class _Server:
    """A process that forks; it ends with the one that started it."""

    def __init__(self, module: str, variables: dict[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), module],
            env={"PATH": os.environ.get("PATH", os.defpath), **variables},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(self._close)

    def fork(
        self,
        module: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        handles: Sequence[int],
        pass_fds: Sequence[int],
    ) -> Forked:
        request = {
            "module": module,
            "arguments": list(arguments),
            "env": dict(env),
            "folder": os.getcwd(),  # noqa: PTH109  as the text that it is
            "handles": [0, 1, 2, *pass_fds],
        }
        read, write = os.pipe()
        try:
            sent = [write, *handles, *pass_fds]
            socket.send_fds(self._control, [json.dumps(request).encode()], sent)
        finally:
            os.close(write)
        return Forked(open(read, "rb", buffering=0))  # noqa: PTH123  a handle, for long

    def _close(self) -> None:
        self._control.close()
        self._process.wait()


# -- the server, from inside ----------------------------------------------------------------------


def main(control: int, module: str) -> None:
    """Import what a program needs; fork for each request, and be the program in the fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of whoever sits before the tests
    _import(module)
    tasks = os.listdir("/proc/self/task")  # noqa: PTH208  names alone
    assert len(tasks) == 1, "an import has begun threads, which no fork would have"
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=control) as requests:
        asked = _serve(requests)
    if asked is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        runpy.run_module(_become(*asked), run_name="__main__", alter_sys=True)


def _import(module: str) -> None:
    """Import a program and its parts; what can't be, its user will be told."""
    for name in IMPORTED.get(module, ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for point in entry_points(group=PARTS.get(module, "")):
        with contextlib.suppress(Exception):
            point.load()
    if module == "ksi_daemon":
        for point in installed_plugins():
            version_of(point.dist)


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each request; returns in the fork, or when nobody is there any more."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(write)
    told: dict[int, int] = {}
    while True:
        for ready in select.select([requests.fileno(), read], [], [])[0]:
            if ready == read:
                os.read(read, HANDLES)
                _tell_ends(told)
                continue
            data, handles, _, _ = socket.recv_fds(requests, REQUEST_BYTES, HANDLES)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for handle in (read, write, handles[0], *told.values()):
                    os.close(handle)
                return json.loads(data), handles[1:]
            told[pid] = handles[0]
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(handles[0], b"%d\n" % pid)
            for handle in handles[1:]:
                os.close(handle)


def _tell_ends(told: dict[int, int]) -> None:
    """Tell those who wait for processes which have ended."""
    for pid in list(told):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError), open(told.pop(pid), "wb") as pipe:  # noqa: PTH123  a handle
                pipe.write(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any], handles: list[int]) -> str:
    """Give this process what was asked for; returns the module to run."""
    above = max(request["handles"]) + 1
    moved = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, above) for handle in handles]
    for handle in handles:
        os.close(handle)
    for handle, number in zip(moved, request["handles"], strict=True):
        os.dup2(handle, number)
        os.close(handle)
    coerced = {n: v for n, v in os.environ.items() if n == "LC_CTYPE"}  # PEP 538; Python sets it
    os.environ.clear()
    os.environ.update({**coerced, **request["env"]})
    os.chdir(request["folder"])
    path = os.environ.get(SET_LATER, "")
    sys.path[:0] = [os.path.abspath(part) for part in path.split(os.pathsep) if part]  # noqa: PTH100  as it is written
    sys.argv[1:] = request["arguments"]
    return str(request["module"])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

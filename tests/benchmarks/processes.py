"""Starts and ends the processes that the benchmarks look at."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 20.0
LOAD_TIMEOUT_S: Final = 300.0
POLL_S: Final = 0.0005
HELLO: Final = b'{"id":1,"event":"system:hello"}\n'


class Target:
    """A server in a process of its own, and where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.pid = process.pid
        self.path = str(path)
        self._process = process

    def rss_bytes(self) -> int:
        """Return the memory that it holds."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Return the processor time that its first thread has used; others can't disturb it."""
        ran_ns = Path(f"/proc/{self.pid}/schedstat").read_text(encoding="ascii").split()[0]
        return int(ran_ns) / 1e9

    def kill(self) -> None:
        """End it by kill -9."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it and wait until it is gone."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without settings for a daemon, which a measurement must not have."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
    return {**kept, **more}


@contextmanager
def folder() -> Iterator[Path]:
    """Make a directory whose name is short enough for a socket; remove it afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ksi-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def await_socket(path: Path, process: subprocess.Popen[bytes], hello: bytes = b"") -> float:
    """Wait until a server accepts connections, and answers ``hello``; return when it did."""
    deadline = time.perf_counter() + START_TIMEOUT_S
    while time.perf_counter() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(START_TIMEOUT_S)
            try:
                sock.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(POLL_S)
                continue
            if not hello:
                return time.perf_counter()
            sock.sendall(hello)
            if b'"result"' in sock.recv(65536):
                return time.perf_counter()
        time.sleep(POLL_S)
    raise RuntimeError(f"the server at {path} did not start (exit code {process.poll()})")


@contextmanager
def bare_server() -> Iterator[Target]:
    """Run what KSI is measured against."""
    with folder() as home:
        path = home / "bare.sock"
        process = subprocess.Popen([sys.executable, str(HERE / "bare_server.py"), str(path)])
        target = Target(process, path)
        try:
            await_socket(path, process)
            yield target
        finally:
            target.end()


def spawn_daemon(home: Path, *, plugins: str, path: str = "") -> subprocess.Popen[bytes]:
    """Start ``python -m ksi_daemon``, with ``path`` in front of where modules are found."""
    paths = [path, os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "ksi_daemon", "--home", str(home), "--set", plugins),
            *("--set", "log.level=error"),  # in the foreground it shows its log
        ],
        env=clean_environment(PYTHONPATH=os.pathsep.join(filter(None, paths))),
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def daemon(*, bench: bool = True) -> Iterator[Target]:
    """Run a daemon with the system plugin, and with the one that the benchmarks call."""
    with folder() as home:
        plugins = "daemon.plugins=system,bench" if bench else "daemon.plugins=system"
        process = spawn_daemon(home, plugins=plugins, path=str(HERE / "distribution"))
        path = home / "run" / "ksi.sock"
        target = Target(process, path)
        try:
            await_socket(path, process, HELLO)
            yield target
        finally:
            target.end()


def spawn_load(kind: str, **arguments: Any) -> subprocess.Popen[bytes]:
    """Start a load; it prints what it measured."""
    command = [sys.executable, str(HERE / "load.py"), kind, json.dumps(arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def result_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a load's end and return what it measured."""
    try:
        told, _ = process.communicate(timeout=LOAD_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"the load {process.args!r} failed")
    measured: dict[str, Any] = json.loads(told.splitlines()[-1])
    return measured


def load(kind: str, **arguments: Any) -> dict[str, Any]:
    """Run a load to its end and return what it measured."""
    return result_of(spawn_load(kind, **arguments))

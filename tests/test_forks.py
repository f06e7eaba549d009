"""Programs that are forked for tests: in all they can see they are as if they were started."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon import forks

pytestmark = pytest.mark.skipif(not forks.CAN_FORK, reason="programs are not forked here")

TIMEOUT_S = 30.0
LOOKS = """
import json, os, signal, sys, threading
given = sys.stdin.read()
json.dump({
    "arguments": sys.argv[1:], "environ": dict(os.environ), "folder": os.getcwd(),
    "given": given, "encoding": [sys.stdout.encoding, sys.stderr.errors],
    "path": sys.path, "name": __name__, "threads": threading.active_count(),
    "handles": [n for n in range(200) if os.path.exists(f"/proc/self/fd/{n}")],
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGCHLD, signal.SIGTERM)],
}, sys.stdout)
print("a warning", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which the modules of the test's folder are found."""
    return {"PATH": os.defpath, "PYTHONPATH": str(tmp_path), "MARK": "ü"}


def write(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(source, encoding="utf-8")


def seen(
    begin: Callable[..., forks.Running], arguments: list[str], environ: Mapping[str, str]
) -> tuple[Any, str, int]:
    """Run ``looks`` with a text on its stdin; return what it saw, its stderr and its exit code."""
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write("Grüße".encode())
        given.seek(0)
        output = (out.fileno(), err.fileno())
        running = begin("looks", arguments, env=environ, output=output, stdin=given.fileno())
        code = running.wait(TIMEOUT_S)
        out.seek(0)
        err.seek(0)
        return json.loads(out.read() or err.read()), err.read().decode(), code


@pytest.mark.parametrize("more", [{}, {"LC_ALL": "C.UTF-8"}, {"PYTHONIOENCODING": "latin-1"}])
def test_a_forked_program_sees_what_a_started_one_sees(
    tmp_path: Path, environ: dict[str, str], more: dict[str, str]
) -> None:
    write(tmp_path, "looks", LOOKS)
    arguments, environ = ["one", "--two", "Grüße"], {**environ, **more}

    forked = seen(forks.start, arguments, environ)
    started = seen(forks.execute, arguments, environ)

    assert forked == started
    assert forked[1:] == ("a warning\n", 7)
    assert forked[0]["given"] == ("Grüße" if "PYTHONIOENCODING" not in more else "GrÃ¼Ã\x9fe")


def test_each_is_a_process_of_its_own_that_can_be_waited_for_and_killed(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    write(tmp_path, "waits", "import signal\nwhile True: signal.pause()")
    first, second = (forks.start("waits", [], env=environ) for _ in range(2))

    assert first.pid != second.pid
    assert first.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(0.01)
    first.send_signal(signal.SIGKILL)
    second.send_signal(signal.SIGTERM)

    assert (first.wait(TIMEOUT_S), second.wait(TIMEOUT_S)) == (-signal.SIGKILL, -signal.SIGTERM)
    assert (first.poll(), second.poll()) == (-signal.SIGKILL, -signal.SIGTERM)
    first.send_signal(signal.SIGTERM)  # whoever has its number now is spared


def test_handles_have_the_numbers_that_the_program_was_told(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    write(tmp_path, "writes", "import os, sys\nos.write(int(sys.argv[1]), b'here')")
    read, handle = os.pipe()

    running = forks.start("writes", [str(handle)], env=environ, pass_fds=[handle])
    os.close(handle)

    with open(read, "rb") as pipe:  # noqa: PTH123  a handle
        assert pipe.read() == b"here"
    assert running.wait(TIMEOUT_S) == 0


def test_an_error_that_nobody_catches_ends_it_as_ever(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    write(tmp_path, "fails", "raise LookupError('gone')")

    done = forks.run("fails", [], env=environ, timeout_s=TIMEOUT_S)

    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("LookupError: gone\n")


def test_what_was_changed_since_is_read_anew(tmp_path: Path, environ: dict[str, str]) -> None:
    told = []
    for answer in ("one", "another"):
        write(tmp_path, "tells", f"print({answer!r})")
        told.append(forks.run("tells", [], env=environ, timeout_s=TIMEOUT_S).stdout)

    assert told == ["one\n", "another\n"]


def test_a_program_that_takes_too_long_is_killed(tmp_path: Path, environ: dict[str, str]) -> None:
    write(tmp_path, "stays", "import signal\nsignal.pause()")

    with pytest.raises(subprocess.TimeoutExpired) as raised:
        forks.run("stays", [], env=environ, timeout_s=0.3)

    pid = raised.value.cmd.removeprefix("process ")
    assert not Path(f"/proc/{pid}").exists()


def test_the_server_ends_with_who_started_it(tmp_path: Path) -> None:
    write(tmp_path, "nothing", "")
    write(tmp_path, "asks", (
        "import os\nfrom ksi_daemon import forks\n"
        "forks.start('nothing', [], env=dict(os.environ)).wait(20)\n"
        "name = '/proc/self/task/%d/children' % os.getpid()\n"
        "print(open(name).read(), flush=True)\nos._exit(0)"
    ))  # fmt: skip

    asked = subprocess.run(
        [sys.executable, "-m", "asks"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )

    with contextlib.suppress(ProcessLookupError):
        server = os.pidfd_open(int(asked.stdout))
        assert select.select([server], [], [], TIMEOUT_S)[0], "it goes on"
        os.close(server)

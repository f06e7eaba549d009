"""Starting, watching and stopping a real daemon, and what happens when something is in the way."""

import os
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from ksi_cli.testing import Finished, KsiCommand, install_distribution
from ksi_daemon import process
from ksi_daemon.home import Home

WAIT_S = 20.0

SLOW_PLUGIN = """
import asyncio
from ksi_daemon.hookspecs import hookimpl

@hookimpl
async def ksi_lifespan(plugin):
    await asyncio.Event().wait()
    yield
"""

BROKEN_PLUGIN = """
from ksi_daemon.hookspecs import hookimpl

@hookimpl
async def ksi_lifespan(plugin):
    raise OSError("the moon is in the way")
    yield
"""


@pytest.fixture
def ksi(ksi_home: Path, tmp_path: Path) -> Iterator[KsiCommand]:
    command = KsiCommand(ksi_home, tmp_path, {"KSI_DAEMON_PLUGINS": "system"})
    yield command
    process.stop(Home(ksi_home), timeout_s=0)


def pid_of(finished: Finished) -> int:
    pid = finished.json["pid"]
    assert isinstance(pid, int)
    return pid


def wait_until_gone(home: Path) -> None:
    """Wait for the kernel to free a dead daemon's lock."""
    os.close(Home(home).lock())


def read_until(stream: IO[str] | None, wanted: str) -> str:
    """Read the lines of a pipe up to one that contains a text."""
    seen = ""
    for line in stream or ():
        seen += line
        if wanted in line:
            return seen
    raise AssertionError(f"{wanted!r} never came, only {seen!r}")


def test_start_waits_until_the_daemon_is_ready_and_says_what_to_do_next(ksi: KsiCommand) -> None:
    started = ksi("start")

    assert started.code == 0, started.err
    assert "is ready" in started.out
    assert str(ksi.home / "run" / "ksi.sock") in started.out
    assert " status" in started.out
    assert ksi("send", "system:hello").code == 0
    pid = Home(ksi.home).running_pid()
    assert pid
    assert os.getsid(pid) == pid, "whatever ends the terminal must not end the daemon"


def test_start_twice_says_already_running_and_is_fine(ksi: KsiCommand) -> None:
    pid = pid_of(ksi("start", "--json"))

    again, told = ksi("start", "--json"), ksi("start")

    assert again.code == told.code == 0
    assert again.json["already_running"] is True
    assert pid_of(again) == pid
    assert "runs already" in told.out


def test_two_starts_at_once_start_one_daemon_and_both_are_fine(ksi: KsiCommand) -> None:
    both = [ksi.begin("start", "--json") for _ in range(3)]
    outputs = [each.communicate(timeout=WAIT_S) for each in both]

    assert [each.returncode for each in both] == [0, 0, 0], outputs
    pids = {pid_of(Finished(0, out, err)) for out, err in outputs}
    assert pids == {Home(ksi.home).running_pid()}


def test_after_kill_9_a_start_just_works(ksi: KsiCommand) -> None:
    first = pid_of(ksi("start", "--json"))
    os.kill(first, signal.SIGKILL)
    wait_until_gone(ksi.home)
    assert (ksi.home / "run" / "ksi.sock").exists()
    assert ksi("status").code == 3

    second = ksi("start", "--json")

    assert second.code == 0, second.err
    assert pid_of(second) != first
    assert second.json["already_running"] is False


def test_stop_stops_and_a_second_stop_is_fine_too(ksi: KsiCommand) -> None:
    pid = pid_of(ksi("start", "--json"))

    stopped, again = ksi("stop", "--json"), ksi("stop")

    assert (stopped.code, stopped.json) == (0, {"was_running": True, "pid": pid, "killed": False})
    assert (again.code, again.out) == (0, "KSI is not running\n")
    assert Home(ksi.home).running_pid() is None


def test_a_daemon_that_hangs_is_told_so_and_can_be_stopped(ksi: KsiCommand) -> None:
    pid = pid_of(ksi("start", "--json"))
    os.kill(pid, signal.SIGSTOP)

    status = ksi("status")
    stopped = ksi("stop", "--timeout-s", "0.2", "--json")

    assert status.code == 1
    assert "does not answer" in status.out
    assert stopped.json == {"was_running": True, "pid": pid, "killed": True}
    assert Home(ksi.home).running_pid() is None


def test_a_daemon_is_found_ready_by_who_holds_a_token_that_may_not_ask(ksi: KsiCommand) -> None:
    pid = pid_of(ksi("start", "--json"))
    few, wrong = ksi.home / "few", ksi.home / "wrong"
    few.write_text(ksi("token", "create", "few", "--call", "system:hello").out)
    wrong.write_text("ksi_no_token")

    for file in (few, wrong):
        environ = {"KSI_TOKEN_FILE": str(file)}
        started = ksi("start", "--json", "--timeout-s", "5", **environ)
        status = ksi("status", "--json", **environ)

        assert started.code == status.code == 0, started.err
        assert (pid_of(started), started.json["already_running"]) == (pid, True)
        assert status.json["state"] == "ready"
        assert status.json["plugins"]["system"] == "ok"


def test_wrong_settings_are_told_by_restart_before_anything_is_stopped(ksi: KsiCommand) -> None:
    pid = pid_of(ksi("start", "--json"))
    (ksi.home / "ksi.toml").write_text("[log]\nlevle = 'debug'\n")

    by_file, by_option = ksi("restart"), ksi("restart", "--set", "demon.plugins=*")

    assert (by_file.code, by_option.code) == (1, 1)
    assert "did you mean level?" in by_file.err
    assert ksi("status", "--json").json["pid"] == pid


def test_a_start_says_when_its_settings_came_too_late(ksi: KsiCommand) -> None:
    ksi("start")

    again = ksi("start", "--set", "log.level=debug")

    assert again.code == 0
    assert "! it ran already, so --set has changed nothing" in again.out


def test_restart_replaces_the_daemon_and_starts_one_that_is_down(ksi: KsiCommand) -> None:
    first = pid_of(ksi("restart", "--json"))
    second = ksi("restart", "--json")

    assert second.code == 0
    assert pid_of(second) == Home(ksi.home).running_pid() != first


def test_status_says_by_exit_code_3_that_nothing_runs(ksi: KsiCommand) -> None:
    status = ksi("status", "--json")

    assert status.code == 3
    assert status.json["running"] is False
    assert status.json["home"] == str(ksi.home)
    assert ksi("health").code == 3
    assert ksi("health", "--json").json["error"]["code"] == "unavailable"


def test_a_pid_file_that_nobody_holds_is_no_daemon_whatever_it_says(ksi: KsiCommand) -> None:
    (ksi.home / "run").mkdir()
    (ksi.home / "run" / "ksi.pid").write_text(f"{os.getpid()}\n")

    assert ksi("status").code == 3
    assert ksi("stop", "--json").json["was_running"] is False


def test_a_path_too_long_for_a_socket_gets_a_short_one_and_status_tells_it(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    ksi = KsiCommand(home, tmp_path, {"KSI_DAEMON_PLUGINS": "system"})
    try:
        started = ksi("start", "--json")
        status = ksi("status", "--json")

        assert started.code == 0, started.err
        assert status.json["socket_is_short"] is True
        assert len(status.json["socket"]) < 104
        assert Path(status.json["socket"]).is_socket()
        assert "too long" in ksi("status").out
    finally:
        process.stop(Home(home), timeout_s=0)
        Home(home).socket.parent.joinpath("ksi.sock").unlink(missing_ok=True)
        Home(home).socket.parent.rmdir()


def test_a_relative_home_is_the_one_of_the_working_directory(ksi: KsiCommand) -> None:
    line = ksi.line("start", "--json")
    environ = {**ksi.environ, "KSI_HOME": ksi.home.name}

    done = subprocess.run(line, cwd=ksi.home.parent, env=environ, capture_output=True, check=True)

    assert Home(ksi.home).running_pid() is not None, done.stdout


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[log]\nlevl = 'info'\n", "did you mean level?"),
        ("[daemon]\nmax_connections = 'many'\n", "daemon.max_connections"),
        ("[lgo]\n", "did you mean log?"),
        ("[daemon", "ksi.toml"),
    ],
)
def test_wrong_settings_end_a_start_with_one_sentence(
    ksi: KsiCommand, text: str, sentence: str
) -> None:
    (ksi.home / "ksi.toml").write_text(text)

    started, told = ksi("start"), ksi("start", "--json")

    assert started.code == told.code == 1
    assert sentence in started.err
    assert started.err.count("\n") == 1, started.err
    assert sentence in told.json["error"]["message"]


def test_a_home_that_can_not_be_made_is_told_in_one_sentence(ksi: KsiCommand) -> None:
    started = ksi("start", KSI_HOME="/dev/null/ksi")

    assert started.code == 1
    assert started.err.count("\n") == 1
    assert "set KSI_HOME" in started.err


def test_a_home_of_another_user_is_refused(ksi: KsiCommand, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    if os.getuid() == 0:
        theirs.mkdir()
        os.chown(theirs, 65534, 65534)
    else:
        theirs = Path("/usr")

    started = ksi("start", KSI_HOME=str(theirs))

    assert started.code == 5
    assert started.err.count("\n") == 1
    assert str(theirs) in started.err


def test_a_plugin_that_fails_is_named_and_the_daemon_is_ready_even_so(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    path = install_distribution(
        tmp_path / "site", "moonstruck", BROKEN_PLUGIN, {"ksi": {"moonstruck": "moonstruck"}}
    )

    started = ksi("start", PYTHONPATH=path, KSI_DAEMON_PLUGINS="system,moonstruck")

    assert started.code == 0
    assert "the moon is in the way" in started.out
    assert "moonstruck" in ksi("status").out
    assert ksi("health").code == 0


def test_an_interrupted_start_says_what_it_waited_for_and_leaves_no_daemon(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    ksi.environ["PYTHONPATH"] = install_distribution(
        tmp_path / "site", "tardy", SLOW_PLUGIN, {"ksi": {"tardy": "tardy"}}
    )
    ksi.environ["KSI_DAEMON_PLUGINS"] = "system,tardy"
    starting = ksi.begin("start")
    read_until(starting.stderr, "waiting for tardy")
    assert ksi("status", "--json").json["state"] == "starting"
    assert ksi("health").code == 1
    joining = ksi.begin("start", "--timeout-s", "0.1")

    assert joining.communicate(timeout=WAIT_S)[1].endswith("daemon.log\n")
    assert joining.returncode == 1
    starting.send_signal(signal.SIGINT)
    _, err = starting.communicate(timeout=WAIT_S)

    assert (starting.returncode, err) == (130, "")
    wait_until_gone(ksi.home)


def test_a_daemon_that_dies_while_it_starts_is_told_with_its_last_words(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    source = (
        "import os, sys\nsys.stderr.write('goodbye, moon\\n')\nsys.stderr.flush()\nos._exit(7)\n"
    )
    path = install_distribution(tmp_path / "site", "fatal", source, {"ksi": {"fatal": "fatal"}})

    started = ksi("start", PYTHONPATH=path, KSI_DAEMON_PLUGINS="system,fatal")

    assert started.code == 1
    assert "exited with 7" in started.err
    assert "goodbye, moon" in started.err


def notified(notify: socket.socket) -> str:
    assert select.select([notify], [], [], WAIT_S)[0], "systemd was told nothing"
    return notify.recv(4096).decode()


def test_in_the_foreground_it_speaks_systemds_protocol(ksi: KsiCommand) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.bind(f"{folder}/notify")
        environ = {"NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "200000"}
        daemon = ksi.begin("start", "--foreground", env={**ksi.environ, **environ})
        try:
            assert notified(notify) == "READY=1"
            assert [notified(notify) for _ in range(3)] == ["WATCHDOG=1"] * 3
            assert Home(ksi.home).running_pid() == daemon.pid
            daemon.send_signal(signal.SIGTERM)
            told = notified(notify)
            while told == "WATCHDOG=1":
                told = notified(notify)

            assert told == "STOPPING=1"
            assert daemon.wait(WAIT_S) == 0
        finally:
            daemon.kill()
            daemon.communicate()


def test_a_second_daemon_in_the_foreground_is_refused(ksi: KsiCommand) -> None:
    ksi("start")

    second = ksi("start", "--foreground")

    assert second.code == 1
    assert "runs already" in second.err


def test_settings_given_at_the_start_are_passed_on(ksi: KsiCommand) -> None:
    ksi("start", "--set", "log.level=debug")

    shown = ksi("config", "log", "--json").json

    levels = [each for each in shown["settings"] if each["key"] == "level"]
    assert levels == [{"section": "log", "key": "level", "value": "debug", "origin": "--set"}]


@pytest.mark.parametrize("setting", ["level=debug", "log.level", "=", "log.=x"])
def test_a_setting_that_is_none_is_wrong_usage(ksi: KsiCommand, setting: str) -> None:
    started = ksi("start", "--set", setting)

    assert started.code == 2
    assert "section.key=value" in started.err

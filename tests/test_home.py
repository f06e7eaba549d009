"""The home: one directory, private, one daemon's."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ksi_daemon.home import Home
from ksi_daemon.protocol import Conflict, Denied, InvalidData
from ksi_daemon.protocol.paths import MAX_SOCKET_PATH_BYTES
from ksi_daemon.testing import DaemonProcess

HOLD = """
import sys
from pathlib import Path
from ksi_daemon.home import Home
home = Home(Path(sys.argv[1]))
home.prepare()
handle = home.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_its_folders_are_readable_by_nobody_else(ksi_home: Path) -> None:
    home = Home(ksi_home / "new" / "home")

    home.prepare()

    folders = [folder for folder in home.root.iterdir() if folder.is_dir()]
    assert {"run", "log", "pg", "files"} <= {folder.name for folder in folders}
    passed_through = 0o711 if os.getuid() == 0 else 0o700
    assert {mode_of(folder) for folder in folders if folder.name != "pg"} == {0o700}
    assert {mode_of(home.root), mode_of(home.root / "pg")} == {passed_through}


def test_a_home_that_was_open_to_all_is_closed(ksi_home: Path) -> None:
    (ksi_home / "run").mkdir(mode=0o777)
    (ksi_home / "run").chmod(0o777)

    Home(ksi_home).prepare()

    assert mode_of(ksi_home / "run") == 0o700


def test_a_home_that_is_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")

    with pytest.raises(InvalidData, match="set KSI_HOME to a directory of your own"):
        Home(tmp_path / "home").prepare()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_home_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home" / "run").mkdir(parents=True)
    os.chown(tmp_path / "home" / "run", 12345, 12345)

    with pytest.raises(Denied, match="belongs to user 12345"):
        Home(tmp_path / "home").prepare()


def test_ksi_home_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KSI_HOME", str(tmp_path / "elsewhere"))

    assert Home().root == tmp_path / "elsewhere"


def test_without_a_name_it_is_below_the_user_s_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert Home().root == tmp_path / ".ksi"


def test_a_path_too_long_for_a_socket_gets_a_short_one_outside(tmp_path: Path) -> None:
    home = Home(tmp_path / ("long" * 40))

    assert len(os.fsencode(home.socket)) <= MAX_SOCKET_PATH_BYTES
    assert home.socket == Home(home.root).socket
    assert home.socket != Home(tmp_path / ("lang" * 40)).socket


def test_nobody_runs_in_an_empty_home(ksi_home: Path) -> None:
    home = Home(ksi_home)
    home.prepare()

    assert home.running_pid() is None


def test_a_second_daemon_is_refused_and_told_whose_the_first_is(ksi_home: Path) -> None:
    home = Home(ksi_home)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ksi_home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"

        with pytest.raises(Conflict, match=rf"a daemon runs already in .* \(pid {other.pid}\)"):
            home.lock()

        assert home.running_pid() == other.pid
        other.communicate()
    assert home.running_pid() is None


def test_a_daemon_that_was_killed_leaves_no_lock(ksi_home: Path) -> None:
    home = Home(ksi_home)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ksi_home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        other.kill()
        other.wait()

    handle = home.lock()

    assert home.pid_file.read_text().strip() == str(os.getpid())
    os.close(handle)


def test_a_second_daemon_process_ends_with_the_reason(daemon_process: DaemonProcess) -> None:
    daemon_process.start()

    second = subprocess.run(
        [sys.executable, "-m", "ksi_daemon", "--home", str(daemon_process.home)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert second.returncode == 1
    assert "ksi: a daemon runs already in" in second.stderr
    assert "Traceback" not in second.stderr

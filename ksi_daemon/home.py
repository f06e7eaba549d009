"""The one directory that holds everything, and the lock that makes it one daemon's."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from ksi_daemon.protocol import Conflict, InvalidData
from ksi_daemon.protocol.paths import check_owner, home_directory, socket_path

FOLDERS: Final = ("run", "log", "pg", "files")
LOCK_WAIT_S: Final = 1.0


class Home:
    """``KSI_HOME``: settings, socket, pid file, logs, database and files of one daemon."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home_directory()
        self.settings_file = self.root / "ksi.toml"
        self.socket = socket_path(self.root)
        self.pid_file = self.root / "run" / "ksi.pid"
        self.log_file = self.root / "log" / "daemon.log"
        self.startup_file = self.root / "log" / "startup.log"
        self.tokens_file = self.root / "run" / "tokens.json"

    def prepare(self) -> None:
        """Make the directory and its folders, readable by nobody else.

        As root the directory itself and ``pg`` may be passed through (0711), since Postgres runs
        as another user below them.

        Raises:
            InvalidData: It can't be made here, or it is somebody else's.
        """
        try:
            passed_through = 0o711 if os.getuid() == 0 else 0o700
            _private(self.root, passed_through)
            for folder in FOLDERS:
                _private(self.root / folder, passed_through if folder == "pg" else 0o700)
            if self.socket.parent != self.root / "run":
                self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_owner(self.socket.parent)
        except (OSError, ValueError) as error:
            message = f"KSI_HOME can't be used: {error}; set KSI_HOME to a directory of your own"
            raise InvalidData(message) from error

    def running_pid(self) -> int | None:
        """Return the process id of the daemon that holds this home, or ``None``."""
        try:
            handle = os.open(self.pid_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(handle, 32).decode(errors="replace").strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(handle)
        return None

    def lock(self) -> int:
        """Make this process the home's daemon; returns the open handle, which holds the lock.

        The file is never removed: the kernel frees the lock when the process is gone, however it
        went.

        Raises:
            Conflict: Another daemon holds it.
        """
        handle = os.open(self.pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Who only asks whether a daemon runs holds it for microseconds.
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                os.close(handle)
                raise Conflict(
                    f"a daemon runs already in {self.root} (pid {self.running_pid()})"
                ) from None
            break
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        return handle


def _private(folder: Path, mode: int) -> None:
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    check_owner(folder)
    with contextlib.suppress(PermissionError):  # root's, and we are not
        folder.chmod(mode)

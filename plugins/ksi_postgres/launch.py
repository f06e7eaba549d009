"""Becomes a program of Postgres, as the user that may run it: ``launch.py PARENT UID GID …``.

A script of its own, run by a bare Python, since what happens between fork and exec in a process
with threads can hang.
"""

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1  # prctl(2)
# Not those of the daemon: its environment may hold keys. The locale is that of Postgres' messages.
ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"}


def main(parent: int, uid: int, gid: int, command: list[str]) -> None:
    """Give up root's rights, die with the parent, and become the command."""
    os.umask(0o077)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    end_with(parent)
    os.execve(command[0], command, ENVIRONMENT)


def end_with(parent: int) -> None:
    """Have the kernel ask for a fast shutdown when the daemon is gone, however it went.

    After the change of user, which would undo it; the exec leaves it alone. Where the kernel can't
    do that, the daemon's next start ends what is left.
    """
    if not sys.platform.startswith("linux"):
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it went before the kernel was asked
        sys.exit(f"process {parent} is gone")


if __name__ == "__main__":
    try:
        parent, uid, gid = map(int, sys.argv[1:4])
        main(parent, uid, gid, sys.argv[4:])
    except OSError as failure:
        sys.exit(f"{sys.argv[4]} can't be run: {failure}")

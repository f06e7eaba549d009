"""Knows which processes of the daemon's user are not to pass for its owner."""

import sys
from pathlib import Path


class Confined:
    """Processes that are somebody only by a token, with all that they have started.

    Whoever starts a program that it does not trust adds the process that stays its ancestor for as
    long as it lives: one that is a child subreaper, which no descendant leaves by losing its
    parent. Only Linux tells who a process's ancestors are: elsewhere nothing is confined. A process
    that kills its ancestor, or reads the memory of the owner's other programs, is not held by this;
    that is what a user of its own is for.
    """

    def __init__(self) -> None:
        self._ancestors: set[int] = set()

    def add(self, pid: int) -> None:
        """Confine the descendants of a process."""
        if sys.platform == "linux":
            self._ancestors.add(pid)

    def discard(self, pid: int) -> None:
        """Forget a process that has ended, before its number is another's."""
        self._ancestors.discard(pid)

    def holds(self, pid: int | None) -> bool:
        """Say whether a process is confined; one that is gone might have been.

        While nothing is confined that costs nothing.
        """
        while self._ancestors and pid is not None and pid > 1:
            if pid in self._ancestors:
                return True
            pid = parent_of(pid)
        return bool(self._ancestors) and pid is None


def parent_of(pid: int) -> int | None:
    """Return the parent of a process; ``None`` where that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None

"""Who this daemon is among those that run workflows, and whether it still may."""

import contextlib
import os
import secrets
import time
from pathlib import Path

from msgspec import Struct

LEASE_SHARE = 0.6  # of takeover_after_s: the rest is for noticing, and for the queue


class Fenced(Exception):
    """The lease is another's now: nothing more may be done under it."""


class Lease(Struct):
    """What a daemon holds while it runs workflows.

    Attributes:
        executor: The daemon's id, the same for ever.
        epoch: Raised at each start, and by whoever takes over.
        lease_s: How long it is good for after it was renewed.
        renewed_at: When it was renewed last, by this machine's clock, which also counts sleep.
        held_since: Since when it was renewed without a gap.
    """

    executor: str
    epoch: int
    lease_s: float
    renewed_at: float
    held_since: float

    @property
    def is_fresh(self) -> bool:
        """Whether nobody can have taken over yet."""
        return boot_time() - self.renewed_at < self.lease_s

    def renewed(self, asked_at: float) -> None:
        """Note that it was renewed by a request that was sent at that time."""
        if not self.is_fresh:
            self.held_since = asked_at
        self.renewed_at = asked_at

    def interrupted(self) -> None:
        """Note that it could not be renewed."""
        self.held_since = boot_time()


def boot_time() -> float:
    """Return seconds by a clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def executor_of(home: Path) -> str:
    """Return the id of the daemon of a home, made at its first start."""
    file = home / "executor"
    try:
        return file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        made = home / f".executor-{os.getpid()}"
        made.write_text(f"{secrets.token_hex(8)}\n", encoding="ascii")
        with contextlib.suppress(FileExistsError):
            file.hardlink_to(made)  # all of it at once, and only where there is none
        made.unlink()
        return file.read_text(encoding="ascii").strip()

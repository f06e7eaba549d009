"""Tells how much memory the embedded Postgres may keep pages in."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

SHARE: Final = 32  # of the memory that there is
LEAST_MB: Final = 32
MOST_MB: Final = 512
MEGABYTE: Final = 1024 * 1024
CGROUP: Final = Path("/sys/fs/cgroup/memory.max")


def buffers_mb(wanted_mb: int, *, limit: Path = CGROUP) -> int:
    """Return how much to take: what is wanted, or a share of what there is where that is 0.

    What a search looks through is read anew, page by page, where it does not fit. Postgres touches
    no more of it than it has pages for.
    """
    if wanted_mb:
        return wanted_mb
    return min(max(_memory_mb(limit) // SHARE, LEAST_MB), MOST_MB)


def _memory_mb(limit: Path) -> int:
    """Return the machine's memory, or the container's where that has less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit: "max"
        memory = min(memory, int(limit.read_text(encoding="ascii")))
    return memory // MEGABYTE

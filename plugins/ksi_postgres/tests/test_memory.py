"""How much memory the embedded Postgres keeps pages in."""

import os
from pathlib import Path

import pytest

from ksi_postgres.memory import buffers_mb

GIGABYTE = 1024**3


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a machine of 8 GB."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8 * GIGABYTE // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, 256),
        ("max\n", 256),
        (f"{4 * GIGABYTE}\n", 128),
        (f"{GIGABYTE // 2}\n", 32),
        (f"{64 * GIGABYTE}\n", 256),
    ],
    ids=["no-container", "unlimited", "4GB", "half-a-GB", "more-than-there-is"],
)
def test_it_takes_a_share_of_what_the_machine_or_the_container_has(
    tmp_path: Path, limit: str | None, expected: int
) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)

    assert buffers_mb(0, limit=file) == expected


def test_what_is_wanted_is_taken_as_it_is(tmp_path: Path) -> None:
    assert buffers_mb(48, limit=tmp_path / "none") == 48


def test_a_large_machine_gives_no_more_than_half_a_gigabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 512 * GIGABYTE // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)

    assert buffers_mb(0, limit=tmp_path / "none") == 512

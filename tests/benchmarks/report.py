"""Figures, the table that shows them, and the README that keeps the newest."""

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

README: Final = Path(__file__).resolve().parent / "README.md"
BEGIN: Final = "<!-- figures: written by run.py --write -->"
END: Final = "<!-- end of figures -->"
HEADER: Final = ("what", "target", "measured", "met", "details")


@dataclass(frozen=True)
class Figure:
    """One line of the report; ``met`` is ``None`` where there is no target."""

    what: str
    target: str
    measured: str
    met: bool | None
    details: str = ""

    def cells(self) -> Sequence[str]:
        """Return the line's cells."""
        met = "–" if self.met is None else ("yes" if self.met else "NO")
        return (self.what, self.target, self.measured, met, self.details)


def at_most(what: str, measured: float, bound: float, unit: str, details: str = "") -> Figure:
    """Make a figure whose target is an upper bound."""
    met = measured <= bound
    return Figure(what, f"≤ {bound:g}{unit}", f"{measured:,.2f}{unit}", met, details)


def at_least(what: str, measured: float, bound: float, unit: str, details: str = "") -> Figure:
    """Make a figure whose target is a lower bound."""
    met = measured >= bound
    shown = f"{measured:,.2f}{unit}" if measured < 1000 else f"{measured:,.0f}{unit}"
    return Figure(what, f"≥ {bound:,g}{unit}", shown, met, details)


def spread(values: Sequence[float]) -> str:
    """Show the middle half of what the rounds gave."""
    if len(values) < 2:
        return "one round"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.2f} to {high:.2f} in the middle half of {len(values)} rounds"


def table(figures: Iterable[Figure]) -> str:
    """Lay figures out as a Markdown table that is also readable as text."""
    return _laid_out([figure.cells() for figure in figures])


def _laid_out(lines_of_cells: Iterable[Sequence[str]]) -> str:
    rows = [HEADER, *lines_of_cells]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> str:
    """Describe the machine, without naming it."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    virtual = ", virtual machine" if "hypervisor" in cpuinfo.read_text() else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of {model}{virtual}, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"msgspec {version('msgspec')}"
    )


def write(figures: Sequence[Figure], remark: str) -> None:
    """Put the figures into the README, each in the place of the one of its name."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    block, _, after = rest.partition(END)
    kept = {cells[0]: cells for cells in _rows_of(block)}
    kept |= {figure.what: figure.cells() for figure in figures}
    block = f"{BEGIN}\n{machine()}{remark}.\n\n{_laid_out(kept.values())}\n{END}"
    README.write_text(before + block + after, encoding="utf-8")


def _rows_of(block: str) -> list[Sequence[str]]:
    rows = [
        [cell.strip() for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")]
        for line in block.splitlines()
        if line.startswith("| ")
    ]
    return rows[1:]

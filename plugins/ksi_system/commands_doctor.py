"""Check the whole installation: ``ksi doctor``, which works with the daemon up or down."""

import shutil
import textwrap
from functools import partial
from typing import Annotated

import typer
from msgspec import Struct

from ksi_cli import output
from ksi_cli.findings import Finding
from ksi_cli.output import JsonFlag
from ksi_daemon.home import Home

MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
INDENT = "      "


class DoctorReport(Struct, frozen=True, kw_only=True):
    """All that was found; ``ok`` says that nothing fails."""

    ok: bool
    findings: tuple[Finding, ...]


def doctor(
    *,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended without harm.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check the whole installation.

    Each finding ends with the one command that mends it. Exit code 1: something fails.
    """
    from ksi_system.doctor import Patient, examine  # noqa: PLC0415  help comes without

    findings = tuple(examine(Patient(Home(), fixes=fix)))
    report = DoctorReport(ok=all(each.state != "fail" for each in findings), findings=findings)
    output.show(report, partial(doctor_text, fixes=fix), as_json=as_json)
    if not report.ok:
        raise typer.Exit(output.FAILED)


def doctor_text(report: DoctorReport, *, fixes: bool = False) -> str:
    """Write what was found, and what mends it; after ``--fix``, what is left."""
    width = max(len(each.check) for each in report.findings)
    lines = []
    for each in report.findings:
        fixed = " (mended)" if each.was_fixed else ""
        lines += _wrapped(
            f"{MARKS[each.state]}  {each.check.ljust(width)}  {each.what}{fixed}", width
        )
        if each.fix:
            lines.append(f"{INDENT}{'':{width}}  → {each.fix}")
    return "\n".join([*lines, "", summary(report, fixes=fixes)])


def summary(report: DoctorReport, *, fixes: bool) -> str:
    """Say in a sentence how the installation is."""
    failing = sum(each.state == "fail" for each in report.findings)
    warned = sum(each.state == "warn" for each in report.findings)
    if not failing and not warned:
        return "all is well"
    parts = [f"{failing} failing"] * bool(failing) + [f"{warned} to look at"] * bool(warned)
    told = ", ".join(parts)
    return told if fixes else f"{told}; some of it may be mended by: ksi doctor --fix"


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(
        line,
        max(shutil.get_terminal_size().columns, 40),
        subsequent_indent=f"{INDENT}{'':{width}}  ",
        break_on_hyphens=False,
        drop_whitespace=True,
    )

"""Tests of ``ksi doctor``."""

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_cli.findings import Finding, fail, ok, warn
from ksi_cli.testing import Finished, KsiCommand, install_distribution
from ksi_daemon import process
from ksi_daemon.home import Home
from ksi_system import doctor
from ksi_system.commands_doctor import DoctorReport, doctor_text

CHECK = """
from ksi_cli.findings import fail

def check():
    yield fail("vault", "it is locked", "ksi vault unlock")

def broken():
    raise ZeroDivisionError("by nought")
"""


@pytest.fixture
def ksi(ksi_home: Path, tmp_path: Path) -> Iterator[KsiCommand]:
    environ = {"KSI_DAEMON_PLUGINS": "system"}
    yield KsiCommand(ksi_home, tmp_path, environ)
    process.stop(Home(ksi_home), timeout_s=0)


@pytest.fixture
def patient(ksi_home: Path) -> doctor.Patient:
    ksi_home.chmod(0o700)
    return doctor.Patient(Home(ksi_home), fixes=False)


def found(done: Finished) -> dict[str, dict[str, Any]]:
    """Return the findings by what was checked."""
    return {each["check"]: each for each in done.json["findings"]}


def states(findings: Iterable[Finding]) -> list[str]:
    return [each.state for each in findings]


def test_with_the_daemon_down_the_rest_is_looked_at_and_nothing_fails(ksi: KsiCommand) -> None:
    done = ksi("doctor", "--json")

    report = found(done)
    assert (done.code, done.json["ok"]) == (0, True)
    assert report["daemon"] == {
        "check": "daemon",
        "state": "warn",
        "what": "it is not running",
        "fix": "ksi start",
    }
    assert report["database"]["fix"] == "ksi db migrate"
    assert {"python", "packages", "home", "private files", "disk", "socket", "settings"} <= set(
        report
    )


def test_with_the_daemon_up_it_is_asked_how_it_is(ksi: KsiCommand) -> None:
    assert ksi("start").code == 0

    report = found(ksi("doctor", "--json"))

    assert report["daemon"]["state"] == "ok"
    assert report["models"]["state"] == "fail"  # their plugin is left out here


def test_a_variable_that_names_no_setting_is_found_and_a_wrong_one_fails(ksi: KsiCommand) -> None:
    unknown = found(ksi("doctor", "--json", KSI_LGO_LEVEL="info"))["settings"]
    wrong = ksi("doctor", "--json", KSI_LOG_LEVL="info")

    assert (unknown["state"], unknown["fix"]) == ("warn", "unset KSI_LGO_LEVEL")
    assert wrong.code == 1
    assert "did you mean level" in found(wrong)["settings"]["what"]


def test_what_others_could_read_is_found_and_mended(ksi: KsiCommand) -> None:
    file = ksi.home / "ksi.toml"
    file.write_text("[log]\n")
    file.chmod(0o644)

    before = ksi("doctor", "--json")
    mended = ksi("doctor", "--fix", "--json")

    assert before.code == 1
    assert found(before)["private files"]["fix"] == f"chmod 600 {file}"
    assert file.stat().st_mode & 0o777 == 0o600
    assert mended.code == 0
    assert found(mended)["private files"]["was_fixed"] is True


def test_a_socket_that_was_left_behind_is_taken_away(ksi: KsiCommand) -> None:
    path = ksi.home / "run" / "ksi.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    assert found(ksi("doctor", "--json"))["socket"]["fix"] == f"rm {path}"
    assert found(ksi("doctor", "--json", "--fix"))["socket"]["was_fixed"] is True
    assert not path.exists()


def test_it_tells_people_in_80_columns_with_the_command_that_mends(ksi: KsiCommand) -> None:
    done = ksi("doctor", KSI_LGO_LEVEL="info")

    assert "→ ksi start" in done.out
    assert "→ unset KSI_LGO_LEVEL" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_plugins_add_checks_and_one_that_breaks_spoils_nothing(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    site = install_distribution(
        tmp_path / "site",
        "vault",
        CHECK,
        {"ksi.doctor": {"vault": "vault:check", "broken": "vault:broken"}},
    )

    done = ksi("doctor", "--json", PYTHONPATH=site)

    assert done.code == 1
    assert found(done)["vault"]["fix"] == "ksi vault unlock"
    broken = found(done)["broken"]
    assert broken["what"] == "the check broke: ZeroDivisionError: by nought"
    assert broken["fix"].endswith("-m pip install --upgrade vault")


@pytest.mark.parametrize(("free", "state"), [(50, "fail"), (500, "warn"), (5000, "ok")])
def test_little_room_is_told(
    patient: doctor.Patient, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    class Usage:
        pass

    usage = Usage()
    usage.free = free * 1024**2  # type: ignore[attr-defined]  # a double
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)

    assert states(doctor.disk(patient)) == [state]


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("msgspec>=0.1", ""),
        ("msgspec>=99", "msgspec is "),
        ("msgspec<0.1", "must be <0.1"),
        ("nosuch-package>=1", "nosuch-package is not installed"),
        ("nosuch-package>=1; sys_platform == 'plan9'", ""),
        ("pydantic-ai-slim[anthropic,openai]>=99,<100", "must be >=99"),
    ],
)
def test_packages_that_do_not_fit_are_told(requirement: str, problem: str) -> None:
    told = doctor._unfit(requirement)

    assert problem in told
    assert bool(told) == bool(problem)


def test_calls_in_doubt_are_counted(
    patient: doctor.Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient.state = "ready"
    monkeypatch.setattr(patient, "ask", lambda _: {"calls": [{}]})

    expected = "1 in doubt: a person is to say what happened"
    assert list(doctor.doubts(patient)) == [warn("tool calls", expected, "ksi tool in-doubt")]


def test_a_database_is_judged_by_what_its_command_reports(patient: doctor.Patient) -> None:
    well = {"version": "18.6", "size_bytes": 1024**2, "schema": [{"pending": []}]}
    behind = {**well, "schema": [{"pending": ["0002_x"]}]}
    ill = {**well, "problems": ["the disk is full"]}
    away = {"error": {"code": "unavailable", "message": "it does not answer"}}

    reports = (well, behind, ill, away)

    assert [states(doctor._database(patient, each)) for each in reports] == [
        ["ok"],
        ["warn"],
        ["fail"],
        ["fail"],
    ]


def test_whatever_is_wrong_comes_with_the_command_that_mends_it(
    ksi: KsiCommand, tmp_path: Path
) -> None:
    (ksi.home / "keys").mkdir(mode=0o755)
    (ksi.home / "keys" / "openai").write_text("sk-1")
    (ksi.home / "tokens.json").write_text("{}")
    wrong = {"KSI_LGO_LEVEL": "x", "KSI_DATABASE_URL": "postgresql://127.0.0.1:1/none"}

    findings = ksi("doctor", "--json", **wrong).json["findings"]

    bad = [each for each in findings if each["state"] != "ok"]
    assert len(bad) >= 5
    assert [each for each in bad if not each.get("fix")] == []


def test_findings_are_summed_up() -> None:
    findings = (ok("a", "fine"), warn("b", "so-so"), fail("c", "bad", "mend c"))

    text = doctor_text(DoctorReport(ok=False, findings=findings))

    assert text.endswith("1 failing, 1 to look at; some of it may be mended by: ksi doctor --fix")
    left = doctor_text(DoctorReport(ok=False, findings=findings), fixes=True)
    assert left.endswith("\n1 failing, 1 to look at")
    assert doctor_text(DoctorReport(ok=True, findings=findings[:1])).endswith("all is well")

"""Checks the whole installation: each check is a small function that yields what it finds."""

import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, version
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ksi_cli import output
from ksi_cli.findings import Finding, fail, ok, warn
from ksi_client import Client, KsiError
from ksi_daemon import process
from ksi_daemon.home import Home
from ksi_daemon.protocol.names import did_you_mean

GROUP: Final = "ksi.doctor"
LITTLE_BYTES: Final = 1024**3
TOO_LITTLE_BYTES: Final = 100 * 1024**2
DATABASE_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 20.0
MIN_OPEN_FILES: Final = 1024
RUNNING: Final = ("starting", "ready", "draining")


class Patient:
    """The installation that is looked at.

    Args:
        home: Where its daemon lives.
        fixes: Whether to mend what can be mended without harm.
    """

    def __init__(self, home: Home, *, fixes: bool) -> None:
        self.home = home
        self.fixes = fixes
        self.state, self.health = process.probe(home)

    def ask(self, event: str, data: Any = None) -> Any:
        """Ask the daemon.

        Raises:
            KsiError: It does not answer.
        """
        with Client(self.home.socket, timeout_s=CALL_TIMEOUT_S) as client:
            return client.request(event, data)

    def mend(self, finding: Finding, how: Callable[[], object]) -> Finding:
        """Mend what was found, if that is wanted, and return what is found then."""
        if not self.fixes:
            return finding
        try:
            how()
        except OSError as error:
            return replace(finding, what=f"{finding.what} (not mended: {error.strerror})")
        return replace(finding, state="ok", fix=None, was_fixed=True)


Check = Callable[[Patient], Iterable[Finding]]


def examine(patient: Patient) -> Iterator[Finding]:
    """Run every check; one that breaks is a finding itself."""
    for check in CHECKS:
        yield from _run(check.__name__, "ksi", partial(check, patient))
    for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        package = point.dist.name if point.dist else "ksi"
        yield from _run(point.name, package, partial(_call, point))


def _call(point: EntryPoint) -> Iterable[Finding]:
    found: Iterable[Finding] = point.load()()
    return found


def _run(name: str, package: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001  a check of a plugin may do anything; the rest goes on
        yield fail(name, f"the check broke: {type(error).__name__}: {error}", _upgrade(package))


def _upgrade(package: str) -> str:
    return f"{shlex.quote(sys.executable)} -m pip install --upgrade {shlex.quote(package)}"


# -- what it runs on -----------------------------------------------------------------------------


def python(patient: Patient) -> Iterator[Finding]:
    """Look at the Python that runs this."""
    told = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield ok("python", told)  # too old a one could not even read this


def packages(patient: Patient) -> Iterator[Finding]:
    """Look whether what KSI needs is installed, in versions that fit."""
    try:
        needed = distribution("ksi").requires or []
    except PackageNotFoundError:
        yield fail("packages", "KSI itself is not installed", "pip install ksi")
        return
    wrong = [problem for each in needed if "extra ==" not in each if (problem := _unfit(each))]
    for problem in wrong:
        yield fail("packages", problem, _upgrade("ksi"))
    if not wrong:
        yield ok("packages", f"ksi {version('ksi')}, and all that it needs")


def _unfit(requirement: str) -> str:
    """Say what is wrong with a package that is required; nothing where it fits."""
    wanted, _, marker = requirement.partition(";")
    if "sys_platform" in marker and sys.platform not in marker:
        return ""
    name = _name_of(wanted)
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    for bound in (
        wanted[len(name) :].partition("]")[2].split(",")
        if "[" in wanted
        else (wanted[len(name) :].split(","))
    ):
        if not _fits(found, bound.strip()):
            return f"{name} is {found}, and must be {bound.strip()}"
    return ""


def _name_of(wanted: str) -> str:
    letters = [c if c.isalnum() or c in "-_." else " " for c in wanted.strip()]
    return "".join(letters).split(" ", 1)[0]


def _fits(found: str, bound: str) -> bool:
    """Say whether a version keeps a bound of those that are used here: >= and <."""
    if bound.startswith(">="):
        return _numbers(found) >= _numbers(bound[2:])
    if bound.startswith("<"):
        return _numbers(found) < _numbers(bound[1:])
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip().split(".") if part.isdigit())


def open_files(patient: Patient) -> Iterator[Finding]:
    """Look how many files and connections a process may have open."""
    import resource  # noqa: PLC0415  there is none on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MIN_OPEN_FILES:
        yield warn("open files", f"a process may open only {soft}", f"ulimit -n {MIN_OPEN_FILES}")
    else:
        yield ok("open files", f"a process may open {'any number' if soft < 0 else soft}")


# -- the home ------------------------------------------------------------------------------------


def home(patient: Patient) -> Iterator[Finding]:
    """Look whether the home is there, ours, and private."""
    root = patient.home.root
    shown = output.displayed(root)
    if not root.exists():
        yield warn("home", f"{shown} is not there yet", "ksi start")
        return
    if not root.is_dir():
        yield fail("home", f"{shown} is no directory", "export KSI_HOME=~/.ksi")
        return
    owner = root.stat().st_uid
    if owner != os.getuid():
        yield fail("home", f"{shown} belongs to user {owner}", "export KSI_HOME=~/.ksi")
        return
    allowed = 0o711 if os.getuid() == 0 else 0o700  # as root, Postgres runs as another user
    wrong = list(_too_open([root, *(root / each for each in ("run", "log", "files"))], allowed))
    for path, mode in wrong:
        yield _closed(patient, "home", path, mode, 0o700 if path != root else allowed)
    if not wrong:
        yield ok("home", f"{shown}, private")


def private_files(patient: Patient) -> Iterator[Finding]:
    """Look whether what may hold a secret can be read by nobody else."""
    root = patient.home.root
    files = [
        root / "ksi.toml",
        patient.home.tokens_file,
        root / "chat_history",
        root / "http.key",
        *(root / "keys").glob("*"),
    ]
    there = [path for path in files if path.is_file()]
    wrong = list(_too_open([*there, *filter(Path.is_dir, [root / "keys"])], 0o700))
    for path, mode in wrong:
        closed = 0o700 if path.is_dir() else 0o600
        yield _closed(patient, "private files", path, mode, closed)
    if not wrong:
        yield ok("private files", "nobody else can read what may hold a secret")


def _too_open(paths: Iterable[Path], allowed: int) -> Iterator[tuple[Path, int]]:
    for path in paths:
        if path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & ~allowed & 0o077:
            yield path, mode


def _closed(patient: Patient, check: str, path: Path, mode: int, closed: int) -> Finding:
    shown = output.displayed(path)
    fix = f"chmod {closed:o} {shlex.quote(shown)}"
    finding = fail(check, f"{shown} is open to others ({mode:o})", fix)
    return patient.mend(finding, lambda: path.chmod(closed))


def disk(patient: Patient) -> Iterator[Finding]:
    """Look how much room there is."""
    place = patient.home.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    told = f"{free / 1024**3:.1f} GiB free for {output.displayed(patient.home.root)}"
    if free < TOO_LITTLE_BYTES:
        yield fail("disk", told, "ksi db size")
    elif free < LITTLE_BYTES:
        yield warn("disk", told, "ksi db size")
    else:
        yield ok("disk", told)


def socket(patient: Patient) -> Iterator[Finding]:
    """Look at the socket, and whether one was left behind."""
    path = patient.home.socket
    shown = output.displayed(path)
    if patient.state == "absent" and path.is_socket():
        what = f"{shown} was left behind by a daemon that is gone"
        finding = warn("socket", what, f"rm {shlex.quote(shown)}")
        yield patient.mend(finding, path.unlink)
        return
    elsewhere = path.parent != patient.home.root / "run" and "KSI_SOCKET" not in os.environ
    note = " (the home's path is too long for a socket)" if elsewhere else ""
    yield ok("socket", shown + note)


# -- what it is told -----------------------------------------------------------------------------


class _Unknown(logging.Handler):
    """Gathers the variables that name no setting."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.names.append(str(getattr(record, "variable", record.getMessage())))


def settings(patient: Patient) -> Iterator[Finding]:
    """Read the settings file and the environment as the daemon would."""
    from ksi_system.commands_config import read_settings  # noqa: PLC0415  it imports every plugin

    unknown = _Unknown()
    log = logging.getLogger("ksi_daemon.settings")
    log.addHandler(unknown)
    try:
        values = read_settings(patient.home)
    except KsiError as error:
        yield fail("settings", error.message, "ksi config")
        return
    finally:
        log.removeHandler(unknown)
    known = {f"KSI_{each.section}_{each.key}".upper() for each in values}
    for name in sorted(set(unknown.names)):
        hint = did_you_mean(name, known)
        yield warn("settings", f"${name} names no setting{hint}", f"unset {name}")
    chosen = sum(each.origin != "default" for each in values)
    if not unknown.names:
        yield ok("settings", f"{len(values)} settings, {chosen} of them set by you")


# -- what runs -----------------------------------------------------------------------------------


def daemon(patient: Patient) -> Iterator[Finding]:
    """Look how the daemon is, plugin by plugin."""
    if patient.state == "absent":
        yield warn("daemon", "it is not running", "ksi start")
        return
    if patient.state == "silent":
        yield fail("daemon", "it runs, but does not answer", "ksi restart")
        return
    report = patient.health
    problems = list(report.get("problems", ()))
    for each in problems:
        yield warn("daemon", str(each), "ksi logs")
    for each in report.get("plugins", ()):
        if each["health"] != "ok":
            report_of = fail if each["health"] == "failed" else warn
            why = each.get("why") or "it gives no reason"
            yield report_of(f"plugin {each['plugin']}", f"{each['health']}: {why}", "ksi logs")
    if patient.state != "ready":
        yield warn("daemon", f"it is {patient.state}", "ksi status")
    elif not problems:
        yield ok("daemon", f"it runs (pid {patient.home.running_pid()})")


def database(patient: Patient) -> Iterator[Finding]:
    """Look whether the database can be reached, and what it lacks."""
    command = [sys.executable, "-P", "-m", "ksi_cli", "db", "status", "--json"]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "KSI_HOME": str(patient.home.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DATABASE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield fail("database", f"it does not answer in {DATABASE_TIMEOUT_S:.0f} s", "ksi db status")
        return
    try:
        report = msgspec.json.decode(done.stdout)
    except msgspec.DecodeError:
        told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        yield fail("database", told or "it can't be looked at", "ksi db status")
        return
    yield from _database(patient, report)


def _database(patient: Patient, report: dict[str, Any]) -> Iterator[Finding]:
    if error := report.get("error"):
        if error["code"] == "not_found" and patient.state == "absent":
            yield warn("database", "there is none yet", "ksi db migrate")
        else:
            yield fail("database", error["message"], "ksi db status")
        return
    problems = report.get("problems", ())
    for problem in problems:
        yield fail("database", str(problem), "ksi db verify")
    pending = [name for each in report.get("schema", ()) for name in each.get("pending", ())]
    if pending:
        yield warn("database", f"{len(pending)} migrations wait", "ksi db migrate")
    elif not problems:
        megabytes = report["size_bytes"] / 1024**2
        yield ok("database", f"PostgreSQL {report['version']}, {megabytes:.0f} MiB")


def models(patient: Patient) -> Iterator[Finding]:
    """Look which models can be asked; keys themselves are never looked at."""
    if patient.state != "ready":
        return
    try:
        listed = patient.ask("model:list")
    except KsiError as error:
        yield fail("models", error.message, "ksi model list")
        return
    default = listed["default"]
    if default.startswith("builtin/"):
        hint = listed.get("hint") or "there is no real one"
        yield warn("default model", f"{default}: {hint}", "ksi model list")
    else:
        yield ok("default model", default)
    for each in listed["providers"]:
        if each.get("state", "closed") != "closed":
            name = str(each["name"])
            what = "it failed again and again, and is left alone for a while"
            yield warn(f"provider {name}", what, f"ksi model list {shlex.quote(name)}")
    usable = [each["name"] for each in listed["providers"] if each["is_usable"]]
    yield ok("providers", f"usable: {', '.join(usable) or 'none'}")


def doubts(patient: Patient) -> Iterator[Finding]:
    """Look whether tool calls wait for a person."""
    if patient.state != "ready":
        return
    try:
        found = patient.ask("tool:in_doubt")["calls"]
    except KsiError as error:
        yield fail("tool calls", error.message, "ksi tool in-doubt")
        return
    if found:
        what = f"{len(found)} in doubt: a person is to say what happened"
        yield warn("tool calls", what, "ksi tool in-doubt")
    else:
        yield ok("tool calls", "none is in doubt")


CHECKS: Final[tuple[Check, ...]] = (
    python,
    packages,
    open_files,
    home,
    private_files,
    disk,
    socket,
    settings,
    daemon,
    database,
    models,
    doubts,
)

#!/usr/bin/env python3
"""Starts KSI on a machine that has only Python: makes its environment, then hands over to ``ksi``.

The standard library alone, in words that Python 3.6 can read, so that too old a Python is told so.
"""

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

MINIMUM = (3, 11)

if sys.version_info < MINIMUM:
    sys.exit(
        "KSI needs Python %d.%d or newer: run daemon_control.py with one. This is Python %s (%s)."
        % (MINIMUM[0], MINIMUM[1], sys.version.split()[0], sys.executable)
    )

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP = (str(PYTHON), "-I", "-m", "pip", "--disable-pip-version-check")
STAMP = VENV / "ksi-environment.json"  # written last: without it an environment is not finished
LOCK = ROOT / ".venv.lock"  # never removed, since another process may be waiting for it
UNFINISHED = b"unfinished\n"  # stands in the lock's file while an environment is being changed

# What would make another Python, or its packages, part of ours; and what would have each process
# compile anew what was installed uncompiled.
FOREIGN_VARIABLES = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "__PYVENV_LAUNCHER__",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
)

COMMANDS = {
    "demo": "see what KSI does, in two minutes (--yes: without pressing keys)",
    "start": "start the daemon, wait until it is ready (--foreground: stay)",
    "stop": "stop it and wait for its end (--timeout-s N: then kill it)",
    "restart": "stop it if it runs, and start it",
    "status": "tell whether it runs, and where it has its things",
    "health": "tell whether all is well",
    "logs": "show its log (-f: go on as lines come)",
    "plugins": "list the plugins and what has become of each",
    "config": "show each setting and where it came from",
    "test": "install what tests need, then run every check and test",
}

# One more than there are processors: many tests wait for a process to start or to end.
WORKERS = str((os.cpu_count() or 1) + 1)

# The one list of what `test`, `just check` and `just test` run; pytest is last for its summary.
CHECKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ruff", ("-m", "ruff", "check", ".")),
    ("format", ("-m", "ruff", "format", "--check", ".")),
    ("mypy", ("-m", "mypy", "--num-workers", "auto")),
    ("imports", ("-c", "from importlinter.cli import lint_imports_command as run; run()")),
    ("pytest", ("-m", "pytest", "-q", "-n", WORKERS, "--dist", "worksteal")),
)


class Unusable(Exception):
    """The environment can't be made; the message is what to tell."""


class WrongUsage(Exception):
    """The command line is wrong; the message is what to tell."""


def main(words: list[str]) -> int:
    """Run a command line; on success this process becomes another."""
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    try:
        check_command(command)
        if command == "test":
            return test(words[1:])
        hand_over(words)
    except WrongUsage as error:
        return fail(str(error), 2, words)
    except Unusable as error:
        return fail(str(error), 1, words)
    except KeyboardInterrupt:
        return 130
    return 0


def check_command(command: str) -> None:
    """Refuse a command that there is not; name the nearest."""
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = "did you mean " + near[0] + "?" if near else "see: daemon_control.py --help"
        raise WrongUsage("there is no command %r; %s" % (command, hint))


def usage() -> str:
    """Return the help text."""
    lines = ["usage: python3 daemon_control.py COMMAND [OPTIONS]", ""]
    lines += ["  %-8s %s" % item for item in COMMANDS.items()]
    lines += [
        "",
        "Each takes --json and --help. Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 not running.",
        "On first use an environment is made in %s; everything else is in" % VENV.name,
        "%s --help." % (VENV / "bin" / "ksi"),
    ]
    return "\n".join(lines)


def fail(message: str, code: int, words: list[str]) -> int:
    """Report an error as a sentence, or as JSON for who asked for that; return the exit code."""
    if "--json" in words:
        kind = "usage" if code == 2 else "failed"
        print(json.dumps({"error": {"code": kind, "message": message}}))
    else:
        say("ksi: " + message)
    return code


def say(text: str) -> None:
    """Write a line to stderr: stdout is for answers."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def hand_over(words: list[str]) -> None:
    """Become the ``ksi`` command."""
    python = Path(sys.executable)
    if is_checkout():
        ensure_environment(developing=False)
        python = PYTHON
    # -P: whatever lies in the working directory is not to be imported.
    os.execve(str(python), [str(python), "-P", "-m", "ksi_cli", *words], environment())


def is_checkout() -> bool:
    """Say whether this file stands in a checkout, rather than among installed packages."""
    return (ROOT / "pyproject.toml").is_file()


def environment() -> dict[str, str]:
    """Return the variables for a program in the environment."""
    return {name: text for name, text in os.environ.items() if name not in FOREIGN_VARIABLES}


# -- the environment ----------------------------------------------------------------------------


def ensure_environment(*, developing: bool) -> None:
    """Make the environment, or bring it up to date, unless it is as it should be.

    Args:
        developing: Whether what tests need belongs in it.
    """
    if is_current(developing):
        return
    with lock() as handle:
        if is_current(developing):
            return  # another process made it while this one waited
        developing = developing or bool(read_stamp().get("developing"))
        begun_at = time.monotonic()
        if is_unfinished() or not can_be_mended():
            os.pwrite(handle, UNFINISHED, 0)
            create(handle)
            install(handle, developing)
        else:
            say("Bringing KSI's environment up to date.")
            os.pwrite(handle, UNFINISHED, 0)
            with clearing_at_failure(handle):
                install(handle, developing)
        check_environment()
        STAMP.write_text(json.dumps(wanted(developing)), encoding="utf-8")
        os.ftruncate(handle, 0)
        say("  done in %.0f s" % (time.monotonic() - begun_at))


@contextlib.contextmanager
def clearing_at_failure(handle: int) -> Iterator[None]:
    """Keep an environment that could not be brought up to date: the former code still runs in it.

    One whose change was interrupted is not kept; nobody knows what it holds.
    """
    try:
        yield
    except Unusable:
        os.ftruncate(handle, 0)
        raise


def is_unfinished() -> bool:
    """Say whether the environment is being changed, or whoever changed it did not finish."""
    try:
        return LOCK.read_bytes() == UNFINISHED
    except OSError:
        return False


def wanted(developing: bool) -> dict[str, object]:
    """Return what the stamp of a finished environment says."""
    pyproject = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return {
        "developing": developing,
        "path": str(VENV),
        "pyproject": pyproject,
        "python": python_version(),
    }


def read_stamp() -> dict[str, object]:
    """Return what the stamp says; nothing where there is none that can be read."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_current(developing: bool) -> bool:
    """Say whether the environment is finished, here, and of this checkout's state."""
    stamp = read_stamp()
    developing = developing or bool(stamp.get("developing"))
    return bool(stamp) and stamp == wanted(developing) and not is_unfinished()


def can_be_mended() -> bool:
    """Say whether an environment only needs to be brought up to date: it runs, and it is here."""
    version = python_version()
    moved = read_stamp().get("path", str(VENV)) != str(VENV)
    old = version is None or tuple(map(int, version.split("."))) < MINIMUM
    if moved or old:
        return False
    return uv() is not None or run_quietly(PYTHON, "-I", "-c", "import pip") is not None


def python_version() -> str | None:
    """Return the version of the environment's Python; ``None`` when it does not run.

    It may have changed below us: a system's upgrade takes the old one away.
    """
    return run_quietly(PYTHON, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")


def run_quietly(*command: object) -> str | None:
    """Run a program and return what it printed; ``None`` when it failed."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def uv() -> str | None:
    """Return the path of ``uv``, if there is one that works."""
    found = shutil.which("uv")
    return found if found and run_quietly(found, "--version") is not None else None


@contextlib.contextmanager
def lock() -> Iterator[int]:
    """Keep other processes from changing the environment.

    The programs that are run inherit the lock, so that it is held until the last of them has ended.
    """
    try:
        handle = os.open(str(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Unusable(
            "%s can't be written, and KSI makes its environment there: %s" % (ROOT, error.strerror)
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process is making the environment; waiting for it …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def create(handle: int) -> None:
    """Make an empty environment, in place of any that is there."""
    say("Making KSI's environment, which takes up to a minute, once:")
    say("  in %s" % VENV)
    try:
        if VENV.is_symlink():
            VENV.unlink()
        elif VENV.exists():
            shutil.rmtree(str(VENV))
    except OSError as error:
        raise Unusable("the old environment can't be removed: %s" % error) from error
    tool = uv()
    if tool is not None:
        run("creating it", handle, tool, "venv", "--quiet", "--python", sys.executable, str(VENV))
        return
    for module in ("venv", "ensurepip"):
        if run_quietly(sys.executable, "-I", "-c", "import " + module) is None:
            raise Unusable(
                "this Python has no %s module: install it (on Debian and Ubuntu: apt install "
                "python%d.%d-venv), or put uv on the PATH" % (module, *sys.version_info[:2])
            )
    run("creating it", handle, sys.executable, "-I", "-m", "venv", str(VENV))


def install(handle: int, developing: bool) -> None:
    """Install this checkout, and what it needs, into the environment."""
    what = "%s[dev]" % ROOT if developing else str(ROOT)
    tool = uv()
    if tool is not None:
        install_with_uv(tool, handle, what)
        return
    tool = own_uv()
    if tool is not None:
        with contextlib.suppress(Unusable):
            install_with_uv(tool, handle, what)
            return
    # Of thousands of modules a few hundred are imported: they are compiled then.
    options = ("--no-compile", "--no-user", "--no-input", "--progress-bar", "off")
    command = (*PIP, "install", *options, "--editable", what)
    run("installing what it needs", handle, *command)


def install_with_uv(tool: str, handle: int, what: str) -> None:
    """Install something with ``uv``, which takes seconds where pip takes a minute."""
    command = (tool, "pip", "install", "--python", str(PYTHON), "--editable", what)
    run("installing what it needs", handle, *command)


def own_uv() -> str | None:
    """Return the path of a ``uv`` that pip puts into the environment.

    There is none where it can't be had, or where pip is told of an index of its own: ``uv`` would
    not know of that, and ask another.
    """
    settings = run_quietly(*PIP, "config", "list")
    if settings is None or ".index-url=" in settings:
        return None
    found = str(VENV / "bin" / "uv")
    if run_quietly(*PIP, "install", "--no-user", "--no-input", "--retries", "0", "uv") is None:
        return None
    return found if run_quietly(found, "--version") is not None else None


def check_environment() -> None:
    """Make sure that what was installed runs."""
    if run_quietly(PYTHON, "-P", "-m", "ksi_cli", "--version") is None:
        raise Unusable("what was installed does not run; the next start makes it anew")


def run(doing: str, handle: int, *command: str) -> None:
    """Run a step of the installation; show that it goes on, and what it said if it failed."""
    begun_at = time.monotonic()
    last: deque[str] = deque(maxlen=12)
    unreachable = False
    say("  %s (%s) …" % (doing, Path(command[0]).name))
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), "PYTHONUNBUFFERED": "1"},  # what it says comes in its order
        cwd=str(ROOT),
        pass_fds=(handle,),
    ) as process:
        assert process.stdout is not None
        with clearing_progress():
            for line in process.stdout:
                text = line.decode(errors="replace").rstrip()
                last.extend([text] if text else [])
                unreachable = unreachable or any(words in text for words in UNREACHABLE)
                show_progress(time.monotonic() - begun_at, text)
    if process.returncode:
        cause = ": where packages come from can't be reached" if unreachable else ""
        said = "\n".join("  " + line for line in last)
        raise Unusable("%s failed%s; mend the cause and start again:\n%s" % (doing, cause, said))


# What pip and uv say of a network that isn't there.
UNREACHABLE = ("connection broken by", "error sending request")


def show_progress(seconds: float, text: str) -> None:
    """Show in one line of a terminal, which the next one replaces, what is being done."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 14
        sys.stderr.write("\r\033[K    %4.0f s  %s" % (seconds, text.strip()[:width]))
        sys.stderr.flush()


@contextlib.contextmanager
def clearing_progress() -> Iterator[None]:
    """Leave no line of progress behind, however the block ends."""
    try:
        yield
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


# -- the tests ----------------------------------------------------------------------------------


def test(words: list[str]) -> int:
    """Run the checks and the tests, all of them even if one fails."""
    as_json, only, rest = test_arguments(words)
    if only == "help":
        print(TEST_USAGE)
        return 0
    if not is_checkout():
        raise Unusable("the tests are in the source, and this is an installed package")
    ensure_environment(developing=True)
    results: list[dict[str, object]] = []
    for name, command in CHECKS:
        is_last = name == "pytest"
        if only in (None, name) or (only == "checks" and not is_last):
            if is_last:
                tell_failed(results)
            results.append(check(name, (*command, *rest) if is_last else command, as_json))
    passed = all(result["passed"] for result in results)
    if as_json:
        print(json.dumps({"passed": passed, "checks": results}))
    return 0 if passed else 1


TEST_USAGE = """usage: python3 daemon_control.py test [--json] [--only NAME] [ARGUMENTS OF PYTEST]

NAME is one of: %s; or checks, which is all but pytest.""" % ", ".join(name for name, _ in CHECKS)


def test_arguments(words: list[str]) -> tuple[bool, str | None, list[str]]:
    """Take the arguments of ``test`` apart: whether as JSON, which check only, what is pytest's."""
    rest, only = [word for word in words if word != "--json"], None
    if rest[:1] in (["-h"], ["--help"]):
        return False, "help", []
    if rest[:1] == ["--only"]:
        only = rest[1] if len(rest) > 1 else ""
        known = [name for name, _ in CHECKS] + ["checks"]
        if only not in known:
            raise WrongUsage("--only takes one of: " + ", ".join(known))
        rest = rest[2:]
    return "--json" in words, only, rest


def tell_failed(results: list[dict[str, object]]) -> None:
    """Name the checks that failed, before the tests: the last line is to be pytest's."""
    failed = [str(result["name"]) for result in results if not result["passed"]]
    if failed:
        say("== failed so far: " + ", ".join(failed))


def check(name: str, command: tuple[str, ...], as_json: bool) -> dict[str, object]:
    """Run one check, and say how it went."""
    say("== " + name)
    begun_at = time.monotonic()
    variables = environment()
    variables["PATH"] = "%s%s%s" % (PYTHON.parent, os.pathsep, variables.get("PATH", os.defpath))
    variables["VIRTUAL_ENV"] = str(VENV)
    code = subprocess.call(
        [str(PYTHON), *command],
        cwd=str(ROOT),
        env=variables,
        stdout=sys.stderr if as_json else None,
    )
    seconds = round(time.monotonic() - begun_at, 1)
    return {"name": name, "passed": code == 0, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

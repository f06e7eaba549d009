"""`daemon_control.py` on a machine that has only Python: real environments, made in copies."""

import ast
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ksi_daemon import process
from ksi_daemon.home import Home

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "daemon_control.py"
INSTALL_TIMEOUT_S = 240.0
OLD_VERSIONS = ("3.6", "3.7", "3.8", "3.9", "3.10")


class Checkout:
    """A copy of the tree, used by somebody whose home is empty."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.home = folder / "home" / ".ksi"
        (folder / "home").mkdir()
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(base_python())
        self.environ = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder / "home")}
        # Where packages come from is the machine's affair.
        kept = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_", "UV_", "SSL_CERT_")
        self.environ |= {n: v for n, v in os.environ.items() if n.upper().startswith(kept)}

    def copy_tree(self) -> None:
        """Copy the tree as it stands now, without what git is told to ignore."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        if listed.returncode == 0:
            for name in filter(None, listed.stdout.decode().split("\0")):
                if (ROOT / name).is_file():
                    (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, self.root / name)
        else:
            litter = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
            shutil.copytree(ROOT, self.root, ignore=litter, dirs_exist_ok=True)

    def line(self, *words: str) -> list[str]:
        return ["python3", str(self.root / "daemon_control.py"), *words]

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.line(*words),
            env={**self.environ, **environ},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.line(*words),
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def use_uv(self) -> None:
        """Put uv on the PATH."""
        found = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if found is None or subprocess.run([found, "-V"], capture_output=True).returncode:
            pytest.skip("uv is not installed here")
        (Path(self.environ["PATH"].partition(":")[0]) / "uv").symlink_to(found)


def base_python() -> Path:
    """Return the Python that the tests' own environment was made of."""
    return Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    root = tmp_path / "a checkout"  # with a space, as on a Mac
    root.mkdir()
    shutil.copy2(SCRIPT, root)
    shutil.copy2(ROOT / "pyproject.toml", root)
    made = Checkout(root, tmp_path)
    yield made
    process.stop(Home(made.home), timeout_s=0)


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, in this process."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_the_first_start_makes_an_environment_and_a_killed_one_is_mended(
    checkout: Checkout,
) -> None:
    checkout.copy_tree()
    first = checkout.begin("start")
    assert first.stderr is not None
    for line in first.stderr:
        if "installing" in line:
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()

    started = checkout.run("start", "--json")

    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["pid"] == Home(checkout.home).running_pid()
    assert "Making KSI's environment" in started.stderr
    again = checkout.run("start", "--json")
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout)["already_running"] is True
    assert checkout.run("status").returncode == 0
    assert checkout.run("stop").returncode == 0
    assert checkout.run("status").returncode == 3


@pytest.mark.timeout(600)
def test_with_uv_it_is_made_once_mended_when_stale_and_made_anew_when_moved(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.use_uv()
    checkout.copy_tree()
    (tmp_path / "msgspec.py").write_text("raise SystemExit('a stranger was imported')")
    checkout.environ["PYTHONPATH"] = str(tmp_path)

    both = [checkout.begin("status", "--json") for _ in range(2)]
    outputs = [each.communicate(timeout=INSTALL_TIMEOUT_S) for each in both]

    assert [each.returncode for each in both] == [3, 3], outputs
    assert sorted("Making" in err for _, err in outputs) == [False, True], outputs
    assert all(json.loads(out)["running"] is False for out, _ in outputs)

    marker = checkout.root / ".venv" / "marker"
    marker.touch()
    with (checkout.root / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# changed\n")
    stale = checkout.run("status")
    assert (stale.returncode, "up to date" in stale.stderr) == (3, True), stale.stderr
    assert marker.exists()

    # What can't be had leaves the environment as it was: the former state of the code runs in it.
    before = (checkout.root / "pyproject.toml").read_text()
    (checkout.root / "pyproject.toml").write_text(before.replace('"typer>', '"no such thing>'))
    broken = checkout.run("status", "--json")
    assert broken.returncode == 1
    assert "installing what it needs failed" in json.loads(broken.stdout)["error"]["message"]
    (checkout.root / "pyproject.toml").write_text(before)
    assert checkout.run("status").stderr == ""

    checkout.root = checkout.root.rename(tmp_path / "elsewhere")
    moved = checkout.run("status")
    assert (moved.returncode, "Making" in moved.stderr) == (3, True), moved.stderr
    assert not (checkout.root / ".venv" / "marker").exists()

    (checkout.root / ".venv" / "bin" / "python").unlink()
    headless = checkout.run("status")
    assert (headless.returncode, "Making" in headless.stderr) == (3, True), headless.stderr


@pytest.mark.timeout(120)
def test_without_a_network_there_is_one_clear_message(checkout: Checkout) -> None:
    checkout.copy_tree()

    started = checkout.run("start", "--json", PIP_NO_INDEX="1")

    assert started.returncode == 1
    assert "installing what it needs failed" in json.loads(started.stdout)["error"]["message"]


def test_help_and_typing_mistakes_need_no_environment(checkout: Checkout) -> None:
    told, bare, typo = checkout.run("--help"), checkout.run(), checkout.run("strat")

    assert (told.returncode, bare.returncode, typo.returncode) == (0, 0, 2)
    assert "start the daemon" in told.stdout
    assert bare.stdout == told.stdout
    assert "did you mean start?" in typo.stderr
    assert json.loads(checkout.run("strat", "--json").stdout)["error"]["code"] == "usage"
    assert checkout.run("test", "--only", "nothing").returncode == 2
    assert checkout.run("test", "--help").returncode == 0
    assert not (checkout.root / ".venv").exists()


def test_a_checkout_that_can_not_be_written_is_told_in_one_sentence(checkout: Checkout) -> None:
    (
        checkout.root / ".venv.lock"
    ).mkdir()  # as root, who may write anywhere, can't open this either

    started = checkout.run("start")

    assert started.returncode == 1
    assert started.stderr.count("\n") == 1
    assert "can't be written" in started.stderr


def old_python(version: str) -> str | None:
    """Find an old Python that runs, on the PATH or where pyenv keeps them."""
    kept = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")
    for candidate in (shutil.which(f"python{version}"), *map(str, kept)):
        if candidate:
            told = subprocess.run(
                [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if told.stdout.strip() == version:
                return candidate
    return None


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_too_old_a_python_gets_one_clear_sentence(version: str) -> None:
    python = old_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")

    told = subprocess.run(
        [python, str(SCRIPT), "start"], capture_output=True, text=True, check=False
    )

    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert "KSI needs Python 3.11 or newer" in told.stderr


def test_the_script_can_be_read_by_the_oldest_python_that_is_to_be_told() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_a_python_without_ensurepip_gets_one_clear_sentence(
    checkout: Checkout, tmp_path: Path
) -> None:
    # What Debian has without its package python3-venv: a whole Python, but for this module.
    library = f"lib/python3.{sys.version_info[1]}"
    (tmp_path / "python" / library).mkdir(parents=True)
    for entry in (Path(sys.base_prefix) / library).iterdir():
        if entry.name not in ("ensurepip", "site-packages"):
            (tmp_path / "python" / library / entry.name).symlink_to(entry)
    (tmp_path / "python" / "bin").mkdir()
    shutil.copy2(base_python(), tmp_path / "python" / "bin" / "python3")
    checkout.environ["PATH"] = f"{tmp_path / 'python' / 'bin'}:/usr/bin:/bin"

    told = checkout.run("start")

    assert told.returncode == 1
    assert "this Python has no ensurepip module: install it" in told.stderr
    assert "or put uv on the PATH" in told.stderr


def test_among_installed_packages_it_hands_over_to_the_python_that_runs_it(
    checkout: Checkout,
) -> None:
    (checkout.root / "pyproject.toml").unlink()
    line = [sys.executable, str(checkout.root / "daemon_control.py"), "status", "--json"]

    done = subprocess.run(line, env=checkout.environ, capture_output=True, check=False)

    assert done.returncode == 3
    assert json.loads(done.stdout)["running"] is False
    assert not (checkout.root / ".venv").exists()
    assert checkout.run("test").returncode == 1


def test_the_lock_is_held_until_the_last_of_its_programs_has_ended(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    # What a step leaves behind, as an installer does that outlives a killed bootstrap.
    read, write = os.pipe()
    monkeypatch.setattr(bootstrap.subprocess, "DEVNULL", read)

    with bootstrap.lock() as handle, (tmp_path / "lock").open("rb") as other:
        script = (
            "import os, sys\n"
            "if not os.fork():\n"
            "    os.dup2(os.open(os.devnull, os.O_RDWR), 1); os.dup2(1, 2)\n"
            "    sys.stdin.read()\n"
        )
        bootstrap.run("leaving a child", handle, sys.executable, "-c", script)
        os.close(handle)
        os.close(read)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(write)
        fcntl.flock(other, fcntl.LOCK_EX)
        os.dup2(other.fileno(), handle)  # which the end of the block closes


def run_checks(
    bootstrap: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *words: str,
) -> tuple[int, str, str]:
    """Run ``test`` with checks of which one fails, in this Python's environment."""
    checks = (
        ("good", ("-c", "print('fine')")),
        ("bad", ("-c", "raise SystemExit(1)")),
        ("pytest", ("-c", "import sys; print('1 passed', sys.argv[1:])")),
    )
    monkeypatch.setattr(bootstrap, "CHECKS", checks)
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(bootstrap, "ensure_environment", lambda developing: None)
    code = bootstrap.main(["test", *words])
    return (code, *capfd.readouterr())


def test_every_check_runs_even_if_one_fails_and_pytest_has_the_last_word(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_checks(bootstrap, monkeypatch, capfd, "-k", "something")

    assert code == 1
    assert out.splitlines() == ["fine", "1 passed ['-k', 'something']"]
    assert err.splitlines() == ["== good", "== bad", "== failed so far: bad", "== pytest"]


def test_one_check_can_be_had_alone_and_all_as_json(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_checks(bootstrap, monkeypatch, capfd, "--only", "good")[:2] == (0, "fine\n")

    code, out, _ = run_checks(bootstrap, monkeypatch, capfd, "--json")

    assert code == 1
    told = {each["name"]: each["passed"] for each in json.loads(out)["checks"]}
    assert told == {"good": True, "bad": False, "pytest": True}


def test_the_script_needs_the_standard_library_alone_and_has_its_run_bit() -> None:
    tree = ast.parse(SCRIPT.read_text())
    imported = {name.name for n in ast.walk(tree) if isinstance(n, ast.Import) for name in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}

    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_text().startswith("#!/usr/bin/env python3\n")


def test_continuous_integration_runs_exactly_the_test_command() -> None:
    ran = ROOT / ".ci" / "run"
    if not ran.exists():
        pytest.skip("a source distribution has no .ci")

    assert ran.read_text().splitlines()[-1].endswith("python3 daemon_control.py test")
    assert os.access(ran, os.X_OK)

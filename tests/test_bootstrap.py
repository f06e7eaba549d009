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
from pathlib import Path
from types import ModuleType

import pytest

from ksi_cli.testing import INSTALL_TIMEOUT_S, Checkout

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "daemon_control.py"
OLD_VERSIONS = ("3.6", "3.7", "3.8", "3.9", "3.10")


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
def test_with_uv_it_is_made_once_mended_when_stale_and_made_anew_when_killed_or_moved(
    checkout: Checkout, tmp_path: Path
) -> None:
    if not checkout.use_uv():
        pytest.skip("uv is not installed here")
    checkout.copy_tree()
    (tmp_path / "msgspec.py").write_text("raise SystemExit('a stranger was imported')")
    checkout.environ["PYTHONPATH"] = str(tmp_path)
    checkout.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    killed = checkout.begin("status")
    assert killed.stderr is not None
    assert any("installing" in line for line in killed.stderr)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    both = [checkout.begin("status", "--json") for _ in range(2)]
    outputs = [each.communicate(timeout=INSTALL_TIMEOUT_S) for each in both]

    assert [each.returncode for each in both] == [3, 3], outputs
    assert sorted("Making" in err for _, err in outputs) == [False, True], outputs
    assert all(json.loads(out)["running"] is False for out, _ in outputs)
    assert list(checkout.root.glob("interfaces/ksi_cli/__pycache__/*.pyc")), "compiled each time"

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
    nowhere = "http://127.0.0.1:9/simple"  # where nothing listens
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": nowhere}

    started = checkout.run("start", "--json", **offline, PIP_EXTRA_INDEX_URL="", PIP_RETRIES="1")

    assert started.returncode == 1
    told = json.loads(started.stdout)["error"]["message"]
    assert "installing what it needs failed: where packages come from can't be reached" in told


@pytest.mark.parametrize(
    ("settings", "can_be_had", "works", "tools"),
    [
        ("", True, True, ["uv"]),
        ("global.extra-index-url='https://more.example'", True, True, ["uv"]),
        ("", True, False, ["uv", "pip"]),
        ("", False, True, ["pip"]),
        ("global.index-url='https://ours.example'", True, True, ["pip"]),
        (":env:.index-url='https://ours.example'", True, True, ["pip"]),
    ],
)
def test_uv_is_had_through_pip_where_it_asks_the_same_index_and_else_pip_installs(
    bootstrap: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    can_be_had: bool,
    works: bool,
    tools: list[str],
) -> None:
    used: list[str] = []

    def told(*command: str) -> str | None:
        return settings if "config" in command else ("uv 1.0" if can_be_had else None)

    def run(doing: str, handle: int, *command: str) -> None:
        used.append("uv" if command[0].endswith("/uv") else "pip")
        if used[-1] == "uv" and not works:
            raise bootstrap.Unusable("it did not work")

    monkeypatch.setattr(bootstrap, "uv", lambda: None)
    monkeypatch.setattr(bootstrap, "run_quietly", told)
    monkeypatch.setattr(bootstrap, "run", run)
    bootstrap.install(0, developing=False)

    assert used == tools


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
    shutil.copy2(
        Path(sys.base_prefix) / "bin" / Path(library).name, tmp_path / "python" / "bin" / "python3"
    )
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
    os.mkfifo(tmp_path / "fifo")

    with bootstrap.lock() as handle, (tmp_path / "lock").open("rb") as other:
        # What a step leaves behind, as an installer does that outlives a killed bootstrap.
        script = (
            "import os\n"
            "if not os.fork():\n"
            "    os.dup2(os.open(os.devnull, os.O_RDWR), 1); os.dup2(1, 2)\n"
            f"    open({str(tmp_path / 'fifo')!r}).read()\n"
        )
        bootstrap.run("leaving a child", handle, sys.executable, "-c", script)
        os.close(handle)
        # Opened here once the child has opened it, which ends when it is closed here.
        with (tmp_path / "fifo").open("w"), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

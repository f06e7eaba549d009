"""What tests of commands need: a real ``ksi`` in a world of its own, and what documents show of it.

``KsiCommand`` runs what is installed, ``Checkout`` a copy of the source by ``daemon_control.py``.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ksi_daemon import forks

__all__ = [
    "Block",
    "Checkout",
    "Finished",
    "KsiCommand",
    "blocks_of",
    "commands_of",
    "install_distribution",
]

COMMAND_TIMEOUT_S = 60.0
INSTALL_TIMEOUT_S = 240.0
MACHINE_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_", "UV_", "SSL_CERT_")


class Finished(msgspec.Struct, frozen=True):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return msgspec.json.decode(self.out)


class KsiCommand:
    """Runs ``ksi`` with a home, and nothing of this process's environment but the PATH.

    Args:
        home: ``KSI_HOME``.
        user_home: ``HOME``; the parent of no file of this user's.
        environ: More variables.
    """

    def __init__(
        self, home: Path, user_home: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.home = home
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(user_home),
            "KSI_HOME": str(home),
            "COLUMNS": "80",
            **(environ or {}),
        }

    def __call__(self, *words: str, stdin: str = "", **environ: str) -> Finished:
        """Run a command to its end."""
        environment = {**self.environ, **environ}
        done = forks.run("ksi_cli", words, env=environment, text=stdin, timeout_s=COMMAND_TIMEOUT_S)
        assert "Traceback" not in done.stderr, done.stderr
        return Finished(done.returncode, done.stdout, done.stderr)

    def begin(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Run a command beside the test."""
        defaults = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "encoding": "utf-8",
            "env": self.environ,
        }
        return subprocess.Popen(self.line(*words), **{**defaults, **options})

    def line(self, *words: str) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-P", "-m", "ksi_cli", *words]


def install_distribution(
    folder: Path, name: str, source: str, entry_points: Mapping[str, Mapping[str, str]]
) -> str:
    """Put a distribution of one module where ``PYTHONPATH`` finds it, as an installer would.

    Args:
        folder: What to put on ``PYTHONPATH``.
        name: The distribution and its module.
        source: The module's code.
        entry_points: By group, then by name.

    Returns:
        The folder, for ``PYTHONPATH``.
    """
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{point} = {value}" for point, value in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


class Checkout:
    """A copy of a source tree, used by somebody who has a Python, and whose home is empty.

    Args:
        tree: The tree.
        folder: Where the copy, the home and the programs on the ``PATH`` are put.
    """

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree = tree
        self.root = folder / "a checkout"  # with a space, as on a Mac
        self.user_home = folder / "home"
        self.home = self.user_home / ".ksi"
        for path in (self.root, self.user_home, folder / "bin"):
            path.mkdir()
        # The Python that the tests' own environment was made of.
        base_python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
        (folder / "bin" / "python3").symlink_to(base_python)
        self.environ = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.user_home)}
        # Where packages come from is the machine's affair.
        kept = {n: v for n, v in os.environ.items() if n.upper().startswith(MACHINE_VARIABLES)}
        self.environ |= kept

    def copy_tree(self) -> None:
        """Copy the tree as it stands now, without what git is told to ignore."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=self.tree,
            capture_output=True,
            check=False,
        )
        if listed.returncode:
            litter = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
            shutil.copytree(self.tree, self.root, ignore=litter, dirs_exist_ok=True)
            return
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (self.tree / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.tree / name, self.root / name)

    def line(self, *words: str) -> list[str]:
        """Return the command line of ``daemon_control.py``."""
        return ["python3", str(self.root / "daemon_control.py"), *words]

    def run(self, *words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Run ``daemon_control.py`` to its end."""
        done = subprocess.run(
            self.line(*words),
            env={**self.environ, **environ},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        """Run ``daemon_control.py`` beside the test, in a group of processes of its own."""
        return subprocess.Popen(
            self.line(*words),
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def use_uv(self) -> bool:
        """Put uv on the ``PATH``, and say whether there is one that works."""
        found = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if found is None:
            return False
        if subprocess.run([found, "-V"], capture_output=True, check=False).returncode:
            return False
        (Path(self.environ["PATH"].partition(":")[0]) / "uv").symlink_to(found)
        return True


class Block(msgspec.Struct, frozen=True):
    """A block of code in a document; ``file`` is named by a comment above it, or is empty."""

    file: str
    language: str
    text: str


_BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def blocks_of(document: Path) -> list[Block]:
    """Return the blocks of code in a document."""
    return [Block(*found) for found in _BLOCK.findall(document.read_text(encoding="utf-8"))]


def commands_of(session: str) -> list[tuple[str, str]]:
    """Return the commands of a shell session, each with the output that is shown."""
    found = []
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        found.append((command, output.strip()))
    return found

"""What tests of commands need: a real ``ksi`` in a world of its own, and plugins for it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Finished", "KsiCommand", "install_distribution"]

COMMAND_TIMEOUT_S = 60.0


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
        done = subprocess.run(
            self.line(*words),
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**self.environ, **environ},
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
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

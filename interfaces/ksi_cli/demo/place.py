"""The demo's own directory: nobody else's things are in it, and nothing is left of it."""

import fcntl
import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any, Final, Self

from ksi_client import Conflict, KsiError
from ksi_daemon.protocol.paths import home_directory

LOCK: Final = "demo.lock"  # what it holds is a demo's, and may be deleted
PLUGINS: Final = (
    "agents", "checkpoint", "completion", "journal", "memory", "models", "postgres", "system",
    "tools", "workflows",
)  # fmt: skip
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "daemon": {"plugins": PLUGINS},
    # Without a model for vectors, which would be fetched; and with patience on a slow machine.
    "memory": {"embedder": "none", "recall_timeout_s": 20.0},
    "tools": {"events": {"post_letter": {"event": "post:letter", "effects": "effectful"}}},
}


class Place:
    """``KSI_HOME/demo``: a home for a daemon, and what the demo needs beside it.

    Args:
        user_home: The user's own home, of which the models and their keys are borrowed.
    """

    def __init__(self, user_home: Path | None = None) -> None:
        self.user_home = user_home or home_directory()
        self.root = self.user_home / "demo"
        self.home = self.root / "home"
        self.documents = self.root / "documentation"
        self.box = self.root / "letters.txt"
        self.log = self.home / "log" / "daemon.log"
        self._made_home = False
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Make it this process's.

        Raises:
            Conflict: Another demo has it, or it is no demo's.
            KsiError: It can't be made.
        """
        try:
            self._make()
        except OSError as error:
            raise KsiError(
                f"the demo can't be in {self.root}: {error.strerror}; set KSI_HOME to a directory "
                "that you may write to"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def environ(self) -> dict[str, str]:
        """The variables of the demo's daemon: of KSI's own only what says how models are had."""
        kept = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith("KSI_") or name.startswith("KSI_MODELS_")
        }
        return {**kept, "KSI_HOME": str(self.home)}

    def prepare(self) -> None:
        """Write the settings, and have the user's keys at hand; a home that is left is deleted."""
        self.empty()
        self.home.mkdir(mode=_mode())
        tables = {**SETTINGS, **self._models()}
        self.home.joinpath("ksi.toml").write_text(as_toml(tables), encoding="utf-8")
        self.home.joinpath("ksi.toml").chmod(0o600)
        self.home.joinpath("keys").symlink_to(self.user_home / "keys")

    def empty(self) -> None:
        """Delete all but the lock."""
        elsewhere = self.home / "pg" / "elsewhere"  # where Postgres can't be in root's own home
        if elsewhere.is_symlink():
            shutil.rmtree(elsewhere.readlink(), ignore_errors=True)
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def remove(self) -> None:
        """Delete it, and the user's own home where it was made for this alone."""
        if self.root.exists():
            self.empty()
            shutil.rmtree(self.root)
        if self._made_home and not any(self.user_home.iterdir()):
            self.user_home.rmdir()

    def _make(self) -> None:
        if not self.user_home.exists():
            self.user_home.mkdir(mode=_mode(), parents=True)
            self._made_home = True
        self.root.mkdir(mode=_mode(), exist_ok=True)
        if not (self.root / LOCK).exists() and any(self.root.iterdir()):
            raise Conflict(
                f"{self.root} is there, and no demo made it; move it away, or set KSI_HOME"
            )
        while self._lock is None:
            self._lock = self._locked()

    def _locked(self) -> int | None:
        """Take the lock; ``None`` where it was deleted by the demo before in that moment."""
        self.root.mkdir(mode=_mode(), exist_ok=True)
        handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Conflict(f"another demo runs in {self.root}; end that one first") from None
        try:
            if os.path.samestat(os.fstat(handle), (self.root / LOCK).stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)
        return None

    def _models(self) -> dict[str, Any]:
        try:
            text = (self.user_home / "ksi.toml").read_text(encoding="utf-8")
            models = tomllib.loads(text).get("models")
        except (OSError, ValueError):
            return {}  # whoever starts the daemon of that home is told
        return {"models": models} if isinstance(models, dict) else {}


def as_toml(tables: dict[str, dict[str, Any]]) -> str:
    """Write tables as TOML."""
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{_value(key)} = {_value(each)}" for key, each in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str | bool | int | float):
        return json.dumps(value).replace("\x7f", "\\u007f")  # JSON's are TOML's but for that
    return json.dumps(str(value))


def _mode() -> int:
    """As root, Postgres runs as another user, who must pass through."""
    return 0o711 if os.getuid() == 0 else 0o700

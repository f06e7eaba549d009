"""Where things of a server are in the home: the folder that it runs in, and the login with it."""

import contextlib
import shutil
from pathlib import Path
from typing import Final
from urllib.parse import quote

FOLDER: Final = "mcp"


def folder_of(home: Path, tenant: str, name: str) -> Path:
    """Return where a server's process runs."""
    return home / FOLDER / "servers" / _segment(tenant) / name


def login_of(home: Path, tenant: str, name: str) -> Path:
    """Return where the login with a server is kept."""
    return home / FOLDER / "logins" / _segment(tenant) / f"{name}.json"


def clear(home: Path, tenant: str, name: str) -> None:
    """Delete what there is of a server.

    Raises:
        OSError: It can't be deleted.
    """
    login_of(home, tenant, name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder_of(home, tenant, name))


def _segment(tenant: str) -> str:
    """Return a tenant's name as one part of a path, whatever it is."""
    return quote(tenant, safe="").replace(".", "%2E")

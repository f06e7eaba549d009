"""Tells one daemon's checkpoints from another's where several share a Postgres."""

import os
import secrets
from pathlib import Path

from ksi_daemon.protocol import InvalidData

FILE = "checkpoint-id"


def daemon_id(home: Path) -> str:
    """Return the id of the daemon of a home, made when it is first asked for.

    Raises:
        InvalidData: The file has something else in it.
    """
    file = home / FILE
    try:
        known = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return _made(file)
    if not known.isalnum() or len(known) > 64:
        raise InvalidData(f"{file} holds no id of a daemon: put it back, or delete it")
    return known


def _made(file: Path) -> str:
    """Make an id; the file is there with all of it, or not at all."""
    made = secrets.token_hex(8)
    draft = file.with_name(f".{file.name}-{made}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(f"{made}\n")
        stream.flush()
        os.fsync(handle)
    draft.replace(file)
    return made

"""Where a daemon keeps its things: one directory, one socket."""

import hashlib
import os
from pathlib import Path
from typing import Final

from ksi_daemon.protocol.errors import Denied

# sun_path holds 108 bytes on Linux and 104 on macOS and the BSDs, a closing zero included.
MAX_SOCKET_PATH_BYTES: Final = 103

# Not TMPDIR: the daemon and its clients may have been started with different ones.
SHORT_ROOT: Final = "/tmp"


def home_directory() -> Path:
    """Return ``KSI_HOME``, or ``~/.ksi``; always absolute, without looking whether it exists."""
    named = os.environ.get("KSI_HOME")
    return Path(named).expanduser().absolute() if named else Path.home() / ".ksi"


def socket_path(home: Path) -> Path:
    """Return where the daemon of a home listens.

    That is ``run/ksi.sock`` in the home, or a short path that is made of the user and the home's
    own path where the other is too long for a socket. ``KSI_SOCKET`` overrides both.
    """
    named = os.environ.get("KSI_SOCKET")
    if named:
        return Path(named).expanduser().absolute()
    usual = home / "run" / "ksi.sock"
    if len(os.fsencode(usual)) <= MAX_SOCKET_PATH_BYTES:
        return usual
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(SHORT_ROOT) / f"ksi-{os.getuid()}-{digest}" / "ksi.sock"


def check_owner(directory: Path) -> None:
    """Make sure that nobody else could have put a socket into a directory.

    Raises:
        Denied: The directory belongs to another user.
    """
    owner = directory.stat().st_uid
    if owner not in {os.getuid(), 0}:
        message = f"{directory} belongs to user {owner}; set KSI_HOME to a directory of your own"
        raise Denied(message)

"""Unix sockets: binding one safely, and asking who is at the other end."""

import asyncio
import os
import socket
import stat
import struct
import sys
from pathlib import Path

from ksi_daemon.protocol import Conflict, InvalidData


def bind(path: Path) -> socket.socket:
    """Bind a socket that only this user can open, in the place of one whose daemon died.

    Raises:
        Conflict: Something else is at the path, or a live daemon is behind it.
        InvalidData: No socket can be made there; its path may be too long.
    """
    clear_the_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise InvalidData(f"{path}: {error}; set KSI_SOCKET to another path") from error
    finally:
        os.umask(umask)
    return listener


def peer_of(transport: asyncio.BaseTransport) -> tuple[int | None, int | None]:
    """Return the user and the process that connected a Unix socket, as far as anybody can say."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None, None
    if sys.platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        return uid, pid
    # macOS and the BSDs: struct xucred of LOCAL_PEERCRED (1) at SOL_LOCAL (0).
    credentials = sock.getsockopt(0, 1, struct.calcsize("2I"))
    return int(struct.unpack("2I", credentials)[1]), None


def clear_the_way(path: Path) -> None:
    """Remove the socket of a daemon that died; touch nothing else.

    Raises:
        Conflict: A live daemon answers there, or it is no socket, or not ours.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Conflict(f"{path} is in the way: it is no socket; move it, or set KSI_SOCKET")
    if found.st_uid != os.getuid():
        raise Conflict(f"{path} belongs to user {found.st_uid}; set KSI_SOCKET to another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:  # too busy to accept, or not to be opened: not dead
            raise Conflict(f"a daemon listens on {path} already: {error}") from error
    raise Conflict(f"a daemon listens on {path} already")

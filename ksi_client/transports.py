"""How a client reaches its daemon: over the daemon's socket, or within one process."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ksi_daemon.protocol import Unavailable
from ksi_daemon.protocol.paths import check_owner, home_directory, socket_path
from ksi_daemon.protocol.peer import Peer


class Transport(Protocol):
    """Makes connections."""

    @property
    def reconnects(self) -> bool:
        """Whether a lost connection can be made again."""

    async def connect(self, make_peer: Callable[[], Peer]) -> None:
        """Connect a new peer.

        Raises:
            Unavailable: Nobody listens.
        """


class UnixTransport:
    """Connects to a daemon's socket: ``KSI_SOCKET``, or the one in ``KSI_HOME``, unless given."""

    reconnects = True

    def __init__(self, path: Path | str | None = None) -> None:
        self.path: Path = Path(path) if path is not None else socket_path(home_directory())

    async def connect(self, make_peer: Callable[[], Peer]) -> None:
        """Connect a new peer to the socket."""
        loop = asyncio.get_running_loop()
        try:
            check_owner(self.path.parent)
            await loop.create_unix_connection(make_peer, str(self.path))
        except OSError as error:
            raise no_daemon(self.path, error) from error


class Adopting(Protocol):
    """A daemon in this process."""

    async def adopt(self, sock: socket.socket) -> Any:
        """Serve a connected socket."""


class LocalTransport:
    """Connects to a daemon that runs in this process and on this loop, as its owner."""

    reconnects = True

    def __init__(self, daemon: Adopting) -> None:
        self._daemon = daemon

    async def connect(self, make_peer: Callable[[], Peer]) -> None:
        """Connect a new peer through a pair of sockets that nobody else sees."""
        ours, theirs = socket.socketpair()
        try:
            await self._daemon.adopt(theirs)
        except BaseException:
            ours.close()
            raise
        await asyncio.get_running_loop().create_connection(make_peer, sock=ours)


class SocketTransport:
    """Uses a socket that is connected already, such as one inherited from a parent, once."""

    reconnects = False

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def connect(self, make_peer: Callable[[], Peer]) -> None:
        """Connect a new peer through the socket."""
        await asyncio.get_running_loop().create_connection(make_peer, sock=self._socket)


def no_daemon(path: Path, error: OSError) -> Unavailable:
    """Make the error for a socket where nobody answers."""
    if isinstance(error, PermissionError):
        message = f"{path} belongs to another user; set KSI_HOME to a home of your own"
    else:
        message = f"no daemon listens on {path}; start it with: ksi start"
    return Unavailable(message, retry_after_s=0.5)

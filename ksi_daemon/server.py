"""The socket server: listens, keeps its connections, and watches over what they have started."""

import asyncio
import socket
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ksi_daemon import sockets
from ksi_daemon.connection import Connection
from ksi_daemon.event_system import declarations_of
from ksi_daemon.hub import Hub
from ksi_daemon.principals import Principal
from ksi_daemon.protocol import Busy, Event, InvalidData, TimedOut, Unavailable
from ksi_daemon.routes import route_for


class Server:
    """Everything that is connected to the daemon.

    Args:
        hub: What the connections share.
        max_connections: How many there may be.
    """

    def __init__(self, hub: Hub, *, max_connections: int = 5000) -> None:
        self.hub = hub
        self.connections: set[Connection] = set()
        self._max_connections = max_connections
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None
        hub.router.changed.append(self._forget_routes)
        hub.tokens.revoked.append(self._close_revoked)
        for declaration, function in declarations_of(Connection):
            route = route_for("router", declaration, function)
            route.connected, route.base = True, _needs_connection
            hub.router.add_route(route)

    def _make_connection(self, principal: Principal | None = None) -> Connection:
        return Connection(self.hub, self._connected, self.connections.discard, principal)

    async def listen(self, path: Path) -> None:
        """Bind the socket and begin to accept.

        Raises:
            Conflict: Something else is at the path, or a live daemon is behind it.
        """
        listener = sockets.bind(path)
        self._path = path
        self._listener = await asyncio.get_running_loop().create_unix_server(
            self._make_connection, sock=listener, backlog=1024
        )

    async def adopt(self, sock: socket.socket, principal: Principal) -> Connection:
        """Take on a connected socket, in the name of a principal that is known already.

        Raises:
            Unavailable: The daemon has stopped.
        """
        if self._listener is None:
            sock.close()
            raise Unavailable("the daemon has stopped")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: self._make_connection(principal), sock=sock
        )
        return connection

    def close(self) -> None:
        """Accept no more, and close every connection once what is queued is sent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.close()

    def _connected(self, connection: Connection) -> None:
        self.connections.add(connection)
        if len(self.connections) > self._max_connections:
            bound = self._max_connections
            full = Busy(f"{bound} connections are open (max_connections)", retry_after_s=1.0)
            connection.fail(UNSET, full)
            connection.close()

    def tick(self) -> None:
        """Stop what has taken too long; called at every beat, so that requests need no timers."""
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            connection.check_gone()
            for serving in list(connection.serving.values()):
                if serving.deadline is not None and serving.deadline <= now:
                    serving.stop(TimedOut(f"{serving.name} took too long (request_timeout_s)"))

    @property
    def in_flight(self) -> int:
        """How many requests are being answered."""
        return sum(len(connection.serving) for connection in self.connections)

    def running_tasks(self) -> set[asyncio.Task[Any]]:
        """List the tasks of all requests that are being answered."""
        tasks: set[asyncio.Task[Any]] = self.hub.ledger.running_tasks()
        for connection in self.connections:
            tasks |= connection.running_tasks()
        return tasks

    def drain(self) -> None:
        """Take no new requests but the daemon's own."""
        self.hub.draining = True
        self._forget_routes()

    def stop_requests(self) -> None:
        """Stop every request that still runs."""
        for connection in self.connections:
            connection.stop_serving(Unavailable("the daemon is shutting down", retry_after_s=1.0))
        for task in self.hub.ledger.running_tasks():
            task.cancel()

    async def end_requests(self, timeout_s: float) -> None:
        """Stop every request that still runs, and give each ``timeout_s`` to clean up."""
        self.stop_requests()
        running = self.running_tasks()
        if running:
            await asyncio.wait(running, timeout=timeout_s)

    def _forget_routes(self) -> None:
        for connection in self.connections:
            connection.forget_routes()

    def _close_revoked(self, token_id: str) -> None:
        for connection in list(self.connections):
            if connection.token_id == token_id:
                connection.close()


async def _needs_connection(event: Event) -> Any:
    raise InvalidData(f"{event.name} belongs to a connection: send it over one")

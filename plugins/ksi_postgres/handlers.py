"""Answers ``postgres:*`` and tells of the store's health."""

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import event_contributor, event_handler
from ksi_postgres import events as e
from ksi_postgres.database import Database
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import shown
from ksi_postgres.reader import Reader
from ksi_system.events import HealthCheck, HealthChecked


class Postgres:
    """Looks at the store and tells what it sees."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        reader: Reader,
        server: EmbeddedServer | None,
        version: str,
    ) -> None:
        self._bus = bus
        self._database = database
        self._reader = reader
        self._server = server
        self._version = version
        database.changed.append(self._changed)

    @event_handler("postgres:status")
    def status(self, request: e.PostgresStatus) -> e.PostgresStatusReport:
        """Tell where the store is and whether it answers."""
        database, server = self._database, self._server
        connections, idle = database.pool_sizes()
        return e.PostgresStatusReport(
            embedded=server is not None,
            where=shown(database.logins.app) if server is None else str(server.place.root),
            version=self._version,
            up=database.is_up,
            why_down=None if database.is_up else database.why_down,
            sql_problem=self._reader.problem,
            pool_connections=connections,
            pool_idle=idle,
            pid=None if server is None else server.pid,
        )

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Say whether Postgres answers."""
        if self._database.is_up:
            return HealthChecked(health="ok")
        return HealthChecked(
            health="degraded", why=f"Postgres can't be reached: {self._database.why_down}"
        )

    def _changed(self, is_up: bool) -> None:
        if is_up:
            self._bus.publish("postgres:connected", e.PostgresConnected())
        else:
            self._bus.publish("postgres:lost", e.PostgresLost(why=self._database.why_down))

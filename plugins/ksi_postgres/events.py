"""The payloads of ``postgres:*``."""

from msgspec import Struct


class PostgresStatus(Struct, frozen=True, kw_only=True):
    """Ask where the store is and whether it answers."""


class PostgresStatusReport(Struct, frozen=True, kw_only=True):
    """Where the store is and how it fares.

    Attributes:
        embedded: Whether the daemon runs it.
        where: Its URL without the password, or its folder.
        version: Of Postgres.
        up: Whether it answered when it was last looked at.
        why_down: Why not.
        sql_problem: Why queries of people and agents are off, if they are.
        pool_connections: Connections of the pool that are open.
        pool_idle: Those of them that do nothing.
        pid: Of the embedded server.
    """

    embedded: bool
    where: str
    version: str
    up: bool
    why_down: str | None = None
    sql_problem: str | None = None
    pool_connections: int = 0
    pool_idle: int = 0
    pid: int | None = None


class PostgresConnected(Struct, frozen=True, kw_only=True):
    """Published when Postgres answers again after it was away."""


class PostgresLost(Struct, frozen=True, kw_only=True):
    """Published when Postgres has gone; events that need it are answered with `unavailable`."""

    why: str

"""The settings of the store."""

from typing import Annotated

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive, Seconds, Secret, variable


class PostgresSettings(Struct, frozen=True, kw_only=True):
    """The section ``[postgres]``.

    Attributes:
        url: Where Postgres is: ``postgresql://user:password@host:port/database``. Without it the
            daemon runs one of its own, in ``<home>/pg``.
        direct_url: The same Postgres past the pooler, where ``url`` leads to one in transaction
            mode: for migrations, and for what has to keep a session.
        reader_url: The login of ``ksi_reader``, for queries that people and agents write; without
            it they are off, unless the Postgres is embedded.
        data_folder: Where the embedded Postgres has its files, if not in ``<home>/pg``.
        run_as: The user that the embedded Postgres runs as where the daemon is root, by name or
            number; the first that exists of ``postgres`` and ``nobody`` unless given.
        pool_connections: Connections that the daemon's own queries share.
        reader_connections: Connections that the queries of people and agents share.
        max_connections: Connections that the embedded Postgres allows.
        shared_buffers_mb: Memory that the embedded Postgres keeps pages in; 0 is a thirty-second of
            what there is, from 32 to 512.
        connect_timeout_s: How long making a connection may take.
        acquire_timeout_s: How long a query may wait for a connection of the pool.
        query_timeout_s: How long a query may take unless its caller says so; 0 is for ever.
        retry_first_s: How long after a lost connection the next attempt is made; it doubles.
        retry_max_s: The longest time between attempts.
        start_timeout_s: How long to wait for a Postgres that starts or recovers from a crash.
        stop_timeout_s: How long the embedded Postgres may take to stop in good order.
        read_timeout_s: How long a query of people and agents may take.
        read_max_rows: How many rows such a query returns at most.
    """

    url: Annotated[Secret, variable("KSI_DATABASE_URL")] = ""
    direct_url: Annotated[Secret, variable("KSI_DATABASE_DIRECT_URL")] = ""
    reader_url: Annotated[Secret, variable("KSI_DATABASE_READER_URL")] = ""
    data_folder: str = ""
    run_as: str = ""
    pool_connections: Positive = 8
    reader_connections: Positive = 2
    max_connections: Annotated[int, Meta(ge=20)] = 60
    shared_buffers_mb: Annotated[int, Meta(ge=0)] = 0
    connect_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    acquire_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    query_timeout_s: Seconds = 60.0
    retry_first_s: Annotated[float, Meta(gt=0)] = 0.1
    retry_max_s: Annotated[float, Meta(gt=0)] = 5.0
    start_timeout_s: Annotated[float, Meta(gt=0)] = 100.0
    stop_timeout_s: Annotated[float, Meta(gt=0)] = 8.0
    read_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    read_max_rows: Positive = 1000

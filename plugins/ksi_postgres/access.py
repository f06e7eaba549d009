"""Reaches the store from a command, whether the daemon is up or down."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from msgspec import Struct

from ksi_daemon.home import Home
from ksi_daemon.protocol import Conflict, NotFound, Unavailable
from ksi_daemon.settings import Settings
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.errors import told_of
from ksi_postgres.logins import DATABASE, check_url, shown, socket_url, with_database
from ksi_postgres.place import SUPERUSER, Place
from ksi_postgres.queries import load_queries
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.store import embedded_folder

CONNECT_TIMEOUT_S: Final = 10.0
MAINTENANCE: Final = "postgres"  # the database that one is in while another is made or renamed
ADMIN: Final = load_queries("ksi_postgres", "admin.sql")


class Store(Struct, frozen=True, kw_only=True):
    """The store of a home.

    Attributes:
        url: The login that may become ``ksi_owner``, with its password; never show it.
        folder: Where the embedded server is; ``None`` where the Postgres is somebody else's.
        daemon_pid: The daemon that uses it, if one of this home does.
        settings: The section ``[postgres]``.
    """

    url: str
    folder: str | None
    daemon_pid: int | None
    settings: PostgresSettings

    @property
    def database(self) -> str:
        """The name of the database."""
        return DATABASE if self.folder else self.url.partition("?")[0].rpartition("/")[2]

    @property
    def where(self) -> str:
        """Where it is, as it may be shown."""
        return self.folder or shown(self.url)


def read_postgres_settings(home: Home) -> PostgresSettings:
    """Read the section ``[postgres]`` of a home, as its daemon would."""
    return Settings(home.root).section("postgres", PostgresSettings)


@asynccontextmanager
async def opened(
    home: Home, *, daemon_down: str = "", create: bool = False
) -> AsyncIterator[Store]:
    """Reach a home's store: the daemon's, or one that runs for the length of the block.

    Args:
        home: Whose store.
        daemon_down: What can't be done while the daemon runs; nothing, unless given.
        create: Whether to make a database where there is none.

    Raises:
        Conflict: The daemon runs and must not.
        NotFound: There is no database yet.
    """
    settings = read_postgres_settings(home)
    home.prepare()
    pid = home.running_pid()
    if pid is not None and daemon_down:
        raise Conflict(f"{daemon_down} while the daemon runs (pid {pid}); first: ksi stop")
    if settings.url:
        url = check_url(settings.direct_url or settings.url, "postgres.url")
        with _locked(home) if daemon_down else contextlib.nullcontext():
            yield Store(url=url, folder=None, daemon_pid=pid, settings=settings)
        return
    folder = embedded_folder(home.root, settings)
    if pid is not None:
        place = Place(folder, settings.run_as)
        yield _embedded(place, place.passwords(), pid, settings)
        return
    with _locked(home):
        server = EmbeddedServer(folder, settings)
        if not create and not server.place.data.exists():
            raise NotFound(f"there is no database in {folder} yet; make it: ksi db migrate")
        try:
            await server.start()
            yield _embedded(server.place, server.passwords, None, settings)
        finally:
            await server.stop()


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[None]:
    """Keep a daemon from starting meanwhile."""
    handle = home.lock()
    try:
        yield
    finally:
        os.close(handle)


def _embedded(
    place: Place, passwords: dict[str, str], pid: int | None, settings: PostgresSettings
) -> Store:
    if SUPERUSER not in passwords:
        raise Unavailable(
            f"the daemon's Postgres in {place.root} is not ready yet; or the daemon uses that of a "
            "KSI_DATABASE_URL: set it here, too",
            retry_after_s=1.0,
        )
    url = socket_url(SUPERUSER, passwords[SUPERUSER], host=str(place.socket_folder))
    return Store(url=url, folder=str(place.root), daemon_pid=pid, settings=settings)


@asynccontextmanager
async def connected(
    store: Store, database: str | None = None, *, as_owner: bool = False
) -> AsyncIterator[Any]:
    """Connect to the store.

    Args:
        store: Which.
        database: Another database of the same server.
        as_owner: Whether to become the owner, who sees every tenant, unless the login does.

    Raises:
        Unavailable: It can't be reached.
    """
    url = with_database(store.url, database) if database else store.url
    options = {"application_name": "ksi db"}
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, server_settings=options)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unavailable(f"Postgres ({store.where}) can't be reached: {told_of(error)}") from error
    try:
        if as_owner and not await connection.fetchval(ADMIN["sees_all"]):
            await connection.execute(ADMIN["become_owner"])
        yield connection
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)

"""Makes the store of a daemon: the embedded server or the one of the settings, made ready."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import asyncpg
from msgspec import Struct
from msgspec.structs import replace

from ksi_daemon.protocol import Denied, InvalidData, KsiError, Unavailable
from ksi_postgres import setup
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.errors import told_of
from ksi_postgres.logins import APP, DATABASE, READER, Logins, check_url, shown, socket_url
from ksi_postgres.migrations import SQL, Migration, migrate
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings

log = logging.getLogger(__name__)

TELL_EVERY_S: Final = 5.0
# These do not go by waiting; https://www.postgresql.org/docs/current/errcodes-appendix.html
LASTING: Final = ("28", "3D", "42", "0A")


class Ready(Struct, frozen=True, kw_only=True):
    """A database that is ready for use.

    Attributes:
        logins: As whom to connect.
        role: What connections have to become first, if anything.
        reader_problem: Why queries of people and agents are off, if they are.
        version: Of Postgres.
        migrated: How many migrations were applied.
    """

    logins: Logins
    role: str | None
    reader_problem: str | None
    version: str
    migrated: int


def embedded_folder(home: Path, settings: PostgresSettings) -> Path:
    """Return where the embedded server of a home has its files, or shall have them."""
    named = settings.data_folder
    return Path(named).expanduser().absolute() if named else home / "pg"


def external_logins(settings: PostgresSettings) -> Logins:
    """Return the logins that the settings name.

    Raises:
        InvalidData: One is no URL.
    """
    app = check_url(settings.url, "postgres.url (KSI_DATABASE_URL)")
    direct = check_url(settings.direct_url or app, "postgres.direct_url")
    reader = settings.reader_url and check_url(settings.reader_url, "postgres.reader_url")
    return Logins(app=app, direct=direct, admin=direct, reader=reader or None)


def embedded_logins(server: EmbeddedServer) -> Logins:
    """Return the logins of a server that this daemon runs."""

    def url(role: str) -> str:
        return socket_url(role, server.passwords[role], host=server.host, port=server.port)

    return Logins(app=url(APP), direct=url(APP), admin=url(SUPERUSER), reader=url(READER))


async def create_database(server: EmbeddedServer) -> None:
    """Make the daemon's database on a new server; one that is there is left as it is."""
    logins = embedded_logins(server)
    maintenance = logins.admin.replace(f"/{DATABASE}?", "/postgres?")
    connection = await asyncpg.connect(maintenance)
    try:
        if not await connection.fetchval(SQL["has_database"]):
            await connection.execute(SQL["create_database"])
    finally:
        await connection.close()


async def make_ready(
    logins: Logins,
    settings: PostgresSettings,
    migrations: Sequence[Migration],
    *,
    passwords: dict[str, str] | None = None,
) -> Ready:
    """Wait until Postgres answers; make roles, extensions and schema what they have to be.

    Args:
        logins: As whom to connect.
        settings: How long to wait.
        migrations: What the schema is made of.
        passwords: Of roles that are to be able to log in, for a server of our own.

    Raises:
        Denied: The login was refused or lacks a right.
        InvalidData: There is no such database, or Postgres is not fit.
        Unavailable: It did not answer in time.
    """
    connection = await _connect(logins.admin, settings)
    try:
        standing = await setup.prepare(connection)
        for role, password in (passwords or {}).items():
            if not await connection.fetchval(SQL["may_log_in"], role):
                await setup.set_passwords(connection, {role: password})
        migrated = await migrate(connection, migrations)
    finally:
        await connection.close(timeout=settings.connect_timeout_s)
    embedded = passwords is not None
    problem = standing.reader_problem
    if problem is None and logins.reader is None:
        problem = "there is no login for them: set postgres.reader_url"
    return Ready(
        logins=logins if problem is None else replace(logins, reader=None),
        role=None if embedded else standing.role,
        reader_problem=problem,
        version=standing.version,
        migrated=migrated,
    )


async def _connect(url: str, settings: PostgresSettings) -> asyncpg.Connection:
    """Connect, waiting for a Postgres that is not there yet, up to ``start_timeout_s``."""
    began, told_at = time.monotonic(), 0.0
    delay = settings.retry_first_s
    while True:
        try:
            return await asyncpg.connect(
                url,
                timeout=settings.connect_timeout_s,
                # A migration that a crash undoes is applied again, and no later commit is synced
                # before it.
                server_settings={"application_name": "ksi setup", "synchronous_commit": "off"},
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            _raise_if_lasting(url, error)
            waited = time.monotonic() - began
            if waited + delay > settings.start_timeout_s:
                message = f"Postgres did not answer in {settings.start_timeout_s} s: "
                raise Unavailable(message + told_of(error), retry_after_s=1.0) from error
            if waited - told_at >= TELL_EVERY_S:
                told_at = waited
                log.warning(
                    "waiting for Postgres", extra={"url": shown(url), "error": told_of(error)}
                )
        await asyncio.sleep(delay)
        delay = min(delay * 2, settings.retry_max_s)


def _raise_if_lasting(url: str, error: Exception) -> None:
    state = getattr(error, "sqlstate", None) or ""
    where = shown(url)
    kind: Callable[[str], KsiError]
    if state.startswith("28"):
        kind, mend = Denied, "mend the user or the password of KSI_DATABASE_URL"
    elif state == "3D000":
        kind, mend = InvalidData, "make it with CREATE DATABASE, or mend KSI_DATABASE_URL"
    elif state.startswith(LASTING) or isinstance(error, asyncpg.InterfaceError):
        kind, mend = InvalidData, "mend KSI_DATABASE_URL"
    else:
        return
    raise kind(f"Postgres at {where} refuses: {told_of(error)}; {mend}") from error

"""Finds the migrations of all plugins and applies those that are missing."""

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import asyncpg
from msgspec import Struct

from ksi_daemon import installed
from ksi_daemon.protocol import Conflict, Failed, InvalidData
from ksi_postgres.errors import told_of, translated
from ksi_postgres.queries import load_queries

log = logging.getLogger(__name__)

SQL: Final = load_queries(__package__)
STORE: Final = "postgres"
_FILE: Final = re.compile(r"(\d{4})_([a-z][a-z0-9_]*)\.sql")
_PLUGIN: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
RESERVED: Final = ("read",)  # its schema would be that of the documented views


class Migration(Struct, frozen=True):
    """One step of a plugin's schema.

    Attributes:
        plugin: Whose schema it changes.
        number: From 1, without a gap.
        name: What it does, as its file says.
        sql: Its text, run in one transaction.
        version: Of the distribution that brought it.
    """

    plugin: str
    number: int
    name: str
    sql: str
    version: str

    @property
    def checksum(self) -> str:
        """The fingerprint of its text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def title(self) -> str:
        """How people call it."""
        return f"{self.plugin} {self.number:04}_{self.name}"


class Applied(Struct, frozen=True):
    """A migration that the database has."""

    plugin: str
    number: int
    name: str
    checksum: str
    version: str
    applied_at: Any

    @property
    def title(self) -> str:
        """How people call it."""
        return f"{self.plugin} {self.number:04}_{self.name}"


# -- finding -------------------------------------------------------------------------------------


def own_root() -> Path:
    """Return where the migrations of this distribution's plugins are.

    A wheel has them in this package; in a checkout they stand beside ``plugins``.
    """
    shipped = Path(str(files("ksi_postgres") / "_sql"))
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "sql"


def installed_plugins() -> dict[str, EntryPoint]:
    """Return the entry points of all plugins by name."""
    return {point.name: point for point in installed.installed_plugins()}


def in_order(requires: Mapping[str, Sequence[str]]) -> list[str]:
    """Return plugins so that none comes before one that it requires; the store is the first."""
    ordered: list[str] = []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in ordered or name in trail or name not in requires:
            return
        for required in sorted(requires[name]):
            visit(required, (*trail, name))
        ordered.append(name)

    for name in (STORE, *sorted(requires)):
        visit(name, ())
    return ordered


def find_migrations(plugins: Iterable[str]) -> list[Migration]:
    """Return the migrations of these plugins, in the order of the names that are given.

    One of ours has them in ``sql/<plugin>``, anybody else's in the folder ``sql`` of its package.

    Raises:
        InvalidData: A file has a wrong name, or a number is missing.
    """
    points = installed_plugins()
    found: list[Migration] = []
    for plugin in plugins:
        point = points.get(plugin)
        version = installed.version_of(point.dist if point is not None else None)
        folder = _folder(plugin, point)
        if folder is not None and folder.is_dir():
            found.extend(read_folder(plugin, folder, version))
    return found


def _folder(plugin: str, point: EntryPoint | None) -> Path | None:
    own = own_root() / plugin
    if point is None or own.is_dir():
        return own
    package = find_spec(point.module.partition(".")[0])
    places = package.submodule_search_locations if package is not None else None
    return Path(next(iter(places))) / "sql" if places else None


def read_folder(plugin: str, folder: Path, version: str) -> list[Migration]:
    """Read the files ``NNNN_name.sql`` of a folder, in their order.

    Raises:
        InvalidData: A file has a wrong name, or a number is missing or there twice.
    """
    if not _PLUGIN.fullmatch(plugin) or plugin in RESERVED:
        raise InvalidData(f"a plugin with migrations is named like a schema, not {plugin!r}")
    migrations = []
    for number, file in enumerate(sorted(folder.glob("*.sql")), start=1):
        match = _FILE.fullmatch(file.name)
        if match is None:
            raise InvalidData(f"{file}: a migration is named NNNN_what_it_does.sql")
        if int(match[1]) != number:
            raise InvalidData(f"{file}: the next number is {number:04}")
        text = file.read_text(encoding="utf-8")
        migrations.append(Migration(plugin, number, match[2], text, version))
    return migrations


# -- applying ------------------------------------------------------------------------------------


async def read_applied(connection: asyncpg.Connection) -> list[Applied]:
    """List what was applied to the database."""
    return [Applied(**row) for row in await connection.fetch(SQL["applied"])]


def pending(known: Sequence[Migration], applied: Sequence[Applied]) -> list[Migration]:
    """Return what is still to be applied.

    Raises:
        Conflict: The database is newer than the code, or a migration has changed since.
    """
    done = {(each.plugin, each.number): each for each in applied}
    plugins = {migration.plugin for migration in known}
    codes = {(each.plugin, each.number) for each in known}
    for each in applied:
        if each.plugin in plugins and (each.plugin, each.number) not in codes:
            version = f" {each.version}" if each.version else ""
            raise Conflict(
                f"the database is newer than this code: it has {each.title}, which came with "
                f"version{version}; install that version or a later one"
            )
    for migration in known:
        before = done.get((migration.plugin, migration.number))
        if before is not None:
            _refuse_another(migration, before.checksum)
    return [each for each in known if (each.plugin, each.number) not in done]


def _refuse_another(migration: Migration, checksum: str) -> None:
    if checksum != migration.checksum:
        raise Conflict(
            f"{migration.title} has changed since it was applied: a change is a new migration; "
            "put back the file as it was"
        )


async def migrate(connection: asyncpg.Connection, known: Sequence[Migration]) -> int:
    """Apply what is missing, each in a transaction of its own, and return how many there were.

    Any number of daemons may do so at once: each migration is applied by one of them.

    Raises:
        Conflict: The database is newer than the code, or a migration has changed since.
        Failed: A migration failed; it was rolled back, and those before it stay.
    """
    waiting = pending(known, await read_applied(connection))
    for migration in waiting:
        try:
            await _apply(connection, migration)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            told = translated(error, lost=connection.is_closed())
            if told is not error:
                raise told from error
            raise Failed(_failure(migration, error)) from error
    await _presume(connection, {each.plugin for each in waiting} - {STORE})
    return len(waiting)


def _failure(migration: Migration, error: Exception) -> str:
    told = told_of(error)
    if isinstance(error, asyncpg.FeatureNotSupportedError) and "transaction commands" in told:
        told = "it ends its own transaction: take out its COMMIT or ROLLBACK"
    return f"the migration {migration.title} failed and was rolled back: {told}"


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    began = time.monotonic()
    async with connection.transaction():
        await connection.execute(SQL["lock_migrations"])
        found = await connection.fetchval(SQL["is_applied"], migration.plugin, migration.number)
        if found is not None:
            _refuse_another(migration, found)
            return
        await connection.execute("SET LOCAL ROLE ksi_owner")
        await _open_schema(connection, migration)
        await connection.execute(SQL["stage_migration"], migration.sql)
        await connection.execute(SQL["run_migration"])
        problems = await connection.fetch(SQL["breaches"], migration.plugin)
        if problems:
            listed = "; ".join(row["problem"] for row in problems)
            raise Failed(f"{migration.title} was rolled back: {listed}")
        await connection.execute(
            SQL["note_applied"],
            migration.plugin,
            migration.number,
            migration.name,
            migration.checksum,
            migration.version,
            time.monotonic() - began,
        )
    log.info("migrated", extra={"migration": migration.title})


async def _presume(connection: asyncpg.Connection, plugins: Iterable[str]) -> None:
    async with connection.transaction():
        await connection.execute("SET LOCAL ROLE ksi_owner")
        await connection.execute(SQL["presume"], sorted(plugins))


async def _open_schema(connection: asyncpg.Connection, migration: Migration) -> None:
    """Find the plugin's schema; the store's own is there before its functions are."""
    if migration.plugin == STORE:
        await connection.execute("SET LOCAL search_path = ksi_postgres, public, pg_temp")
    else:
        await connection.execute(SQL["open_schema"], migration.plugin)

"""Compares a database's schema with that of the plugins that are installed, and brings it up."""

from typing import Any, Final

from ksi_daemon.home import Home
from ksi_daemon.protocol import Conflict
from ksi_daemon.protocol.names import matches_any
from ksi_daemon.settings import DaemonSettings, Settings
from ksi_postgres import migrations, setup
from ksi_postgres.access import ADMIN, MAINTENANCE, Store, connected
from ksi_postgres.logins import DATABASE
from ksi_postgres.migrations import Migration
from ksi_postgres.reports import PluginSchema
from ksi_postgres.verification import Damage

MIGRATIONS_TABLE: Final = "ksi_postgres.migration"


def known_migrations(home: Home) -> list[Migration]:
    """Return the migrations that the daemon of a home would apply, in its order."""
    allowed = Settings(home.root).section("daemon", DaemonSettings).plugins
    points = migrations.installed_plugins()
    names = [name for name in points if matches_any(name, allowed)]
    found = migrations.find_migrations([migrations.STORE, *names])
    # Only these need be imported, to be asked what they require.
    requires = {each.plugin: _required_by(points.get(each.plugin)) for each in found}
    order = migrations.in_order(requires)
    return sorted(set(found), key=lambda each: (order.index(each.plugin), each.number))


def _required_by(point: Any) -> tuple[str, ...]:
    try:
        describe = getattr(point.load(), "ksi_plugin", None)
        required: tuple[str, ...] = () if describe is None else describe().requires
    except Exception:  # noqa: BLE001  whatever its import does: its schema is there all the same
        return ()
    return required


async def ensure_database(store: Store) -> None:
    """Make the database of an embedded server, where there is none."""
    if store.folder is None:
        return
    async with connected(store, MAINTENANCE) as connection:
        if not await connection.fetchval(ADMIN["has_database"], DATABASE):
            await connection.execute(await connection.fetchval(ADMIN["create_database"], DATABASE))


async def bring_up(
    home: Home, store: Store, database: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Make a database ready and apply what is missing; returns that, by plugin.

    Raises:
        Conflict: It is newer than the code, or a migration has changed since it was applied.
        Denied: The login lacks a right; the message has the command that mends it.
        Failed: A migration failed; it was rolled back, and those before it stay.
    """
    known = known_migrations(home)
    async with connected(store, database) as connection:
        await setup.prepare(connection)
        missing = migrations.pending(known, await migrations.read_applied(connection))
        await migrations.migrate(connection, known)
    applied: dict[str, tuple[str, ...]] = {}
    for each in missing:
        applied[each.plugin] = (*applied.get(each.plugin, ()), _file_of(each))
    return applied


def _file_of(migration: Migration | migrations.Applied) -> str:
    return f"{migration.number:04}_{migration.name}"


async def compare(home: Home, connection: Any) -> tuple[list[PluginSchema], list[str]]:
    """Tell how far each plugin's schema is, and what is wrong with them."""
    known = known_migrations(home)
    applied = await _read_applied(connection)
    done = {(each.plugin, each.number) for each in applied}
    names = sorted({each.plugin for each in known} | {each.plugin for each in applied})
    schemas = [
        PluginSchema(
            plugin=name,
            applied=sum(each.plugin == name for each in applied),
            pending=tuple(
                _file_of(each)
                for each in known
                if each.plugin == name and (each.plugin, each.number) not in done
            ),
        )
        for name in names
    ]
    try:
        migrations.pending(known, applied)
    except Conflict as error:
        return schemas, [error.message]
    return schemas, []


async def _read_applied(connection: Any) -> list[migrations.Applied]:
    if await connection.fetchval("SELECT to_regclass($1) IS NULL", MIGRATIONS_TABLE):
        return []  # nobody has been here yet
    return await migrations.read_applied(connection)


async def check(home: Home, connection: Any) -> tuple[int, list[Damage]]:
    """Compare what was applied with the files that it was read from; returns how many there are."""
    texts = {(each.plugin, each.number): each for each in known_migrations(home)}
    applied = await _read_applied(connection)
    damage = []
    for each in applied:
        own = texts.get((each.plugin, each.number))
        if own is not None and own.checksum != each.checksum:
            problem = "its file is not the one that was applied"
            damage.append(Damage(what=each.title, problem=problem))
        elif own is None and any(plugin == each.plugin for plugin, _ in texts):
            problem = f"this code has no such file: it came with version {each.version}"
            damage.append(Damage(what=each.title, problem=problem))
    return len(applied), damage

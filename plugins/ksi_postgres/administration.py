"""Does what the commands of the store ask for."""

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg

from ksi_daemon.home import Home
from ksi_daemon.protocol import Conflict, Denied
from ksi_postgres import dumps, schema, sizes, verification
from ksi_postgres.access import ADMIN, MAINTENANCE, Store, connected, opened
from ksi_postgres.errors import told_of
from ksi_postgres.logins import with_database
from ksi_postgres.migrations import SQL
from ksi_postgres.reports import (
    BackupReport,
    MigrateReport,
    RestoreReport,
    StatusReport,
    VerifyReport,
)
from ksi_postgres.sizes import SizeReport

Tell = Callable[[str], None]

BEFORE: Final = "ksi_before_restore"
OUTDATED: Final = "ksi_before_that"
RESTORING: Final = "ksi_restoring"


async def status(home: Home) -> StatusReport:
    """Look at the store."""
    async with opened(home) as store, connected(store) as connection:
        found = await connection.fetchrow(ADMIN["server"])
        schemas, problems = await schema.compare(home, connection)
        return StatusReport(
            where=store.where,
            embedded=store.folder is not None,
            run_by=run_by(store),
            version=found["version"],
            up_since=found["up_since"].isoformat(timespec="seconds"),
            size_bytes=found["size_bytes"],
            connections=found["connections"],
            max_connections=found["max_connections"],
            schema=tuple(schemas),
            problems=tuple(problems),
        )


def run_by(store: Store) -> str:
    """Say who runs the server."""
    if store.folder is None:
        return "somebody else"
    return f"the daemon (pid {store.daemon_pid})" if store.daemon_pid else "this command alone"


async def migrate(home: Home) -> MigrateReport:
    """Make the database if there is none, and bring its schema up."""
    async with opened(home, create=True) as store:
        await schema.ensure_database(store)
        return MigrateReport(applied=await schema.bring_up(home, store))


async def size(home: Home) -> SizeReport:
    """Look at what uses the space."""
    async with opened(home) as store, connected(store, as_owner=True) as connection:
        return await sizes.measure(connection)


async def backup(home: Home, file: Path, *, force: bool) -> BackupReport:
    """Write a backup of the database."""
    async with opened(home) as store:
        async with connected(store) as connection:
            as_owner = not await connection.fetchval(ADMIN["sees_all"])
        written = await dumps.dump(store.url, file, force=force, as_owner=as_owner)
    return BackupReport(file=str(file), bytes=written)


async def restore(home: Home, file: Path, tell: Tell) -> RestoreReport:
    """Put a backup in the place of the database; all that can fail is done before anything goes."""
    await dumps.check_file(file)
    async with (
        opened(home, daemon_down="a backup can't be restored", create=True) as store,
        connected(store, MAINTENANCE) as connection,
    ):
        if not await connection.fetchval(ADMIN["sees_all"]):
            # It names owners, rights on Postgres' functions, extensions that are not trusted.
            raise Denied("a backup is restored with a superuser's KSI_DATABASE_URL")
        await connection.execute(SQL["create_roles"])  # a backup has none, but names them
        await replace_database(connection, RESTORING)
        try:
            tell("restoring")
            url = with_database(store.url, RESTORING)
            await dumps.fill(url, file)
            tell("checking")
            applied = await schema.bring_up(home, store, RESTORING)
            kept_as = await swap(connection, store.database)
        except BaseException:
            with contextlib.suppress(asyncpg.PostgresError):
                await drop_database(connection, RESTORING)
            raise
    return RestoreReport(
        file=str(file), database=store.database, kept_as=kept_as, migrations_applied=applied
    )


async def replace_database(connection: Any, name: str) -> None:
    """Make an empty database, in place of what an interrupted restore has left."""
    await drop_database(connection, name)
    await connection.execute(await connection.fetchval(ADMIN["create_database"], name))


async def drop_database(connection: Any, name: str) -> None:
    """Drop a database, if there is one."""
    await connection.execute(await connection.fetchval(ADMIN["drop_database"], name))


async def swap(connection: Any, name: str) -> str | None:
    """Let the restored database take the place of the other; returns what that one is called now.

    Raises:
        Conflict: Somebody uses it.
    """
    there = await connection.fetchval(ADMIN["has_database"], name)
    kept = await connection.fetchval(ADMIN["has_database"], BEFORE)
    await drop_database(connection, OUTDATED)
    names = [(BEFORE, OUTDATED)] * kept + [(name, BEFORE)] * there + [(RESTORING, name)]
    try:
        async with connection.transaction():  # all of them, or none
            for old, new in names:
                query = await connection.fetchval(ADMIN["rename_database"], old, new)
                await connection.execute(query)
    except asyncpg.ObjectInUseError as error:
        raise Conflict(f"others use the database, end them first: {told_of(error)}") from error
    await drop_database(connection, OUTDATED)
    return BEFORE if there else None


async def verify(home: Home, tell: Tell) -> VerifyReport:
    """Check migrations, walls, tables and indexes."""
    async with opened(home) as store, connected(store) as connection:
        migrations, damage = await schema.check(home, connection)
        damage += await verification.check_walls(connection)
        files = await verification.check_files(connection, tell)
    return VerifyReport(
        migrations=migrations,
        tables=files.tables,
        indexes=files.indexes,
        damage=(*damage, *files.damage),
        skipped=files.skipped,
    )


async def shell(home: Home, words: Sequence[str]) -> int:
    """Run psql in this terminal; returns its exit code."""
    async with opened(home) as store:
        with dumps.login(store.url) as (shown, environ):
            # Ctrl-C cancels a query of psql's, and ends nothing here.
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
            process = await asyncio.create_subprocess_exec(
                await asyncio.to_thread(psql), f"--dbname={shown}", *words, env=environ
            )
            try:
                return await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def psql() -> str:
    """Return the psql to use: the system's, unless it is too old; it edits lines, ours can't."""
    ours, theirs = dumps.program("psql"), shutil.which("psql")
    if theirs is None or theirs == ours:
        return ours
    return theirs if dumps.major_of(theirs) >= dumps.major_of(ours) else ours

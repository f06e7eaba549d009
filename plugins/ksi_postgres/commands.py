"""Look at the store, mend it, carry it over: ``ksi db``, which works with the daemon up or down."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ksi_cli import output
from ksi_cli.output import JsonFlag
from ksi_daemon.home import Home

# The store's libraries are imported by the command that needs them: help comes without.
# ruff: noqa: PLC0415

db = typer.Typer(rich_markup_mode=None, help="Look at the store, back it up, restore it.")

Done = TypeVar("Done")
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


@db.command()
def status(*, as_json: JsonFlag = False) -> None:
    """Tell where the store is and how it is.

    Also which migrations were applied, and which this version would apply.
    """
    from ksi_postgres import administration, reports

    report = run(administration.status(Home()))
    output.show(report, reports.status_text, as_json=as_json)


@db.command()
def migrate(*, as_json: JsonFlag = False) -> None:
    """Bring the database up to this version.

    Where there is none, it is made.
    """
    from ksi_postgres import administration, reports

    report = run(administration.migrate(Home()))
    output.show(report, reports.migrate_text, as_json=as_json)


@db.command()
def shell(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[-- PSQL ARGUMENT …]", help="For psql.")
    ] = None,
) -> None:
    """Open psql on the store.

    As its superuser, or as the login of KSI_DATABASE_URL; what follows -- is for psql.
    """
    from ksi_postgres import administration

    raise typer.Exit(run(administration.shell(Home(), words or [])))


@db.command()
def backup(
    file: FileArgument,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the database into a file.

    As pg_dump does, in its custom format; nothing has to stop for it.
    """
    from ksi_postgres import administration, reports

    report = run(administration.backup(Home(), file.expanduser(), force=force))
    output.show(report, reports.backup_text, as_json=as_json)


@db.command()
def restore(file: FileArgument, *, as_json: JsonFlag = False) -> None:
    """Put a backup in the place of the database.

    The daemon has to be stopped. The database that was there is kept, as ksi_before_restore, until
    the next restore.
    """
    from ksi_postgres import administration, reports

    report = run(administration.restore(Home(), file.expanduser(), output.note))
    output.show(report, reports.restore_text, as_json=as_json)


@db.command()
def verify(*, as_json: JsonFlag = False) -> None:
    """Look for damage.

    Checks migrations, the walls between tenants, and every page of every table and index.

    Exit codes: 0 all is well, 1 something is not.
    """
    from ksi_postgres import administration, reports

    report = run(administration.verify(Home(), output.note))
    output.show(report, reports.verify_text, as_json=as_json)
    raise typer.Exit(1 if report.damage else 0)


@db.command()
def size(*, as_json: JsonFlag = False) -> None:
    """Show what uses the space.

    Per plugin, per table, per tenant.
    """
    from ksi_postgres import administration, reports

    report = run(administration.size(Home()))
    output.show(report, reports.size_text, as_json=as_json)


def run(work: Coroutine[Any, Any, Done]) -> Done:
    """Run what a command does; SIGTERM ends it as Ctrl-C does, so that no server is left."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    return asyncio.run(work)

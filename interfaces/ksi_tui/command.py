"""Show what the daemon does, live: ``ksi monitor``."""

import sys
from typing import Annotated

import typer

from ksi_cli.connection import given_token
from ksi_cli.output import UsageError
from ksi_daemon.protocol.names import check_pattern


def monitor(
    *,
    pattern: Annotated[
        str,
        typer.Option(
            "--events", metavar="PATTERN", help="Follow these only: * is any characters, ? is one."
        ),
    ] = "*",
    light: Annotated[bool, typer.Option("--light", help="For a light background.")] = False,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Show what the daemon does, live: agents, models, runs.

    Press ? inside for the keys, q to leave; the daemon goes on. Where none runs, it waits for one
    and offers to start it. For programs: ksi health, ksi agent list, ksi listen, each with --json.
    """
    if as_json:
        raise UsageError("the monitor has no JSON; for that: ksi listen --json, ksi health --json")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the monitor needs a terminal; without one: ksi listen, ksi health")
    from ksi_tui.app import Monitor  # noqa: PLC0415  Textual, which only this command needs
    from ksi_tui.model.known import Known  # noqa: PLC0415  as above
    from ksi_tui.theme import LIGHT  # noqa: PLC0415  as above
    from ksi_tui.watcher import Watcher  # noqa: PLC0415  as above

    app = Monitor(Watcher(Known(), token=given_token(), pattern=check_pattern(pattern)))
    if light:
        app.theme = LIGHT.name
    app.run()

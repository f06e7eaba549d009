"""The command ``ksi mcp``: KSI's tools for a program that starts it, and others' tools for KSI."""

import asyncio
import contextlib
import sys
from typing import Annotated

import typer

from ksi_cli import output
from ksi_cli.connection import given_token
from ksi_cli.output import UsageError
from ksi_daemon import process
from ksi_daemon.home import Home
from ksi_mcp.client import commands as servers

mcp = typer.Typer(
    rich_markup_mode=None,
    invoke_without_command=True,
    help="Serve MCP on standard input and output; servers of others.",
)


@mcp.callback()
def serve(
    context: typer.Context,
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="GLOB",
            help="What the program may do: memory:*, '*:read', …; repeatable. All unless given.",
        ),
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="For which user, with --scope.")
    ] = None,
    tenant: Annotated[
        str, typer.Option(metavar="NAME", help="For which tenant, with --scope.")
    ] = "default",
) -> None:
    """Serve MCP on standard input and output, for a program that starts this.

    The daemon is started if it isn't running. Every call passes it, in the name of whoever starts
    this, or of the token in the file that KSI_TOKEN_FILE names.
    """
    is_bounded = bool(scope) or user is not None or tenant != "default"
    if context.invoked_subcommand is not None:
        if is_bounded:
            raise UsageError("--scope, --user and --tenant are for what is served here alone")
        return
    if is_bounded and not scope:
        raise UsageError("say what may be done in that one's name: --scope GLOB; '*' is everything")
    if sys.stdin is None or sys.stdout is None:
        raise UsageError("this speaks MCP on standard input and output, and one of them is closed")
    if sys.stdin.isatty():
        output.note("this speaks MCP with the program that starts it; add it there as: ksi mcp")
    token = given_token()
    _start()
    from ksi_mcp import stdio  # noqa: PLC0415  it brings the SDK, which takes a second

    wanted = stdio.Wanted(token=token or "", scopes=tuple(scope or ()), user=user, tenant=tenant)
    with contextlib.suppress(asyncio.CancelledError):  # a signal has ended it before it began
        asyncio.run(stdio.serve(wanted, _start))


def _start() -> None:
    """Start the daemon, if it isn't running."""
    started = process.start(Home(), [], timeout_s=process.START_TIMEOUT_S, tell=output.note)
    if not started.already:
        output.note(f"started the daemon (pid {started.pid}), with this program's environment")


for _name, _command in (
    ("add", servers.add),
    ("remove", servers.remove),
    ("list", servers.list_servers),
    ("check", servers.check),
    ("accept", servers.accept),
    ("login", servers.login),
    ("logout", servers.logout),
):
    mcp.command(_name)(_command)

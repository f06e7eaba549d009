"""Finds commands by their entry points, and imports only the one that is invoked."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from ksi_cli.output import UsageError

GROUP: Final = "ksi.commands"


class QuickHelp:
    """Spares a command the import of pydantic, a tenth of a second, for its option ``--help``.

    Typer checks with it whatever is no bool, and an option that is not given is ``None``.
    """

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``, with a default that needs no check."""
        option = super().get_help_option(ctx)  # type: ignore[misc]  # of the class it is mixed into
        if option is not None:
            option.default = False
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take a command line apart; an error knows which command's it was."""
        try:
            rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]  # as above
        except typer.TyperException as error:
            if getattr(error, "ctx", None) is None:
                error.ctx = ctx  # type: ignore[attr-defined]  # a usage error has one
            raise
        return rest


class QuickCommand(QuickHelp, TyperCommand):
    """A command that starts fast."""


class LazyGroup(QuickHelp, TyperGroup):
    """A group whose commands are the entry points of the group ``ksi.commands``.

    Each is a function with Typer's annotations, or a `typer.Typer` with commands of its own. KSI's
    own are looked up first, so that no other distribution can take their names.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of all commands that are installed."""
        return sorted({point.name for point in (*own_commands(), *all_commands())})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command for a list of all; one that can't be imported is shown as such."""
        point = find(cmd_name)
        return load(point, listing=True) if point else None

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Suggest commands by their names alone: importing them all would take too long."""
        from typer._click.shell_completion import CompletionItem  # noqa: PLC0415  seldom needed

        if incomplete.startswith("-"):
            options: list[Any] = super().shell_complete(ctx, incomplete)
            return options
        names = self.list_commands(ctx)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the command that the first argument names.

        Raises:
            UsageError: There is none (the nearest is named), or it can't be imported.
        """
        point = find(args[0])
        if point is not None:
            return args[0], load(point), args[1:]
        near = get_close_matches(args[0], self.list_commands(ctx), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "see: ksi --help"
        raise UsageError(f"there is no command {args[0]!r}; {hint}")


def find(name: str) -> EntryPoint | None:
    """Find a command; one of KSI's own is not to be taken by another distribution."""
    for points in (own_commands, all_commands):
        for point in points():
            if point.name == name:
                return point
    return None


def own_commands() -> Iterable[EntryPoint]:
    """Find the commands that come with KSI, which is quick."""
    try:
        return distribution("ksi").entry_points.select(group=GROUP)
    except PackageNotFoundError:
        return ()


def all_commands() -> Iterable[EntryPoint]:
    """Find the commands of every distribution that is installed."""
    return entry_points(group=GROUP)


def load(point: EntryPoint, *, listing: bool = False) -> Any:
    """Import a command.

    Args:
        point: Where it is found.
        listing: One that can't be imported is shown so, rather than spoil the list.

    Raises:
        UsageError: It can't be imported.
    """
    try:
        loaded = point.load()
    except Exception as error:  # whatever a plugin's module does when it is imported
        message = f"the command {point.name} can't be loaded: {type(error).__name__}: {error}"
        if not listing:
            raise UsageError(message) from error

        def loaded() -> None:
            raise UsageError(message)

        loaded.__doc__ = f"(can't be loaded: {type(error).__name__}: {error})"
    return as_command(point.name, loaded)


def as_command(name: str, loaded: Any) -> Any:
    """Make a command of a function or of a `typer.Typer`."""
    app = loaded
    if not isinstance(app, typer.Typer):
        app = typer.Typer(rich_markup_mode=None)
        app.command(name)(loaded)
    app._add_completion = False  # it would complete a program of the command's name, not ksi
    for info in app.registered_commands:
        if info.cls in (None, TyperCommand):
            info.cls = QuickCommand
    command = typer.main.get_command(app)
    command.name = name
    return command

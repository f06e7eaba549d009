"""Have systemd or launchd run the daemon for the user."""

import os
import sys
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Literal
from xml.sax.saxutils import escape

import typer
from msgspec import Struct

from ksi_cli import output
from ksi_cli.output import JsonFlag
from ksi_daemon.home import Home
from ksi_daemon.principals import write_private
from ksi_daemon.protocol import Conflict, Failed, InvalidData

app = typer.Typer(rich_markup_mode=None, help="Have systemd or launchd run the daemon.")

Manager = Literal["systemd", "launchd"]
ManagerFlag = Annotated[
    Manager | None, typer.Option("--for", help="Which one; that of this system unless given.")
]


class Unit(Struct, frozen=True, kw_only=True):
    """A unit file: for whom, where it belongs, what it says, and whether it stands there."""

    manager: Manager
    file: str
    content: str
    installed: Literal["no", "yes", "differs"]


class UnitChange(Struct, frozen=True, kw_only=True):
    """What was done with a unit file, and the commands to give next."""

    manager: Manager
    file: str
    done: Literal["installed", "unchanged", "removed", "absent"]
    next: tuple[str, ...] = ()


@app.command()
def install(
    *,
    manager: ManagerFlag = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that says something else.")
    ] = False,
    only_print: Annotated[
        bool, typer.Option("--print", help="Show the file only; write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the unit file, for this user, home and installation."""
    unit = unit_for(manager)
    if only_print:
        output.show(unit, lambda shown: shown.content, as_json=as_json)
        return
    change = place(unit, force=force)
    output.show(change, change_text, as_json=as_json)


@app.command()
def uninstall(
    *,
    manager: ManagerFlag = None,
    force: Annotated[
        bool, typer.Option("--force", help="Remove it even if it was changed.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove the unit file."""
    unit = unit_for(manager)
    if unit.installed == "differs" and not force:
        raise Conflict(f"{unit.file} was changed or is another home's; remove it with --force")
    if unit.installed != "no":
        try:
            Path(unit.file).unlink()
        except OSError as error:
            raise Failed(f"the unit file can't be removed: {error}") from error
    change = UnitChange(
        manager=unit.manager,
        file=unit.file,
        done="absent" if unit.installed == "no" else "removed",
        next=() if unit.installed == "no" else STOP_COMMANDS[unit.manager],
    )
    output.show(change, change_text, as_json=as_json)


@app.command()
def show(*, manager: ManagerFlag = None, as_json: JsonFlag = False) -> None:
    """Show the unit file, and whether it is installed."""
    output.show(unit_for(manager), unit_text, as_json=as_json)


def unit_for(manager: Manager | None) -> Unit:
    """Make the unit file for this user, home and installation."""
    manager = manager or ("launchd" if sys.platform == "darwin" else "systemd")
    home = Home()
    for path in (home.root, Path(sys.executable)):
        if any(not character.isprintable() for character in str(path)):
            raise InvalidData(f"{output.displayed(path)!r} can't be written into a unit file")
    make = systemd_unit if manager == "systemd" else launchd_unit
    content, file = make(home), unit_file(manager)
    try:
        present = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        present = None
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{file} can't be read: {error}") from error
    installed: Literal["no", "yes", "differs"] = "differs"
    if present is None or present == content:
        installed = "no" if present is None else "yes"
    return Unit(manager=manager, file=str(file), content=content, installed=installed)


def unit_file(manager: Manager) -> Path:
    """Return where a user's unit file belongs."""
    if manager == "launchd":
        return Path.home() / "Library" / "LaunchAgents" / "ksi.plist"
    settings = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(settings) / "systemd" / "user" / "ksi.service"


def systemd_unit(home: Home) -> str:
    """Fill in the unit of systemd, quoted as systemd.syntax(7) says."""
    # A $ is doubled only where systemd would look for a variable, which is in commands.
    python = systemd_quoted(sys.executable).replace("$", "$$")
    return template("ksi.service").substitute(
        python=python, home=systemd_quoted(f"KSI_HOME={home.root}")
    )


def systemd_quoted(text: str) -> str:
    """Quote a word for a unit file; % would begin a specifier."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def launchd_unit(home: Home) -> str:
    """Fill in the property list of launchd."""
    return template("ksi.plist").substitute(
        python=escape(sys.executable),
        home=escape(str(home.root)),
        log=escape(str(home.startup_file)),
    )


def template(name: str) -> Template:
    """Read a unit file's template, which is part of the package."""
    return Template((files("ksi_system") / "units" / name).read_text(encoding="utf-8"))


def place(unit: Unit, *, force: bool) -> UnitChange:
    """Write a unit file.

    Raises:
        Conflict: There is another one, and ``force`` was not given.
        Failed: It can't be written.
    """
    file = Path(unit.file)
    if unit.installed == "differs" and not force:
        raise Conflict(f"{file} says something else; see: ksi service show; replace it: --force")
    if unit.installed != "yes":
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_private(file, unit.content.encode())
        except OSError as error:
            raise Failed(f"the unit file can't be written: {error}") from error
    return UnitChange(
        manager=unit.manager,
        file=unit.file,
        done="unchanged" if unit.installed == "yes" else "installed",
        next=start_commands(unit),
    )


def start_commands(unit: Unit) -> tuple[str, ...]:
    """List what to type after an installation."""
    if unit.manager == "launchd":
        return (f"launchctl bootstrap gui/{os.getuid()} {unit.file}",)
    return (
        "systemctl --user daemon-reload",
        "systemctl --user enable --now ksi",
        "loginctl enable-linger  # so that it also runs while you are logged out",
    )


STOP_COMMANDS: dict[Manager, tuple[str, ...]] = {
    "systemd": ("systemctl --user disable --now ksi", "systemctl --user daemon-reload"),
    "launchd": (f"launchctl bootout gui/{os.getuid()}/ksi",),
}


def change_text(change: UnitChange) -> str:
    """Say what was done with a unit file, and what to do next."""
    sentence = {
        "installed": f"wrote {change.file}",
        "unchanged": f"{change.file} stands there already",
        "removed": f"removed {change.file}",
        "absent": f"there is no {change.file}",
    }[change.done]
    if not change.next:
        return sentence
    note = "" if change.done == "removed" else "\nsettings belong into ksi.toml, not into the shell"
    return "\n".join((sentence, "next:", *(f"  {command}" for command in change.next))) + note


def unit_text(unit: Unit) -> str:
    """Write a unit file with where it belongs."""
    told = {"no": "not installed", "yes": "installed", "differs": "there, but different"}
    return f"# {unit.file} ({told[unit.installed]})\n{unit.content}"

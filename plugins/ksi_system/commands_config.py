"""Show the settings: the daemon's, or when it is down what it would be started with."""

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

import typer
from msgspec import Struct

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, NotRunning
from ksi_daemon.home import Home
from ksi_daemon.protocol import NotFound
from ksi_daemon.protocol.names import did_you_mean, matches_any
from ksi_system import events as e


class ConfigReport(Struct, frozen=True, kw_only=True):
    """The settings; ``source`` says whether the daemon told them or they were read from files."""

    source: Literal["daemon", "files"]
    settings: tuple[e.SettingValue, ...]


def config(
    section: Annotated[
        str | None, typer.Argument(metavar="SECTION", help="One section, such as log.")
    ] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """Show each setting and its origin; secrets are masked."""
    report = config_report(section)
    if report.source == "files" and not as_json:
        output.note("KSI is not running; this is what it would be started with:")
    output.show(report, settings_table, as_json=as_json)


def config_report(section: str | None) -> ConfigReport:
    """Ask the daemon for its settings, or read them."""
    try:
        client = connect()
    except NotRunning:
        return ConfigReport(source="files", settings=read_settings(Home(), section))
    with client:
        ask = e.SystemConfig(section=section)
        listed = client.request("system:config", ask, result_type=e.SystemConfigListed)
    return ConfigReport(source="daemon", settings=listed.settings)


def read_settings(
    home: Home, section: str | None = None, arguments: Sequence[str] = ()
) -> tuple[e.SettingValue, ...]:
    """Read the settings of a home as its daemon would.

    Args:
        home: Where the daemon lives.
        section: The only section that is wanted.
        arguments: What ``--set`` would be given: ``section.key=value``.

    Raises:
        InvalidData: They are wrong.
        NotFound: There is no such section.
    """
    # Slow to import, and needed only here: a running daemon is asked.
    from ksi_daemon.settings import (  # noqa: PLC0415  start-up is quicker without it
        CommonSettings,
        DaemonSettings,
        LogSettings,
        Settings,
    )

    settings = Settings(home.root, arguments)
    allowed = settings.section("daemon", DaemonSettings).plugins
    settings.section("log", LogSettings)
    read, unread = ["daemon", "log"], []
    for point in entry_points(group="ksi"):
        kind = None
        if matches_any(point.name, allowed):
            settings.section(point.name, CommonSettings)
            kind = settings_kind(point)
        if kind is None:
            unread.append(point.name)
        else:
            settings.section(point.name, kind)
            read.append(point.name)
    settings.check(read, unread=unread)
    values = settings.values()
    known = {value.section for value in values}
    if section is not None and section not in known:
        raise NotFound(f"there is no section {section!r}{did_you_mean(section, known)}")
    return tuple(
        e.SettingValue(section=v.section, key=v.key, value=v.value, origin=v.origin)
        for v in values
        if section in (None, v.section)
    )


class _NoSettings(Struct, frozen=True):
    """The settings of a plugin that has none of its own."""


def settings_kind(point: Any) -> type[Struct] | None:
    """Return the Struct of a plugin's settings; ``None`` where the plugin can't be imported."""
    try:
        module = point.load()
        describe = getattr(module, "ksi_plugin", None)
        info = None if describe is None else describe()
    except Exception as error:  # noqa: BLE001  a plugin's import may do anything; the rest is shown
        output.note(f"! the settings of {point.name} are unknown: {type(error).__name__}: {error}")
        return None
    kind: type[Struct] = getattr(info, "settings", None) or _NoSettings
    return kind


def settings_table(report: ConfigReport) -> str:
    """Lay out settings."""
    rows = [
        (f"{each.section}.{each.key}", shown(each.value), each.origin) for each in report.settings
    ]
    return output.table(("SETTING", "VALUE", "FROM"), rows)


def shown(value: Any) -> str:
    """Write a value as it would stand in ``ksi.toml``."""
    return output.encode_json(value)

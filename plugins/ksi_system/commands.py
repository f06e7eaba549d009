"""Start, stop and look at the daemon: commands that also work when it is down."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from msgspec import Struct
from msgspec.structs import replace

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, UsageError
from ksi_daemon import __version__, process
from ksi_daemon.home import Home
from ksi_system import events as e
from ksi_system.commands_config import read_settings

SetFlag = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A setting that wins over all others."),
]
StopTimeout = Annotated[
    float,
    typer.Option(
        "--timeout-s",
        min=0,
        metavar="SECONDS",
        help="How long it may take to end what runs; then it is killed, which loses nothing that "
        "was accepted. 0 is at once.",
    ),
]
StartTimeout = Annotated[
    float,
    typer.Option(
        "--timeout-s", min=0, metavar="SECONDS", help="How long to wait until it is ready."
    ),
]


class StartReport(Struct, frozen=True, kw_only=True):
    """A daemon that is ready; ``problems`` are what does not work."""

    state: Literal["ready"] = "ready"
    already_running: bool
    pid: int
    version: str
    home: str
    socket: str
    problems: tuple[str, ...] = ()


class StopReport(Struct, frozen=True, kw_only=True):
    """What ``ksi stop`` did; ``pid`` is ``None`` when nothing ran."""

    was_running: bool
    pid: int | None = None
    killed: bool = False


class StatusReport(Struct, frozen=True, kw_only=True):
    """Whether a daemon runs, how it is, and where it has its things.

    ``socket_is_short`` says that the home's path was too long for a socket, which is elsewhere.
    """

    running: bool
    state: str
    pid: int | None
    health: str | None
    uptime_s: float | None
    problems: tuple[str, ...]
    plugins: dict[str, str]
    version: str
    home: str
    socket: str
    socket_is_short: bool
    log: str
    settings: str


def start(
    *,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay; for systemd, launchd and containers.")
    ] = False,
    timeout_s: StartTimeout = process.START_TIMEOUT_S,
    settings: SetFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Start the daemon and wait until it is ready.

    One that runs already is fine, too.
    """
    home, arguments = Home(), set_arguments(settings or [])
    if foreground:
        command = ["-P", "-m", "ksi_daemon", "--home", str(home.root), *arguments]
        os.execv(sys.executable, [sys.executable, *command])
    started = process.start(home, arguments, timeout_s=timeout_s, tell=output.note)
    report = start_report(home, started)
    if started.already and arguments:
        unheard = "it ran already, so --set has changed nothing: ksi restart --set …"
        report = replace(report, problems=(*report.problems, unheard))
    output.show(report, welcome, as_json=as_json)


def set_arguments(settings: list[str]) -> list[str]:
    """Return the daemon's arguments for settings.

    Raises:
        UsageError: One is not of the form ``section.key=value``.
    """
    for setting in settings:
        path, equals, _ = setting.partition("=")
        section, _, key = path.partition(".")
        if not (equals and section and key):
            raise UsageError(f"--set takes section.key=value, not {setting!r}")
    return [word for setting in settings for word in ("--set", setting)]


def start_report(home: Home, started: process.Started) -> StartReport:
    """Look at what was started."""
    _, health = process.probe(home)
    return StartReport(
        already_running=started.already,
        pid=started.pid,
        version=__version__,
        home=output.displayed(home.root),
        socket=output.displayed(home.socket),
        problems=problems_of(health),
    )


def problems_of(health: dict[str, Any]) -> tuple[str, ...]:
    """List what is not well, the daemon's own first."""
    ill = [p for p in health.get("plugins", ()) if p["health"] != "ok"]
    told = [f"plugin {p['plugin']} is {p['health']}: {p.get('why') or 'no reason'}" for p in ill]
    return (*health.get("problems", ()), *told)


def welcome(report: StartReport) -> str:
    """Say that the daemon is ready, and what to do next."""
    ksi = output.command_name()
    how = "runs already" if report.already_running else "is ready"
    next_steps = (
        (f"{ksi} status", "how it is"),
        (f"{ksi} chat", "talk to a model"),
        (f"{ksi} events", "what it can do"),
        (f"{ksi} logs -f", "what it writes"),
        (f"{ksi} stop", "the end"),
    )
    width = max(len(command) for command, _ in next_steps)
    return "\n".join(
        (
            f"KSI {report.version} {how} (pid {report.pid})",
            f"  home    {report.home}",
            f"  socket  {report.socket}",
            *(f"! {problem}" for problem in report.problems),
            "next:",
            *(f"  {command.ljust(width)}  {what}" for command, what in next_steps),
        )
    )


def stop(*, timeout_s: StopTimeout = process.STOP_TIMEOUT_S, as_json: JsonFlag = False) -> None:
    """Stop the daemon and wait for its end.

    When none runs, that is fine, too.
    """
    output.show(stopped(Home(), timeout_s), stop_sentence, as_json=as_json)


def stopped(home: Home, timeout_s: float) -> StopReport:
    """Stop the daemon of a home, if there is one."""
    ended = process.stop(home, timeout_s=timeout_s)
    if ended is None:
        return StopReport(was_running=False)
    return StopReport(was_running=True, pid=ended.pid, killed=ended.killed)


def stop_sentence(report: StopReport) -> str:
    """Say what ``ksi stop`` did."""
    if not report.was_running:
        return "KSI is not running"
    if report.killed:
        return (
            f"KSI (pid {report.pid}) did not end in time and was killed; nothing accepted is lost"
        )
    return f"KSI has stopped (pid {report.pid})"


def restart(
    *,
    timeout_s: StopTimeout = process.STOP_TIMEOUT_S,
    settings: SetFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Stop the daemon if it runs, and start it.

    Settings that are wrong are told before it is stopped.
    """
    home, arguments = Home(), set_arguments(settings or [])
    read_settings(home, arguments=settings or [])
    stopped(home, timeout_s)
    started = process.start(home, arguments, tell=output.note)
    output.show(start_report(home, started), welcome, as_json=as_json)


def status(*, as_json: JsonFlag = False) -> None:
    """Tell whether the daemon runs, how it is and where it lives.

    Exit codes: 0 running, 1 it does not answer, 3 not running.
    """
    report = status_report(Home())
    output.show(report, status_text, as_json=as_json)
    if not report.running:
        raise typer.Exit(output.NOT_RUNNING)
    if report.state == "silent":
        raise typer.Exit(output.FAILED)


def status_report(home: Home) -> StatusReport:
    """Look at the daemon of a home."""
    state, health = process.probe(home)
    return StatusReport(
        running=state != "absent",
        state="stopped" if state == "absent" else state,
        pid=home.running_pid(),
        health=health.get("health"),
        uptime_s=health.get("uptime_s"),
        problems=problems_of(health),
        plugins={p["plugin"]: p["health"] for p in health.get("plugins", ())},
        version=__version__,
        home=output.displayed(home.root),
        socket=output.displayed(home.socket),
        socket_is_short=home.socket.parent != home.root / "run" and "KSI_SOCKET" not in os.environ,
        log=output.displayed(home.log_file),
        settings=output.displayed(home.settings_file),
    )


def status_text(report: StatusReport) -> str:
    """Write a status for people."""
    short = " (the home's path is too long for one)" if report.socket_is_short else ""
    places = [("home", report.home), ("socket", report.socket + short), ("log", report.log)]
    if not report.running:
        return (
            f"KSI is not running; start it with: {output.command_name()} start\n"
            + output.fields(places)
        )
    if report.state == "silent":
        first = f"KSI runs (pid {report.pid}) but does not answer; end it with: ksi stop"
        return f"{first}\n{output.fields(places)}"
    since = output.duration(report.uptime_s or 0)
    first = f"KSI {report.version} is {report.state} (pid {report.pid}), up {since}"
    lines = output.fields(
        [("health", report.health), ("plugins", ", ".join(report.plugins)), *places]
    )
    return "\n".join((first, lines, *(f"! {problem}" for problem in report.problems)))


def health(*, as_json: JsonFlag = False) -> None:
    """Tell whether all is well, plugin by plugin.

    Exit codes: 0 well enough to work (ok, degraded), 1 not (starting, draining, failed), 3 not
    running.
    """
    with connect(timeout_s=process.PROBE_TIMEOUT_S * 2) as client:
        report = client.request("system:health", result_type=e.SystemHealthReport)
    output.show(report, health_text, as_json=as_json)
    if report.health not in ("ok", "degraded"):
        raise typer.Exit(output.FAILED)


def health_text(report: e.SystemHealthReport) -> str:
    """Write a health report for people."""
    rows = [(each.plugin, each.health, each.why or "") for each in report.plugins]
    lines = [report.health, *(f"! {problem}" for problem in report.problems), ""]
    return "\n".join((*lines, output.table(("PLUGIN", "HEALTH", "WHY"), rows)))


def plugins(*, as_json: JsonFlag = False) -> None:
    """List the plugins, and what has become of each."""
    with connect() as client:
        listed = client.request("system:plugins", result_type=e.SystemPluginsListed)
    output.show(listed, plugin_table, as_json=as_json)


def plugin_table(listed: e.SystemPluginsListed) -> str:
    """Lay out plugins."""
    rows = [
        (
            each.plugin,
            each.state,
            each.version or "-",
            each.events,
            each.why or (f"in process {each.pid}" if each.pid else ""),
        )
        for each in listed.plugins
    ]
    return output.table(("PLUGIN", "STATE", "VERSION", "EVENTS", "NOTE"), rows)


def request(
    event: str, data: Struct, kind: Any, text: Callable[[Any], str], *, as_json: bool
) -> None:
    """Send one event and show its answer."""
    with connect() as client:
        output.show(client.request(event, data, result_type=kind), text, as_json=as_json)


__all__ = ["health", "plugins", "restart", "start", "status", "stop"]

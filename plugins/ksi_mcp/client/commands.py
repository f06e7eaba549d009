"""The commands for servers of others: ``ksi mcp add``, ``list``, ``check``, ``accept`` …."""

import asyncio
import contextlib
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, UsageError
from ksi_daemon.protocol import NotFound
from ksi_daemon.protocol.paths import home_directory
from ksi_mcp import events as e
from ksi_mcp.client.places import login_of
from ksi_mcp.client.targets import read_target

DEFAULT: Final = "default"  # whose the servers are that are everybody's
TELL_AFTER_S: Final = 2.0  # who waits for longer wonders whether anything is going on
A_NAME: Final = "has up to 40 letters, digits, - and _, and begins with a letter or a digit"


def fitting(word: str, kind: Any, told: str) -> str:
    """Return a word that the daemon would take.

    Raises:
        UsageError: It would not.
    """
    try:
        msgspec.convert(word, kind)
    except msgspec.ValidationError:
        raise UsageError(told) from None
    return word


def server_name(name: str | None) -> str | None:
    """Return what may be a server's name."""
    if name is None:
        return None
    return fitting(name, e.ServerName, f"{name!r} is no server's name: one {A_NAME}")


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The server's, as `ksi mcp list` shows.", callback=server_name
    ),
]
Tenant = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose servers; one's own unless given.")
]
Answer = TypeVar("Answer")


def asked(event: str, data: Any, kind: type[Answer], tenant: str | None) -> Answer:
    """Ask the daemon, for a tenant where one is named."""
    with connect() as client:
        context = None if tenant is None else {"tenant": tenant}
        return client.request(event, data, result_type=kind, context=context)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Say what is waited for, where that takes long."""
    timer = threading.Timer(TELL_AFTER_S, output.note, (what,))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Return what was given as ``NAME=VALUE``, several times.

    Raises:
        UsageError: Something was not.
    """
    made = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise UsageError(f"{option} takes NAME=VALUE")
        made[name] = value
    return made


def variable_name(word: str) -> str:
    """Return what may be a variable's name."""
    told = f"--environment takes the name of a variable of KSI's, and {word!r} is none"
    return fitting(word, e.VariableName, told)


def add(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="What it is to be called.", callback=server_name),
    ],
    target: Annotated[
        list[str], typer.Argument(metavar="TARGET", help="Its URL, or its command after --.")
    ],
    *,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Sent with each request; ${env:X} for secrets."),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of its environment; ${env:X} for secrets."),
    ] = None,
    environment: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A variable that it gets of KSI's.")
    ] = None,
    oauth: Annotated[bool, typer.Option("--oauth", help="One logs in: ksi mcp login.")] = False,
    prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What its tools' names begin with.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="The tools that may be used.")
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Those that may not be.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Believe what it says of its tools' effects.")
    ] = False,
    accept_new: Annotated[
        bool | None,
        typer.Option("--accept-new/--hold-new", help="Tools that come later."),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0.001,
            max=86_400,
            metavar="SECONDS",
            help="How long a call may take.",
        ),
    ] = None,
    memory_mb: Annotated[
        int | None,
        typer.Option("--memory", min=16, metavar="MB", help="How much memory it may have."),
    ] = None,
    legacy: Annotated[
        bool, typer.Option("--legacy", help="Don't ask for the newest protocol first.")
    ] = False,
    tenant: Tenant = None,
    as_json: JsonFlag = False,
) -> None:
    """Have agents call the tools of another program that speaks MCP.

    ksi mcp add files -- npx -y @modelcontextprotocol/server-filesystem /data

    ksi mcp add tracker https://mcp.tracker.example/mcp --oauth

    A command is run in a folder of its own, and has nothing of this shell's environment: what it is
    to know goes with --variable. Paths are those that are found from here.
    """
    url, words = read_target(target)
    for given, read in zip(target, words, strict=False):
        if read != given:
            output.note(f"{given} is taken as {read}")
    server = e.McpServer(
        url=url,
        command=words[0] if words else "",
        args=tuple(words[1:]),
        environment=tuple(map(variable_name, environment or ())),
        headers=pairs(header, "--header"),
        variables=pairs(variable, "--variable"),
        oauth=oauth,
        prefix=prefix,
        allow=tuple(allow or ("*",)),
        deny=tuple(deny or ()),
        trust_annotations=trust,
        accept_new=accept_new,
        timeout_s=timeout_s,
        memory_mb=memory_mb,
        handshake="legacy" if legacy else "auto",
    )
    ask = e.McpAdd(name=name, server=server)
    try:
        with telling(f"{name} is being asked for its tools …"):
            added = asked("mcp:add", ask, e.McpServerReport, tenant)
    except KeyboardInterrupt:
        output.note(f"{name} may have been added all the same: see ksi mcp list")
        raise
    output.show(added, report_text, as_json=as_json)
    if added.why:
        output.note(f"it is kept: see ksi mcp check {name}, or ksi mcp remove {name}")
        raise typer.Exit(output.FAILED)


def remove(name: Name, *, tenant: Tenant = None, as_json: JsonFlag = False) -> None:
    """Take back a server that was added, with its folder and the login."""
    left = asked("mcp:remove", e.McpRemove(name=name), e.McpServers, tenant)
    output.show(left, lambda _: f"{name} is removed", as_json=as_json)


def list_servers(*, tenant: Tenant = None, as_json: JsonFlag = False) -> None:
    """List the servers whose tools agents can call."""
    listed = asked("mcp:list", e.McpList(), e.McpServers, tenant)
    output.show(listed, table, as_json=as_json)


def check(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="The server's; all unless given.", callback=server_name
        ),
    ] = None,
    *,
    tenant: Tenant = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask servers for their tools now, and show what is held back."""
    checked = checked_now(name, tenant)
    output.show(checked, reports_text, as_json=as_json)
    if any(each.why for each in checked.servers):
        raise typer.Exit(output.FAILED)


def checked_now(name: str | None, tenant: str | None) -> e.McpServers:
    """Ask a server, or all, for their tools."""
    with telling(f"{name or 'each server'} is being asked for its tools …"):
        return asked("mcp:check", e.McpCheck(name=name), e.McpServers, tenant)


def accept(
    name: Name,
    tools: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOOL]…", help="Which, by the server's names; all unless given."),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't show and ask first.")] = False,
    tenant: Tenant = None,
    as_json: JsonFlag = False,
) -> None:
    """Accept what a server says now of tools that are held back."""
    found = found_server(name, tenant)
    if not found.held_back:
        raise NotFound(f"nothing of {name} is held back")
    if not yes:
        output.write(report_text(found))
        typer.confirm("accept this?", abort=True)
    ask = e.McpAccept(name=name, tools=tuple(tools or ()), digest=found.digest)
    accepted = asked("mcp:accept", ask, e.McpServerReport, tenant)
    output.show(accepted, report_text, as_json=as_json)


def login(
    name: Name,
    *,
    tenant: Tenant = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only show it.")
    ] = True,
) -> None:
    """Log in with a server, in the browser."""
    found = found_server(name, tenant)
    if not found.oauth:
        raise UsageError(f"one doesn't log in with {name}: it was added without --oauth")

    from ksi_mcp.client.keys.login import log_in  # noqa: PLC0415  it brings the SDK, which takes a second

    async def show(url: str) -> None:
        output.note(f"log in here:\n{url}")
        if browser:
            await asyncio.to_thread(webbrowser.open, url)

    asyncio.run(log_in(found.target, login_file(found, tenant), show))
    checked = checked_now(name, tenant)
    output.write(reports_text(checked))


def logout(name: Name, *, tenant: Tenant = None) -> None:
    """Forget the login with a server; the server is not told."""
    file = login_file(found_server(name, tenant), tenant)
    if not file.exists():
        raise NotFound(f"nobody is logged in with {name}")
    file.unlink()
    output.write(f"the login with {name} is forgotten")


def login_file(server: e.McpServerReport, tenant: str | None) -> Path:
    """Return where the login with a server is kept.

    Raises:
        UsageError: It is not that tenant's.
    """
    if server.tenant is None and tenant not in (None, DEFAULT):
        raise UsageError(f"{server.name} is everybody's: its owner logs in, without --tenant")
    return login_of(home_directory(), server.tenant or DEFAULT, server.name)


def found_server(name: str, tenant: str | None) -> e.McpServerReport:
    """Return a server, with its tools.

    Raises:
        NotFound: There is none of that name.
    """
    listed = asked("mcp:list", e.McpList(name=name, tools=True), e.McpServers, tenant)
    return listed.servers[0]


def table(listed: e.McpServers) -> str:
    """Lay out servers."""
    if not listed.servers:
        return "there is no server; add one with: ksi mcp add NAME URL, or NAME -- COMMAND"
    rows = [
        (each.name, each.state, each.offered, each.held_back or "", each.target)
        for each in listed.servers
    ]
    text = output.table(("NAME", "STATE", "TOOLS", "HELD BACK", "TARGET"), rows)
    return "\n".join((text, *(f"{each.name}: {each.why}" for each in listed.servers if each.why)))


def reports_text(checked: e.McpServers) -> str:
    """Tell of several servers."""
    return "\n\n".join(map(report_text, checked.servers)) or table(checked)


def report_text(report: e.McpServerReport) -> str:
    """Tell of a server and its tools; of those that are held back, what has changed."""
    lines = [f"{report.name} is {report.state}: {report.target}"]
    if report.why:
        lines.append(report.why)
    rows = [
        (each.offered_as or each.name, each.status.replace("_", " "), each.effects)
        for each in report.tools
    ]
    if rows:
        lines.append(output.table(("TOOL", "STATUS", "EFFECTS"), rows))
    lines.extend(f"left out: {why}" for why in report.refused)
    held = [each for each in report.tools if each.status == "held_back"]
    lines.extend(f"\n{each.name}:\n{each.diff}" for each in held if each.diff)
    lines.extend(
        f"\n{each.name}: its change is too long to be shown now, and is not accepted with the rest"
        for each in held
        if not each.diff
    )
    if report.digest:
        lines.append(f"\nto accept this: ksi mcp accept {report.name}")
    return "\n".join(lines)

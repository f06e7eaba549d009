"""The commands for servers of others: ``ksi mcp add``, ``list``, ``check``, ``accept`` …."""

import asyncio
import webbrowser
from typing import Annotated

import typer

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, UsageError
from ksi_daemon.protocol import NotFound
from ksi_daemon.protocol.paths import home_directory
from ksi_mcp import events as e

Name = Annotated[str, typer.Argument(metavar="NAME", help="The server's, as `ksi mcp list` shows.")]


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


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is to be called.")],
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
    as_json: JsonFlag = False,
) -> None:
    """Have agents call the tools of another program that speaks MCP.

    For example: ksi mcp add files -- npx -y @modelcontextprotocol/server-filesystem /data,
    or: ksi mcp add tracker https://mcp.tracker.example/mcp --oauth
    """
    is_url = target[0].startswith(("http://", "https://"))
    if is_url and len(target) > 1:
        raise UsageError("a URL has no arguments")
    server = e.McpServer(
        url=target[0] if is_url else "",
        command="" if is_url else target[0],
        args=tuple(target[1:]),
        headers=pairs(header, "--header"),
        variables=pairs(variable, "--variable"),
        oauth=oauth,
        prefix=prefix,
        allow=tuple(allow or ("*",)),
        deny=tuple(deny or ()),
        trust_annotations=trust,
    )
    with connect() as client:
        ask = e.McpAdd(name=name, server=server)
        added = client.request("mcp:add", ask, result_type=e.McpServerReport)
    output.show(added, report_text, as_json=as_json)


def remove(name: Name, *, as_json: JsonFlag = False) -> None:
    """Take back a server that was added."""
    with connect() as client:
        left = client.request("mcp:remove", e.McpRemove(name=name), result_type=e.McpServers)
    output.show(left, lambda _: f"{name} is removed", as_json=as_json)


def list_servers(*, as_json: JsonFlag = False) -> None:
    """List the servers whose tools agents can call."""
    with connect() as client:
        listed = client.request("mcp:list", e.McpList(), result_type=e.McpServers)
    output.show(listed, table, as_json=as_json)


def check(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The server's; all unless given.")
    ] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """Ask servers for their tools now, and show what is held back."""
    with connect() as client:
        checked = client.request("mcp:check", e.McpCheck(name=name), result_type=e.McpServers)
    output.show(checked, lambda all_: "\n\n".join(map(report_text, all_.servers)), as_json=as_json)


def accept(
    name: Name,
    tools: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOOL]…", help="Which, by the server's names; all unless given."),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't show and ask first.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Accept what a server says now of tools that are held back."""
    with connect() as client:
        found = found_server(
            client.request("mcp:list", e.McpList(tools=True), result_type=e.McpServers), name
        )
        if not found.held_back:
            raise NotFound(f"nothing of {name} is held back")
        if not yes:
            typer.echo(report_text(found))
            typer.confirm("accept this?", abort=True)
        ask = e.McpAccept(name=name, tools=tuple(tools or ()), digest=found.digest)
        accepted = client.request("mcp:accept", ask, result_type=e.McpServerReport)
    output.show(accepted, report_text, as_json=as_json)


def login(
    name: Name,
    *,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="For which tenant.")] = "default",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only show it.")
    ] = True,
) -> None:
    """Log in with a server, in the browser."""
    with connect() as client:
        found = found_server(
            client.request("mcp:list", e.McpList(), result_type=e.McpServers), name
        )
    if not found.oauth:
        raise UsageError(f"one doesn't log in with {name}: it was added without --oauth")

    from ksi_mcp.client.login import log_in  # noqa: PLC0415  it brings the SDK, which takes a second
    from ksi_mcp.client.logins import file_of  # noqa: PLC0415  as above

    async def show(url: str) -> None:
        output.note(f"log in here:\n{url}")
        if browser:
            await asyncio.to_thread(webbrowser.open, url)

    asyncio.run(log_in(found.target, file_of(home_directory(), tenant, name), show))
    with connect() as client:
        checked = client.request("mcp:check", e.McpCheck(name=name), result_type=e.McpServers)
    typer.echo(report_text(checked.servers[0]))


def found_server(listed: e.McpServers, name: str) -> e.McpServerReport:
    """Return a server of a list.

    Raises:
        NotFound: It has none of that name.
    """
    for each in listed.servers:
        if each.name == name:
            return each
    raise NotFound(f"there is no server {name!r}: see ksi mcp list")


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
    held = (each for each in report.tools if each.diff and each.status == "held_back")
    lines.extend(f"\n{each.name}:\n{each.diff}" for each in held)
    if report.held_back:
        lines.append(f"\nto accept this: ksi mcp accept {report.name}")
    return "\n".join(lines)

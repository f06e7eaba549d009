"""Issue, list and revoke tokens for programs that are not the owner's."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, UsageError
from ksi_daemon.protocol.events import Grants
from ksi_system import events as e

app = typer.Typer(rich_markup_mode=None, help="Issue, list and revoke tokens.")

DAY_S = 86400.0
Globs = list[str] | None


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Who will hold it, for the list and the log.")
    ],
    *,
    call: Annotated[
        Globs, typer.Option(metavar="GLOB", help="Events it may send; repeatable.")
    ] = None,
    scope: Annotated[
        Globs,
        typer.Option(metavar="GLOB", help="Events that it may send by the scope they declare."),
    ] = None,
    subscribe: Annotated[Globs, typer.Option(metavar="GLOB", help="Events it may see.")] = None,
    publish: Annotated[Globs, typer.Option(metavar="GLOB", help="Events it may publish.")] = None,
    serve: Annotated[Globs, typer.Option(metavar="GLOB", help="Events it may answer.")] = None,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="On whose behalf.")] = "default",
    user: Annotated[str | None, typer.Option(metavar="NAME", help="As which user.")] = None,
    impersonate: Annotated[
        bool, typer.Option("--impersonate", help="It may speak for others, as a server does.")
    ] = False,
    ttl_s: Annotated[
        float, typer.Option("--ttl-s", min=0, metavar="SECONDS", help="How long it is valid.")
    ] = DAY_S,
    as_json: JsonFlag = False,
) -> None:
    """Issue a token; it is shown once.

    It may do nothing that is not granted here.
    """
    grants = Grants(
        call=tuple(call or ()),
        scopes=tuple(scope or ()),
        subscribe=tuple(subscribe or ()),
        publish=tuple(publish or ()),
        serve=tuple(serve or ()),
        impersonate=impersonate,
    )
    if grants == Grants():
        raise UsageError("grant the token something, for example: --call 'completion:*'")
    ask = e.TokenCreate(name=name, ttl_s=ttl_s, grants=grants, tenant=tenant, user=user)
    with connect() as client:
        made = client.request("token:create", ask, result_type=e.TokenCreated)
    if not as_json:
        output.note(f"valid until {moment(made.expires_at)}; it is not shown again")
    output.show(made, lambda created: created.token, as_json=as_json)


@app.command("list")
def list_tokens(*, as_json: JsonFlag = False) -> None:
    """List the tokens that are valid, without their secrets."""
    with connect() as client:
        listed = client.request("token:list", result_type=e.TokenListed)
    output.show(listed, token_table, as_json=as_json)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `ksi token list` shows it.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """End a token, and the connections that were made with it."""
    with connect() as client:
        ask = e.TokenRevoke(id=token_id)
        revoked = client.request("token:revoke", ask, result_type=e.TokenRevoked)
    output.show(revoked, lambda done: f"token {done.id} is no longer valid", as_json=as_json)


def token_table(listed: e.TokenListed) -> str:
    """Lay out tokens."""
    if not listed.tokens:
        return "no token is valid; issue one with: ksi token create NAME --call GLOB"
    rows = [
        (each.id, each.name, each.tenant, moment(each.expires_at), granted(each.grants))
        for each in listed.tokens
    ]
    return output.table(("ID", "NAME", "TENANT", "VALID UNTIL", "MAY"), rows)


def granted(grants: Grants) -> str:
    """Write grants in a line."""
    told = [
        f"{verb} {' '.join(globs)}"
        for verb in ("call", "scopes", "subscribe", "publish", "serve")
        if (globs := getattr(grants, verb))
    ]
    told += [name for name in ("impersonate", "see_all") if getattr(grants, name)]
    return ", ".join(told)


def moment(at: float) -> str:
    """Write a time as the clock on this machine shows it."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M")

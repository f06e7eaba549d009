"""Keys for requests over HTTP, and the server that answers them: ``ksi key``, ``ksi http``."""

import os
import sys
from datetime import datetime
from typing import Annotated, Final

import typer

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Client, KsiError, NotFound
from ksi_daemon.protocol.names import did_you_mean, matches_any
from ksi_daemon.protocol.paths import home_directory
from ksi_http import events as e
from ksi_http import keys
from ksi_system.events import SystemDescribed

OF_TOOLS: Final = "tools:call:"  # and a tool's name: no event has those

key = typer.Typer(
    rich_markup_mode=None, help="Make, list and revoke the keys of requests over HTTP."
)

Tenant = Annotated[str, typer.Option(metavar="NAME", help="Whose keys.")]


@key.command()
def show(*, as_json: JsonFlag = False) -> None:
    """Show the key of this home's owner, which may do everything."""
    found = keys.home_key(home_directory())
    if found is None:
        raise NotFound("there is no key yet: the daemon makes one when it starts")
    output.show({"key": found}, lambda told: told["key"], as_json=as_json)


def scopes_known(client: Client) -> list[str]:
    """Return the scopes that events have; none where whoever asks may not know."""
    try:
        described = client.request("system:describe", result_type=SystemDescribed)
    except KsiError:
        return []
    return sorted({each.scope for each in described.events if each.scope is not None})


@key.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will hold it, for the list.")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", metavar="GLOB", help="What it may do: chat:*, '*:read', …; repeatable."
        ),
    ] = None,
    tenant: Tenant = "default",
    user: Annotated[str | None, typer.Option(metavar="NAME", help="For which user.")] = None,
    for_others: Annotated[
        bool, typer.Option("--for-others", help="Each request may say for which user it is.")
    ] = False,
    ttl_s: Annotated[
        float | None,
        typer.Option("--ttl-s", min=1, metavar="SECONDS", help="How long it is valid."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key; it is shown once."""
    if not scope:
        raise UsageError("say what it may do, for example: --scope 'chat:*'; '*' is everything")
    ask = e.HttpKeyCreate(
        name=name,
        scopes=tuple(scope),
        tenant=tenant,
        user=user,
        may_act_for_others=for_others,
        ttl_s=ttl_s,
    )
    with connect() as client:
        known = scopes_known(client)  # before: a key is shown once, whatever goes wrong
        made = client.request("http:key_create", ask, result_type=e.HttpKeyCreated)
    if not as_json:
        until = "for ever" if made.expires_at is None else f"until {moment(made.expires_at)}"
        output.note(f"valid {until}; it is not shown again")
    for each in scope if known else ():
        if not each.startswith(OF_TOOLS) and not any(matches_any(one, (each,)) for one in known):
            output.note(f"! no event has the scope {each!r}{did_you_mean(each, known)}")
    output.show(made, lambda created: created.key, as_json=as_json)


@key.command("list")
def list_keys(
    *,
    tenant: Tenant = "default",
    show_all: Annotated[
        bool, typer.Option("--all", help="Also those that are not valid any more.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List keys, without their secrets."""
    with connect() as client:
        ask = e.HttpKeyList(tenant=tenant, all=show_all)
        listed = client.request("http:key_list", ask, result_type=e.HttpKeysListed)
    output.show(listed, key_table, as_json=as_json)


@key.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `ksi key list` shows it.")],
    *,
    tenant: Tenant = "default",
    as_json: JsonFlag = False,
) -> None:
    """End a key, and whatever it has open.

    Where it is this home's own, the next start makes a new one.
    """
    with connect() as client:
        ask = e.HttpKeyRevoke(id=key_id, tenant=tenant)
        revoked = client.request("http:key_revoke", ask, result_type=e.HttpKeyRevoked)
    output.show(revoked, lambda done: f"key {done.id} is no longer valid", as_json=as_json)


def key_table(listed: e.HttpKeysListed) -> str:
    """Lay out keys."""
    if not listed.keys:
        return "no key is valid; make one with: ksi key create NAME --scope GLOB"
    rows = [
        (each.id, each.name, state(each), used(each), whose(each), " ".join(each.scopes))
        for each in listed.keys
    ]
    return output.table(("ID", "NAME", "VALID", "USED", "FOR", "SCOPES"), rows)


def state(each: e.HttpKey) -> str:
    """Say until when a key is valid, or since when it is not."""
    if each.revoked_at is not None:
        return f"revoked {moment(each.revoked_at)}"
    return "for ever" if each.expires_at is None else f"until {moment(each.expires_at)}"


def used(each: e.HttpKey) -> str:
    """Say when a key was last used."""
    return "never" if each.used_at is None else moment(each.used_at)


def whose(each: e.HttpKey) -> str:
    """Say for whom a key may speak."""
    return "any user" if each.may_act_for_others else each.user or each.tenant


def moment(at: datetime) -> str:
    """Write a time as the clock on this machine shows it."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M")


def http(
    *,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="In place of http.host.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="In place of http.port.")
    ] = None,
) -> None:
    """Answer HTTP requests, here and now.

    The daemon does this by itself where http.enabled is set. This is for a container of its own
    beside the daemon's, and for trying it out.
    """
    words = [sys.executable, "-P", "-m", "ksi_http"]
    words += ["--host", host] if host is not None else []
    words += ["--port", str(port)] if port is not None else []
    sys.stdout.flush()
    os.execv(sys.executable, words)

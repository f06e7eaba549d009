"""Take, list, look at, restore and delete checkpoints: ``ksi checkpoint``."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import typer

from ksi_checkpoint import events as e
from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag

app = typer.Typer(rich_markup_mode=None, help="Save plugins' memory, and give it back.")

IdArgument = Annotated[
    int, typer.Argument(metavar="ID", min=1, help="As `ksi checkpoint list` shows it.")
]


@app.command()
def create(
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Save what the plugins have in memory now."""
    ask = e.CheckpointCreate(reason=reason)
    with connect() as client:
        made = client.request("checkpoint:create", ask, result_type=e.CheckpointCreated)
    output.show(made, created_text, as_json=as_json)


@app.command("list")
def list_checkpoints(
    *,
    all_daemons: Annotated[
        bool, typer.Option("--all-daemons", help="Those of all daemons on this Postgres.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="How many, the newest first.")
    ] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List the checkpoints, the newest first."""
    ask = e.CheckpointList(limit=limit, all_daemons=all_daemons)
    with connect() as client:
        listed = client.request("checkpoint:list", ask, result_type=e.CheckpointListed)
    output.show(listed, list_text, as_json=as_json)


@app.command()
def show(
    checkpoint: IdArgument,
    plugin: Annotated[
        str | None, typer.Argument(metavar="[PLUGIN]", help="Whose state to show, as JSON.")
    ] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """Show what a checkpoint holds, or one plugin's state in it."""
    ask = e.CheckpointShow(id=checkpoint, plugin=plugin)
    with connect() as client:
        shown = client.request("checkpoint:show", ask, result_type=e.CheckpointShown)
    if plugin is None:
        output.show(shown, shown_text, as_json=as_json)
    else:
        output.show(shown, lambda found: output.encode_json(found.state), as_json=as_json)


@app.command()
def restore(
    checkpoint: Annotated[
        int | None, typer.Argument(metavar="[ID]", min=1, help="The newest unless given.")
    ] = None,
    *,
    plugin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this one; repeatable.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give the plugins back what a checkpoint holds of them."""
    ask = e.CheckpointRestore(id=checkpoint, plugins=tuple(plugin) if plugin else None)
    with connect() as client:
        done = client.request("checkpoint:restore", ask, result_type=e.CheckpointRestored)
    output.show(done, restored_text, as_json=as_json)


@app.command()
def delete(checkpoint: IdArgument, *, as_json: JsonFlag = False) -> None:
    """Delete a checkpoint."""
    ask = e.CheckpointDelete(id=checkpoint)
    with connect() as client:
        done = client.request("checkpoint:delete", ask, result_type=e.CheckpointDeleted)
    output.show(done, lambda gone: f"checkpoint {gone.id} is deleted", as_json=as_json)


@app.command()
def acknowledge(*, as_json: JsonFlag = False) -> None:
    """Say that the problems were seen, so that `ksi health` is good again."""
    with connect() as client:
        seen = client.request("checkpoint:acknowledge", result_type=e.CheckpointAcknowledged)
    output.show(
        seen, lambda done: "\n".join(done.problems) or "there were no problems", as_json=as_json
    )


# -- words ---------------------------------------------------------------------------------------


def created_text(made: e.CheckpointCreated) -> str:
    """Tell what was saved."""
    return _text(f"checkpoint {made.id}: saved {_names(made.plugins)}", made.problems)


def restored_text(done: e.CheckpointRestored) -> str:
    """Tell what was given back."""
    first = f"checkpoint {done.id} of {moment(done.taken_at)}: gave back {_names(done.plugins)}"
    older = [
        f"{each.plugin} got the state of checkpoint {each.from_checkpoint}"
        for each in done.plugins
        if each.from_checkpoint is not None
    ]
    return _text("\n".join([first, *older]), done.problems)


def list_text(listed: e.CheckpointListed) -> str:
    """Lay out checkpoints; whose they are where there are several daemons'."""
    if not listed.checkpoints:
        return "there are no checkpoints; take one with: ksi checkpoint create"
    several = any(each.daemon != listed.daemon for each in listed.checkpoints)
    headings = ("ID", "TAKEN AT", "STATES", "BYTES", *(["DAEMON"] if several else []), "REASON")
    rows = [
        (
            each.id,
            moment(each.taken_at),
            f"{each.plugins}" + (f" ({each.problems} failed)" if each.problems else ""),
            f"{each.size_bytes:_}",
            *([each.daemon] if several else []),
            each.reason,
        )
        for each in listed.checkpoints
    ]
    return output.table(headings, rows)


def shown_text(shown: e.CheckpointShown) -> str:
    """Describe a checkpoint."""
    head = output.fields(
        [
            ("checkpoint", shown.id),
            ("taken at", moment(shown.taken_at)),
            ("reason", shown.reason),
            ("daemon", shown.daemon),
        ]
    )
    rows = [(each.plugin, each.version, f"{each.size_bytes:_}") for each in shown.plugins]
    states = output.table(("PLUGIN", "VERSION", "BYTES"), rows) if rows else "no states"
    return _text(f"{head}\n\n{states}", shown.problems)


def moment(at: datetime) -> str:
    """Write a time as the clock on this machine shows it."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _names(plugins: Iterable[e.PluginState]) -> str:
    return ", ".join(each.plugin for each in plugins) or "nothing: no plugin has any state"


def _text(first: str, problems: Iterable[e.PluginProblem]) -> str:
    failed: list[tuple[Any, ...]] = [(each.plugin, each.error.message) for each in problems]
    return f"{first}\n\n{output.table(('FAILED', 'WHY'), failed)}" if failed else first

"""Orchestrations that there are: ``ksi orchestration``."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import typer

from ksi_cli import output
from ksi_cli.connection import connect, connect_async, show_answer
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Client, KsiError
from ksi_daemon.protocol.names import did_you_mean
from ksi_orchestration import events as e
from ksi_orchestration.commands import words

orchestration = typer.Typer(
    rich_markup_mode=None,
    help="See how agents work together, and have a say in it.",
)

PATIENCE_S: Final = 2.0
PAGE: Final = 500


def suggested(incomplete: str) -> list[tuple[str, str]]:
    """Suggest orchestrations; what goes wrong is told when the command is run."""
    try:
        with Client(timeout_s=PATIENCE_S) as client:
            listed = client.request("orchestration:list", {"limit": 100})
    except (KsiError, OSError):
        return []
    found = [(each["id"], output.clean(each["topic"][:60])) for each in listed["orchestrations"]]
    return [pair for pair in found if pair[0].startswith(incomplete)]


Which = Annotated[
    str,
    typer.Argument(metavar="ID", help="See: ksi orchestration list", autocompletion=suggested),
]


@orchestration.command("list")
def list_orchestrations(
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help=f"One of {', '.join(get_args(e.Status))}."),
    ] = None,
    pattern: Annotated[str | None, typer.Option(metavar="NAME", help="By this pattern.")] = None,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
    ] = 50,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where a list has ended.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List orchestrations, the newest first."""
    for each in status or ():
        if each not in get_args(e.Status):
            raise UsageError(f"{each} is no status{did_you_mean(each, get_args(e.Status))}")
    ask = {"status": status or None, "pattern": pattern, "limit": limit, "cursor": cursor}
    show_answer("orchestration:list", ask, e.OrchestrationsListed, words.list_text, as_json=as_json)


@orchestration.command()
def status(which: Which, *, as_json: JsonFlag = False) -> None:
    """Show how one stands, who takes part, and what came of it."""
    show_answer(
        "orchestration:status", {"id": which}, e.StatusTold, words.status_text, as_json=as_json
    )


@orchestration.command()
def message(
    which: Which,
    text: Annotated[list[str], typer.Argument(metavar="TEXT…", help="What to say.")],
    *,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="MEMBER", help="Only to this role or member; may be repeated."),
    ] = None,
    message_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Makes it safe to repeat: once for an id.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say something; members hear it with their next turns."""
    said = " ".join(text)
    if not said.strip():
        raise UsageError("say something: there is no text")
    ask = e.OrchestrationMessage(id=which, text=said, to=tuple(to or ()), message_id=message_id)
    show_answer("orchestration:message", ask, e.Utterance, heard_text, as_json=as_json)


def heard_text(said: e.Utterance) -> str:
    """Say who hears what was said."""
    return f"{', '.join(said.to) or 'nobody'} will hear it"


@orchestration.command()
def pause(which: Which, *, as_json: JsonFlag = False) -> None:
    """Have no more turns begun; those that run are finished."""
    _change("pause", {"id": which}, as_json=as_json)


@orchestration.command()
def resume(which: Which, *, as_json: JsonFlag = False) -> None:
    """Have a paused one go on."""
    _change("resume", {"id": which}, as_json=as_json)


@orchestration.command()
def stop(
    which: Which,
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """End one, with the turns that run."""
    _change("stop", {"id": which, "reason": reason}, as_json=as_json)


def _change(what: str, ask: dict[str, Any], *, as_json: bool) -> None:
    show_answer(f"orchestration:{what}", ask, e.Orchestration, changed_text, as_json=as_json)


def changed_text(it: e.Orchestration) -> str:
    """Say how an orchestration stands now."""
    return f"{it.id}  {words.standing(it)}"


@orchestration.command()
def transcript(
    which: Which,
    *,
    after: Annotated[
        int, typer.Option(metavar="N", min=0, help="Only what was said after this number.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.md", help="Write it as Markdown.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what was said."""
    with connect() as client:
        told, said = read(client, which, after)
    if out is not None:
        write_document(out, told, said)
    last = said[-1].number if said else after
    whole = e.TranscriptTold(utterances=said, after=last, status=told.orchestration.status)
    if as_json or out is None:
        output.show(whole, lambda it: words.transcript_text(it.utterances), as_json=as_json)


def read(
    client: Client, which: str, after: int = 0
) -> tuple[e.StatusTold, tuple[e.Utterance, ...]]:
    """Return how an orchestration stands, and what was said in it."""
    told = client.request("orchestration:status", {"id": which}, result_type=e.StatusTold)
    said: list[e.Utterance] = []
    while True:
        ask = {"id": which, "after": after, "limit": PAGE}
        page = client.request("orchestration:transcript", ask, result_type=e.TranscriptTold)
        said += page.utterances
        after = page.after
        if len(page.utterances) < PAGE:
            return told, tuple(said)


def write_document(out: Path, told: e.StatusTold, said: tuple[e.Utterance, ...]) -> None:
    """Write an orchestration down as Markdown.

    Raises:
        UsageError: The file can't be written.
    """
    try:
        out.write_text(words.document(told, said), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} can't be written: {error.strerror or error}") from error
    output.note(f"written to {output.displayed(out)}")


@orchestration.command()
def follow(
    which: Which,
    *,
    after: Annotated[
        int, typer.Option(metavar="N", min=0, help="Only what was said after this number.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each thing that happens as one JSON object.")
    ] = False,
) -> None:
    """Show one as it goes on, until it has ended.

    Ctrl-C asks whether to pause it, to stop it, or to leave it to itself.
    """
    raise typer.Exit(attend(which, after=after, as_json=as_json))


def attend(which: str, *, after: int = 0, as_json: bool, out: Path | None = None) -> int:
    """Show an orchestration until it has ended, or is left; return the exit code."""
    from ksi_orchestration.commands import attending  # noqa: PLC0415  it brings asyncio and rich

    async def run() -> tuple[str, bool]:
        async with connect_async() as client:
            show = attending.show_for(as_json=as_json)
            attended = attending.Attending(client, which, show)
            return await attended.run(after), attended.was_stopped

    left, was_stopped = asyncio.run(run())
    with connect() as client:
        told, said = read(client, which)
    if out is not None:
        write_document(out, told, said)
    return _tell(told, said, left, was_stopped=was_stopped, as_json=as_json)


def _tell(
    told: e.StatusTold,
    said: tuple[e.Utterance, ...],
    left: str,
    *,
    was_stopped: bool,
    as_json: bool,
) -> int:
    it = told.orchestration
    if left != "ended":
        output.note(how_to_go_on(it.id))
        return output.INTERRUPTED if left == "interrupted" else 0
    if as_json:
        output.write_json({"kind": "ended", "orchestration": it, "members": told.members})
    else:
        if it.result and it.status == "succeeded" and said and said[-1].text != it.result:
            output.write(f"result:\n{it.result}")
        output.note(f"{it.id}  {words.standing(it)}")
        if it.status == "failed" and it.error is not None:
            output.note(f"ksi: {it.error.message}")
    if it.status == "stopped":
        return output.INTERRUPTED if was_stopped else output.FAILED
    return 0 if it.status == "succeeded" else output.FAILED


def how_to_go_on(which: str) -> str:
    """Say how one comes back to an orchestration."""
    return f"it goes on in the daemon: ksi orchestration follow {which}"

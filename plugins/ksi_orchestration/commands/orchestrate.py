"""Have several agents work on something: ``ksi orchestrate``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from ksi_cli import completion, output
from ksi_cli.connection import connect
from ksi_cli.output import UsageError
from ksi_client import Client, KsiError
from ksi_orchestration import events as e
from ksi_orchestration.commands.orchestrations import attend, how_to_go_on, read, write_document

STDIN: Final = "-"
PATIENCE_S: Final = 2.0
SUFFIXES: Final = (".yaml", ".yml")


def modes(incomplete: str) -> list[tuple[str, str]]:
    """Suggest patterns; what goes wrong is told when the command is run."""
    try:
        with Client(timeout_s=PATIENCE_S) as client:
            listed = client.request("orchestration:patterns")
    except (KsiError, OSError):
        return []
    found = [(each["name"], output.clean(each["description"])) for each in listed["patterns"]]
    return [pair for pair in found if pair[0].startswith(incomplete)]


def orchestrate(
    topic: Annotated[
        list[str], typer.Argument(metavar="TOPIC…", help="What it is about; - is stdin.")
    ],
    *,
    mode: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="How they work together: ksi pattern list; or a file of your own.",
            autocompletion=modes,
        ),
    ] = "debate",
    agents: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Who takes part, in order; or ROLE=AGENT,…"),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100, metavar="N", help="Of every talk.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Repeat it: each for the next member; or ROLE=MODEL.",
            autocompletion=completion.models,
        ),
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option(metavar="DOLLARS", help="What it may cost at most.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.md", help="Write it down, too.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Start it, and leave it to itself.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each thing that happens as one JSON object.")
    ] = False,
) -> None:
    """Have several agents work on something, and watch them.

    Ctrl-C asks whether to pause it, to stop it, or to leave it to itself. What was started goes on
    in the daemon whatever happens here.
    """
    if budget_usd is not None and budget_usd <= 0:
        raise UsageError("a budget is more than nothing: --budget-usd 0.50")
    request = e.OrchestrationStart(
        topic=said(topic),
        agents=given([] if agents is None else agents.split(","), "--agents"),
        models=given(model or [], "--model"),
        rounds=rounds,
        budget=e.Budget(cost_usd=budget_usd),
        **by(mode),
    )
    with connect() as client:
        started = client.request("orchestration:start", request, result_type=e.Orchestration)
        if detach:
            output.show(started, detached_text, as_json=as_json)
            if out is not None:
                write_document(out, *read(client, started.id))
            return
    raise typer.Exit(attend(started.id, as_json=as_json, out=out))


def detached_text(it: e.Orchestration) -> str:
    """Say which orchestration was started."""
    return f"{it.id}  {how_to_go_on(it.id)}"


def said(words: Sequence[str]) -> str:
    """Return the topic: the words, or what comes on stdin.

    Raises:
        UsageError: That is nothing.
    """
    text = " ".join(words)
    if text == STDIN:
        text = sys.stdin.read()
    if not text.strip():
        raise UsageError("what is it about? There is no topic")
    return text


def by(mode: str) -> dict[str, str]:
    """Return the pattern that is meant: a name, or the text of a file.

    Raises:
        UsageError: The file can't be read.
    """
    path = Path(mode)
    if path.suffix not in SUFFIXES and "/" not in mode:
        return {"pattern": mode}
    try:
        return {"document": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"the pattern {output.displayed(path)} can't be read: {why}") from error


def given(words: Sequence[str], option: str) -> tuple[str, ...] | dict[str, str]:
    """Return who or what is given: in order, or by role.

    Raises:
        UsageError: It is neither.
    """
    found = [word.strip() for word in words if word.strip()]
    pairs = [word.partition("=") for word in found]
    named = {role.strip(): value.strip() for role, is_named, value in pairs if is_named}
    if named and len(named) < len(found):
        raise UsageError(f"{option}: give them in order, or each to a role of its own: ROLE=NAME")
    return named or tuple(found)

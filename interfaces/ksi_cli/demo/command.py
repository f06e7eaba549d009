"""``ksi demo``: what it takes, and what it tells a program."""

import sys
from typing import Annotated

import typer

from ksi_cli import completion, output
from ksi_cli.output import JsonFlag, UsageError


def demo(
    *,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Press no keys: all of it, one after the other.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Which one the agents work with; the default unless given.",
            autocompletion=completion.models,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """See what KSI does, in two minutes.

    It has a daemon and a directory of its own, which are gone in the end; yours are left alone.
    Whatever it claims it looks at, and ends with 1 where that is not so. --json implies --yes.
    """
    if not (yes or as_json or sys.stdin.isatty()):
        raise UsageError("there is no terminal to press keys in; have it go by itself: --yes")
    from ksi_cli.demo import show  # noqa: PLC0415  it brings rich and asyncio

    report = show.run(model, is_attended=not (yes or as_json), is_silent=as_json)
    if as_json:
        output.write_json(report)


__all__ = ["demo"]

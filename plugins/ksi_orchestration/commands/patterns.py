"""What agents can do together: ``ksi pattern``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from ksi_cli import output
from ksi_cli.connection import connect, show_answer
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Client, KsiError
from ksi_orchestration import events as e

pattern = typer.Typer(
    rich_markup_mode=None,
    help="See how agents can work together, and check patterns.",
)

MAX_BYTES: Final = 1_000_000
MAX_PATH: Final = 1000
STDIN: Final = "-"
PATIENCE_S: Final = 2.0


def suggested(incomplete: str) -> list[str]:
    """Suggest patterns; what goes wrong is told when the command is run."""
    try:
        with Client(timeout_s=PATIENCE_S) as client:
            listed = client.request("orchestration:patterns", {}, result_type=e.PatternsListed)
    except (KsiError, OSError):
        return []
    return [each.name for each in listed.patterns if each.name.startswith(incomplete)]


# -- shown ----------------------------------------------------------------------------------------


@pattern.command("list")
def list_patterns(*, as_json: JsonFlag = False) -> None:
    """List the patterns there are, and where they are from.

    They are built in, or brought by plugins, or files in the folder `patterns` of the home. Of
    files that hold none it is told what is wrong.
    """
    with connect() as client:
        listed = client.request("orchestration:patterns", {}, result_type=e.PatternsListed)
    output.show(listed, list_text, as_json=as_json)
    if not as_json:
        for problem in listed.problems:
            output.note(problem_text(problem))


def list_text(listed: e.PatternsListed) -> str:
    """Lay patterns out."""
    rows = [(each.name, origin_text(each.origin), each.description) for each in listed.patterns]
    return output.table(("PATTERN", "IS", "WHAT IT IS GOOD FOR"), rows)


def origin_text(origin: str) -> str:
    """Say where a pattern is from, shortly."""
    return Path(origin).name if "/" in origin else origin


@pattern.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="See: ksi pattern list", autocompletion=suggested),
    ],
    *,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="All that it comes to, with every default.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a pattern: the text that one of your own can be made of.

    Save it as a file, change it, and give it to `ksi orchestrate --mode FILE.yaml`.
    """

    def text(shown: e.PatternShown) -> str:
        if resolved:
            return json.dumps(shown.resolved, indent=2, ensure_ascii=False)
        return shown.text

    ask = e.OrchestrationPattern(name=name)
    show_answer("orchestration:pattern", ask, e.PatternShown, text, as_json=as_json)


@pattern.command()
def schema(*, as_json: JsonFlag = False) -> None:
    """Print the JSON Schema of patterns, for editors."""
    with connect() as client:
        given = client.request("orchestration:schema", {}, result_type=e.PatternSchemaGiven)
    if as_json:
        output.write_json(given.json_schema)
    else:
        output.write(json.dumps(given.json_schema, indent=2, ensure_ascii=False))


# -- checked --------------------------------------------------------------------------------------


@pattern.command()
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="YAML; - is what comes on stdin.")
    ],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Check patterns without starting anything.

    Of what is wrong file, line and field are told.
    """
    validated = _validated(files)
    output.show(validated, validated_text, as_json=as_json)
    if validated.is_valid:
        return
    if not as_json:
        for problem in validated.problems:
            output.note(problem_text(problem))
    raise typer.Exit(output.FAILED)


def _validated(files: list[str]) -> e.PatternValidated:
    """Have each file checked, and return what is true of all."""
    requests = [e.OrchestrationValidate(text=_read(file), path=_path(file)) for file in files]
    with connect() as client:
        found: list[e.PatternValidated] = [
            client.request("orchestration:validate", request, result_type=e.PatternValidated)
            for request in requests
        ]
    return e.PatternValidated(
        is_valid=all(each.is_valid for each in found),
        problems=tuple(problem for each in found for problem in each.problems),
        names=tuple(name for each in found for name in each.names),
    )


def validated_text(validated: e.PatternValidated) -> str:
    """Say which patterns are sound."""
    return f"{len(validated.names)} sound: {', '.join(validated.names)}" if validated.names else ""


def problem_text(problem: e.PatternProblem) -> str:
    """Write a problem as compilers do, so that editors find its place."""
    where = problem.path if problem.line is None else f"{problem.path}:{problem.line}"
    field = f"{problem.field}: " if problem.field else ""
    return f"{where}: {field}{problem.message}"


def _path(file: str) -> str:
    return "stdin" if file == STDIN else output.displayed(file)[-MAX_PATH:]


def _read(file: str) -> str:
    """Return a file's text.

    Raises:
        UsageError: It can't be read, or is none that could hold a pattern.
    """
    where = _path(file)
    try:
        if file == STDIN:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{where} can't be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where} is larger than {MAX_BYTES:,} bytes: that is no pattern")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{where}:{line}: it is no UTF-8 text") from error
    if not text:
        raise UsageError(f"{where} is empty")
    return text

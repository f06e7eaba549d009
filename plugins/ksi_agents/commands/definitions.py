"""What agents are: ``ksi apply``, and those commands of ``ksi agent`` that are of definitions."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from ksi_agents import events as e
from ksi_cli import output
from ksi_cli.connection import connect, show_answer
from ksi_cli.output import JsonFlag, UsageError

app = typer.Typer(rich_markup_mode=None)

SUFFIXES: Final = frozenset({".md", ".markdown", ".yaml", ".yml", ".json"})
PROSE: Final = frozenset({".md", ".markdown"})
MAX_BYTES: Final = 1_000_000
MAX_PATH: Final = 1000
STDIN: Final = "-"

Name = Annotated[str, typer.Argument(metavar="NAME", help="See: ksi agent definitions")]
VersionOption = Annotated[
    int | None, typer.Option("--version", metavar="N", min=1, help="Which one; the newest.")
]
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE|DIR…", help="Markdown, YAML or JSON; - is what comes on stdin."),
]
FilesOption = Annotated[
    list[str],
    typer.Option("--file", "-f", metavar="FILE|DIR", help="May be given again; - reads stdin."),
]
SetOption = Annotated[
    str, typer.Option("--set", metavar="NAME", help="What is applied together, for --prune.")
]
PruneFlag = Annotated[
    bool, typer.Option("--prune", help="Delete what was applied with this set and is gone.")
]


# -- applied --------------------------------------------------------------------------------------


def apply(
    files: FilesOption,
    *,
    set_name: SetOption = "default",
    prune: PruneFlag = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep definitions of agents: all of these files, or none.

    What is as it was stays at its version; of what changes the diff is shown. Agents that run go on
    with the version they have until they are restarted.
    """
    applied = _ask_apply(files, set_name, prune=prune, dry_run=dry_run)
    _show_applied(applied, is_dry_run=dry_run, as_json=as_json)


@app.command()
def diff(
    files: Files,
    *,
    set_name: SetOption = "default",
    prune: PruneFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what `ksi apply` would change.

    The exit code is 1 where that is something.
    """
    applied = _ask_apply(files, set_name, prune=prune, dry_run=True)
    _show_applied(applied, is_dry_run=True, as_json=as_json)
    if any(each.action != "unchanged" for each in applied.applied):
        raise typer.Exit(output.FAILED)


def _ask_apply(
    files: Sequence[str], set_name: str, *, prune: bool, dry_run: bool
) -> e.AgentApplied:
    request = e.AgentApply(
        documents=documents_of(files), set_name=set_name, prune=prune, dry_run=dry_run
    )
    with connect() as client:
        applied: e.AgentApplied = client.request("agent:apply", request, result_type=e.AgentApplied)
    return applied


def _show_applied(applied: e.AgentApplied, *, is_dry_run: bool, as_json: bool) -> None:
    output.show(applied, lambda done: applied_text(done, is_dry_run=is_dry_run), as_json=as_json)
    _show_problems(applied.problems, "nothing is changed", as_json=as_json)


def applied_text(applied: e.AgentApplied, *, is_dry_run: bool = False) -> str:
    """Say what became of definitions, with what differs."""
    would = "would be " if is_dry_run else ""
    lines = []
    for each in applied.applied:
        is_same = each.action == "unchanged"
        told = "unchanged" if is_same else f"{would}{each.action}"
        version = "" if each.action == "pruned" else f", version {each.version}"
        lines.append(f"{each.name}  {told}{version}")
        if each.action == "changed" or is_dry_run:
            lines += [f"  {line}" for line in each.diff.splitlines()]
    return "\n".join(lines)


@app.command()
def validate(files: Files, *, as_json: JsonFlag = False) -> None:
    """Check definitions without keeping them.

    Of what is wrong file, line and field are told.
    """
    request = e.AgentValidate(documents=documents_of(files))
    with connect() as client:
        validated = client.request("agent:validate", request, result_type=e.AgentValidated)
    output.show(validated, validated_text, as_json=as_json)
    _show_problems(validated.problems, "they can't be applied", as_json=as_json)


def validated_text(validated: e.AgentValidated) -> str:
    """Say which definitions are sound."""
    if not validated.is_valid:
        return ""
    count = len(validated.agents)
    return f"{count} sound: {', '.join(validated.agents)}"


def _show_problems(problems: Sequence[e.Problem], so: str, *, as_json: bool) -> None:
    """Tell what is wrong, on stderr; where it is more than warnings the command has failed."""
    is_wrong = any(not each.is_warning for each in problems)
    if not as_json:
        for each in problems:
            output.note(problem_text(each))
        if is_wrong:
            output.note(f"ksi: {so}")
    if is_wrong:
        raise typer.Exit(output.FAILED)


def problem_text(problem: e.Problem) -> str:
    """Write a problem as compilers do, so that editors find its place."""
    where = problem.path if problem.line is None else f"{problem.path}:{problem.line}"
    kind = "warning: " if problem.is_warning else ""
    field = f"{problem.field}: " if problem.field else ""
    return f"{where}: {kind}{field}{problem.message}"


# -- files ----------------------------------------------------------------------------------------


def documents_of(words: Iterable[str]) -> tuple[e.Document, ...]:
    """Read files, and those of directories, however deep.

    Of a directory only Markdown that begins with front matter is taken: others are prose.

    Raises:
        UsageError: One can't be read, or there are none.
    """
    found = {path: text for word in words for path, text in _texts(word)}
    if not found:
        raise UsageError("there are no definitions there: Markdown, YAML or JSON")
    return tuple(e.Document(text=text, path=path[-MAX_PATH:]) for path, text in found.items())


def _texts(word: str) -> Iterator[tuple[str, str]]:
    if word == STDIN:
        yield "stdin", _text_of("stdin", sys.stdin.buffer.read(MAX_BYTES + 1))
        return
    path = Path(word)
    if not path.is_dir():
        yield output.displayed(path), _read(path)
        return
    for each in sorted(path.rglob("*")):
        is_hidden = any(part.startswith(".") for part in each.relative_to(path).parts)
        if each.suffix.lower() in SUFFIXES and each.is_file() and not is_hidden:
            text = _read(each)
            if each.suffix.lower() not in PROSE or text.removeprefix("\ufeff").startswith("---"):
                yield output.displayed(each), text


def _read(path: Path) -> str:
    where = output.displayed(path)
    try:
        with path.open("rb") as file:
            return _text_of(where, file.read(MAX_BYTES + 1))
    except OSError as error:
        raise UsageError(f"{where} can't be read: {error.strerror}") from error


def _text_of(where: str, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where} is larger than {MAX_BYTES:,} bytes: that is no definition")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{where}:{line}: it is no UTF-8 text") from error
    if not text:
        raise UsageError(f"{where} is empty")
    return text


# -- shown ----------------------------------------------------------------------------------------


@app.command()
def definitions(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Which: * is any characters.")
    ] = "*",
    *,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
    ] = 200,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where a list has ended.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what agents can be, and where that is from."""
    ask = e.AgentDefinitions(pattern=pattern, limit=limit, cursor=cursor)
    show_answer("agent:definitions", ask, e.DefinitionsListed, definitions_text, as_json=as_json)


def definitions_text(listed: e.DefinitionsListed) -> str:
    """Lay definitions out."""
    if not listed.definitions:
        return "there are no definitions of that name"
    rows = [
        (each.name, each.version, each.origin, ", ".join(each.model), each.description)
        for each in listed.definitions
    ]
    text = output.table(("NAME", "V", "IS", "MODEL", "DESCRIPTION"), rows)
    return f"{text}\nmore: --cursor {listed.cursor}" if listed.cursor else text


@app.command()
def show(
    name: Name,
    *,
    version: VersionOption = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="All that it comes to, with every default.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a definition as it was given, or all that it comes to."""

    def text(shown: e.DefinitionShown) -> str:
        if resolved:
            return json.dumps(shown.resolved, indent=2, ensure_ascii=False)
        return shown.text

    ask = {"name": name, "version": version}
    show_answer("agent:definition", ask, e.DefinitionShown, text, as_json=as_json)


@app.command()
def history(
    name: Name,
    *,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
    ] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List the versions of a definition, and their changes."""
    ask = {"name": name, "limit": limit}
    show_answer("agent:history", ask, e.HistoryListed, history_text, as_json=as_json)


def history_text(listed: e.HistoryListed) -> str:
    """Lay versions out, with their diffs."""
    if not listed.versions:
        return f"{listed.name} is as it came: nobody has applied another"
    lines = []
    for each in listed.versions:
        at = each.applied_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        current = "  (current)" if each.is_current else ""
        lines.append(f"version {each.version}  {at}  by {output.clean(each.by)}{current}")
        lines += [f"  {line}" for line in each.diff.splitlines()[2:]]
    return "\n".join(lines)


@app.command()
def rollback(
    name: Name,
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", min=1, help="The one before unless given.")
    ] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """Make an earlier version of a definition the newest."""
    ask = {"name": name, "version": version}
    with connect() as client:
        applied = client.request("agent:rollback", ask, result_type=e.AgentApplied)
    _show_applied(applied, is_dry_run=False, as_json=as_json)


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Definitions.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Delete definitions.

    Agents that run by one keep its version until they end.
    """

    def text(removed: e.AgentRemoved) -> str:
        return "\n".join(f"{name}  deleted" for name in removed.names)

    with connect() as client:
        removed = client.request("agent:remove", {"names": list(names)}, result_type=e.AgentRemoved)
    output.show(removed, text, as_json=as_json)
    missing = sorted(set(names) - set(removed.names))
    if missing:
        output.note(f"ksi: there is no definition {', '.join(missing)}")
        raise typer.Exit(output.NOT_FOUND)


@app.command()
def schema(*, as_json: JsonFlag = False) -> None:
    """Print the JSON Schema of definitions, for editors."""
    with connect() as client:
        given = client.request("agent:schema", {}, result_type=e.SchemaGiven)
    if as_json:
        output.write_json(given.json_schema)
    else:
        output.write(json.dumps(given.json_schema, indent=2, ensure_ascii=False))

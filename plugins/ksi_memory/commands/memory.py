"""What is remembered, and which schemas there are: ``ksi memory`` and ``ksi schema``."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import typer

from ksi_cli import output
from ksi_cli.connection import connect, show_answer
from ksi_cli.output import JsonFlag, UsageError
from ksi_memory import events as e
from ksi_memory.tables import TABLES

memory = typer.Typer(
    rich_markup_mode=None, help="See what is remembered, and why; correct it, forget it."
)
schema = typer.Typer(rich_markup_mode=None, help="Register JSON Schemas, and the tables they make.")

LINES_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 1024 * 1024
TEXT_CHARACTERS: Final = 60

Named = Annotated[
    str, typer.Argument(metavar="ITEM", help="Its key, its id, or TABLE/KEY. See: ksi memory list")
]
TableOption = Annotated[str | None, typer.Option("--table", metavar="TABLE", help="In this table.")]
OwnerOption = Annotated[
    str | None, typer.Option("--owner", metavar="USER", help="Of this user; '' is everybody.")
]
AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="TIME", help="As it was then: 2026-03-01T12:00Z.")
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept.")]
Kind = Annotated[str, typer.Option(metavar="KIND", help="table, model, agent, tool …")]
SchemaName = Annotated[str, typer.Argument(metavar="NAME", help="See: ksi schema list")]


def named(item: str, table: str | None, owner: str | None) -> dict[str, Any]:
    """Return the fields by which a request names an item."""
    try:
        return {"id": str(UUID(item))}
    except ValueError:
        pass
    head, slash, rest = item.partition("/")
    if slash and rest and table is None and head in TABLES:
        table, item = head, rest
    return {"key": item, "table": table, "owner": owner}


# -- items ----------------------------------------------------------------------------------------


@memory.command("list")
def list_items(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Of this table; all unless given.")
    ] = None,
    *,
    owner: OwnerOption = None,
    category: Annotated[str | None, typer.Option(metavar="NAME", help="Of this one.")] = None,
    origin: Annotated[
        str | None, typer.Option(metavar="ORIGIN", help="given, said or derived.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, metavar="N", help="How many.")
    ] = 100,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where a list has ended.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what is remembered, by table and key."""
    ask = {
        "table": table,
        "owner": owner,
        "category": category,
        "origin": origin,
        "limit": limit,
        "cursor": cursor,
    }
    show_answer("memory:list", ask, e.MemoryListed, list_text, as_json=as_json)


def list_text(listed: e.MemoryListed) -> str:
    """Lay items out."""
    if not listed.items:
        return "nothing is remembered there"
    rows = [
        (
            each.table,
            output.clean(each.key)[:30],
            each.version,
            ("pinned, " if each.is_pinned else "") + each.origin,
            output.clean(each.owner)[:12] or "all",
            output.clean(each.title)[:TEXT_CHARACTERS],
        )
        for each in listed.items
    ]
    text = output.table(("TABLE", "KEY", "V", "IS", "OF", "TITLE"), rows)
    if listed.next:
        text += f"\nmore: --cursor {listed.next}"
    return text


@memory.command()
def get(
    item: Named,
    *,
    table: TableOption = None,
    owner: OwnerOption = None,
    as_of: AsOf = None,
    as_json: JsonFlag = False,
) -> None:
    """Show an item, as it is or as it was."""
    ask = {**named(item, table, owner), "as_of": time_of(as_of)}
    show_answer("memory:get", ask, e.Item, item_text, as_json=as_json)


def item_text(item: e.Item) -> str:
    """Write an item's page."""
    facts = output.fields(
        [
            ("item", f"{item.table}/{output.clean(item.key)}"),
            ("id", item.id),
            ("version", f"{item.version}, {item.origin}{', pinned' if item.is_pinned else ''}"),
            ("of", output.clean(item.owner) or "everybody"),
            ("title", output.clean(item.title)),
            ("category", output.clean(item.category or "")),
            ("persons", output.clean(", ".join(item.persons))),
            ("when", _span(item.starts_at, item.ends_at)),
            ("holds", _span(item.valid_from, item.valid_to)),
            ("leads to", ", ".join(output.clean(edge_text(each)) for each in item.edges)),
            ("from", "; ".join(output.clean(source_text(each)) for each in item.sources)),
            ("attributes", output.encode_json(item.attributes) if item.attributes else ""),
        ]
    )
    return f"{facts}\n\n{output.clean(item.body)}" if item.body else facts


def edge_text(edge: e.Edge) -> str:
    """Say where an edge leads."""
    weight = "" if edge.weight == 1 else f", {edge.weight:.2g}"
    return f"{edge.to} ({edge.relation}{weight})"


def source_text(source: e.Source) -> str:
    """Say where something comes from."""
    told = f" ({source.told})" if source.told else ""
    if source.kind == "message":
        what = "all" if source.message is None else f"message {source.message}"
        return f"{what} of {source.conversation_id}{told}"
    if source.kind == "item":
        return f"version {source.version} of {source.item}{told}"
    if source.kind == "run":
        return f"run {source.run_id}{told}"
    return source.told or "somebody"


@memory.command()
def why(
    item: Named,
    *,
    table: TableOption = None,
    owner: OwnerOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell where an item comes from, version by version."""
    ask = named(item, table, owner)
    show_answer("memory:why", ask, e.MemoryReasons, reasons_text, as_json=as_json)


def reasons_text(reasons: e.MemoryReasons) -> str:
    """Draw the chain of sources."""
    lines = [line for each in reasons.versions for line in _because(each, 0)]
    if reasons.derived:
        lines += ["", f"derived from it: {', '.join(reasons.derived)}"]
    return "\n".join(lines)


def _because(link: e.Because, depth: int) -> Iterator[str]:
    at = "" if link.at is None else f"  {link.at.astimezone():%Y-%m-%d %H:%M}"
    yield f"{'  ' * depth}{output.clean(link.what)}{at}"
    if link.text:
        text = output.clean(" ".join(link.text.split()))
        yield f"{'  ' * depth}  “{text[:200]}{'…' if len(text) > 200 else ''}”"
    for each in link.rests_on:
        yield from _because(each, depth + 1)


@memory.command()
def correct(
    item: Named,
    body: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="What is right; - reads it.")
    ] = None,
    *,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Another title.")] = None,
    attributes: Annotated[
        str | None, typer.Option(metavar="JSON", help="Other attributes, all of them.")
    ] = None,
    reason: Reason = "",
    table: TableOption = None,
    owner: OwnerOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what is right; no machine changes it after that."""
    if body is None and title is None and attributes is None:
        raise UsageError("say what is right: a text, --title or --attributes")
    ask = {
        **named(item, table, owner),
        "body": sys.stdin.read() if body == "-" else body,
        "title": title,
        "attributes": None if attributes is None else json_object("--attributes", attributes),
        "reason": reason,
    }
    show_answer("memory:correct", ask, e.Item, item_text, as_json=as_json)


@memory.command()
def pin(
    item: Named,
    *,
    off: Annotated[bool, typer.Option("--off", help="Let it go.")] = False,
    table: TableOption = None,
    owner: OwnerOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Have nothing but a person change an item."""
    ask = {**named(item, table, owner), "pinned": not off}

    def text(pinned: e.Item) -> str:
        return f"{pinned.table}/{output.clean(pinned.key)} is {'let go' if off else 'pinned'}"

    show_answer("memory:pin", ask, e.Item, text, as_json=as_json)


@memory.command()
def forget(
    item: Annotated[
        str | None, typer.Argument(metavar="[ITEM]", help="Its key, its id, or TABLE/KEY.")
    ] = None,
    *,
    everything_of: Annotated[
        str | None, typer.Option(metavar="USER", help="All that belongs to this user.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    reason: Reason = "",
    table: TableOption = None,
    owner: OwnerOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Forget an item, in all versions, and what was derived from it alone."""
    if (item is None) == (everything_of is None):
        raise UsageError("name an item, or a user by --everything-of")
    which = {} if item is None else named(item, table, owner)
    ask = {**which, "everything_of": everything_of, "reason": reason, "dry_run": dry_run}
    show_answer("memory:forget", ask, e.MemoryForgotten, forgotten_text, as_json=as_json)


def forgotten_text(forgotten: e.MemoryForgotten) -> str:
    """Say what went, and where copies may be."""
    would = "would be forgotten" if forgotten.dry_run else "forgotten"
    lines = [f"{len(forgotten.ids)} {would}: {', '.join(forgotten.ids[:20]) or 'nothing'}"]
    if forgotten.uploads:
        lines.append(
            f"uploads that {'would go' if forgotten.dry_run else 'went'}: {forgotten.uploads}"
        )
    if forgotten.rewritten:
        lines.append(f"made anew without it: {', '.join(forgotten.rewritten[:20])}")
    if forgotten.checked:
        lines.append(f"looked for in {len(forgotten.checked)} columns, and not found")
    lines += [f"still in: {output.clean(each)}" for each in forgotten.kept]
    return _wrapped(lines)


@memory.command()
def stats(*, as_json: JsonFlag = False) -> None:
    """Show how much is remembered, and how far the vectors are."""
    show_answer("memory:stats", e.MemoryStats(), e.MemoryCounted, stats_text, as_json=as_json)


def stats_text(counted: e.MemoryCounted) -> str:
    """Lay figures out."""
    if not counted.tables:
        return "nothing is remembered yet; ksi upsert PATH, or just talk: ksi chat"
    rows = [
        (each.table, f"{each.items:,}", f"{each.versions:,}", f"{each.words:,}")
        for each in counted.tables
    ]
    parts = [output.table(("TABLE", "ITEMS", "VERSIONS", "WORDS"), rows)]
    if counted.embedders:
        models = [
            (
                each.model + ("" if each.is_current else " (old)"),
                each.dimension,
                f"{each.vectors:,}",
                f"{each.waiting:,}",
                f"{each.set_aside:,}",
            )
            for each in counted.embedders
        ]
        parts.append(output.table(("MODEL", "SIZE", "VECTORS", "WAIT", "SET ASIDE"), models))
        parts += [
            f"set aside: {output.clean(reason)}"
            for each in counted.embedders
            for reason in each.why_set_aside
        ]
    parts.append(f"{counted.edges:,} edges; {counted.forgotten:,} forgotten")
    return "\n\n".join(parts)


@memory.command()
def reembed(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The one of the settings unless given.")
    ] = None,
    *,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what was set aside, too.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make vectors anew; the old ones answer until all are there."""
    ask = {"model": model, "retry_set_aside": retry}

    def text(begun: e.MemoryReembedding) -> str:
        return f"{begun.waiting:,} wait for {begun.model}; see: ksi memory stats"

    show_answer("memory:reembed", ask, e.MemoryReembedding, text, as_json=as_json)


# -- out and in -----------------------------------------------------------------------------------


@memory.command("export")
def export_items(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to; standard output unless given."),
    ] = None,
    *,
    table: TableOption = None,
    owner: OwnerOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write all versions of all items as lines of JSON."""
    if path is None and as_json:
        raise UsageError("--json tells how many were written: name a file for the lines")
    with connect() as client:
        chunks = client.stream("memory:export", e.MemoryExport(table=table, owner=owner))
        if path is None:
            for chunk in chunks:
                for line in chunk.get("lines", ()):
                    output.write(line)
            return
        exported = e.MemoryExported(versions=_write(path, chunks))

    def text(done: e.MemoryExported) -> str:
        return f"{done.versions:,} versions are in {output.displayed(path)}"

    output.show(exported, text, as_json=as_json)


def _write(path: Path, chunks: Iterator[Any]) -> int:
    """Write lines to a file that is there once it is whole."""
    part = path.with_name(f"{path.name}.part")
    versions = 0
    try:
        with part.open("x", encoding="utf-8") as file:
            part.chmod(0o600)
            for chunk in chunks:
                versions = chunk.get("versions", versions)
                file.writelines(f"{line}\n" for line in chunk.get("lines", ()))
        part.replace(path)
    except FileExistsError as error:
        raise UsageError(f"{output.displayed(part)} is there already: remove it") from error
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{output.displayed(path)} can't be written: {error.strerror}") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return versions


@memory.command("import")
def import_items(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="What was exported; - reads it.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Take in lines that were exported; what is there already stays."""
    inserted = unchanged = first = 0
    refused: list[e.Refused] = []
    batches = _batches(_lines(path))
    batch = next(batches, ())  # before anything is asked: a file that can't be read is told of
    with connect() as client:
        for lines in itertools.chain([batch] if batch else [], batches):
            ask = e.MemoryImport(lines=tuple(lines))
            done = client.request("memory:import", ask, result_type=e.MemoryImported)
            inserted += done.inserted
            unchanged += done.unchanged
            refused += [msgspec.structs.replace(r, place=r.place + first) for r in done.refused]
            first += len(lines)
    all_done = e.MemoryImported(inserted=inserted, unchanged=unchanged, refused=tuple(refused))
    output.show(all_done, imported_text, as_json=as_json)
    if refused:
        raise typer.Exit(output.FAILED)


def _lines(path: Path) -> Iterator[str]:
    try:
        if str(path) == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
            return
        with path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file if line.strip())
    except OSError as error:
        raise UsageError(f"{output.displayed(path)} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{output.displayed(path)} is no UTF-8: {error.reason}") from error


def _batches(lines: Iterator[str]) -> Iterator[Sequence[str]]:
    batch: list[str] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == LINES_AT_ONCE or size + len(line) > BYTES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield batch


def imported_text(done: e.MemoryImported) -> str:
    """Say what was taken in."""
    lines = [f"{done.inserted:,} taken in, {done.unchanged:,} there already"]
    lines += [
        f"line {each.place + 1}: {output.clean(each.key)}{': ' if each.key else ''}"
        f"{output.clean(each.why)}"
        for each in done.refused[:20]
    ]
    if len(done.refused) > 20:
        lines.append(f"… and {len(done.refused) - 20:,} more were not taken in")
    return _wrapped(lines)


# -- schemas --------------------------------------------------------------------------------------


@schema.command("list")
def list_schemas(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="table, model, agent, tool …")
    ] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """List schemas, and the tables that are always there."""
    show_answer(
        "schema:list", e.SchemaList(kind=kind), e.SchemaListed, schemas_text, as_json=as_json
    )


def schemas_text(listed: e.SchemaListed) -> str:
    """Lay schemas out."""
    rows = [
        (each.kind, each.name, each.version, output.clean(each.description))
        for each in listed.schemas
    ]
    parts = []
    if rows:
        parts.append(output.table(("KIND", "NAME", "V", "WHAT IT IS"), rows))
    else:
        parts.append("nothing is registered; ksi schema register NAME FILE")
    if listed.tables:
        parts.append(output.paragraphs(f"tables of KSI's own: {', '.join(listed.tables)}"))
    return "\n\n".join(parts)


@schema.command("get")
def get_schema(name: SchemaName, *, kind: Kind = "table", as_json: JsonFlag = False) -> None:
    """Show a schema."""
    ask = e.SchemaGet(name=name, kind=kind)
    show_answer("schema:get", ask, e.SchemaShown, schema_text, as_json=as_json)


def schema_text(found: e.SchemaShown) -> str:
    """Write a schema's page."""
    head = f"{found.kind} {found.name}, version {found.version}"
    lines = [head, *([output.clean(found.description)] if found.description else [])]
    if found.schema:
        encoded = msgspec.json.format(msgspec.json.encode(found.schema), indent=2)
        lines += ["", output.clean(encoded.decode())]
    return "\n".join(lines)


@schema.command()
def register(
    name: SchemaName,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Schema; - reads it.")],
    *,
    kind: Kind = "table",
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Register a JSON Schema, or a newer one; of kind table it makes a table."""
    given = json_object(output.displayed(path), "\n".join(_lines(path)))
    ask = {"name": name, "kind": kind, "description": description, "schema": given}

    def text(done: e.SchemaShown) -> str:
        return f"{done.kind} {done.name} is registered, version {done.version}"

    show_answer("schema:register", ask, e.SchemaShown, text, as_json=as_json)


@schema.command()
def verify(
    name: SchemaName,
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="An object; the items unless given.")
    ] = None,
    *,
    kind: Kind = "table",
    as_json: JsonFlag = False,
) -> None:
    """Check a table's items against its schema, or an object against any."""
    given = None
    if path is not None:
        given = json_object(output.displayed(path), "\n".join(_lines(path)))
    ask = {"name": name, "kind": kind, "object": given}
    with connect() as client:
        verified = client.request("schema:verify", ask, result_type=e.SchemaVerified)
    output.show(verified, verified_text, as_json=as_json)
    if verified.problems:
        raise typer.Exit(output.FAILED)


def verified_text(verified: e.SchemaVerified) -> str:
    """Say what does not fit."""
    lines = [f"{verified.checked:,} checked, {len(verified.problems):,} don't fit"]
    lines += [
        f"{output.clean(each.key)}{': ' if each.key else ''}{output.clean(each.why)}"
        for each in verified.problems[:50]
    ]
    return _wrapped(lines)


@schema.command("delete")
def delete_schema(name: SchemaName, *, kind: Kind = "table", as_json: JsonFlag = False) -> None:
    """Delete a schema; that of a table only while the table is empty."""

    def text(done: e.SchemaDeleted) -> str:
        return f"{done.kind} {done.name} is deleted"

    ask = e.SchemaDelete(name=name, kind=kind)
    show_answer("schema:delete", ask, e.SchemaDeleted, text, as_json=as_json)


# -- words ----------------------------------------------------------------------------------------


def time_of(text: str | None) -> datetime | None:
    """Read a time; a local one where it names no zone.

    Raises:
        UsageError: It is none.
    """
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is no time such as 2026-03-01T12:00 or 2026-03-01") from error


def json_object(what: str, text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: It is none.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(f"{what} is no JSON object: {error}") from error


def _wrapped(lines: Sequence[str]) -> str:
    return "\n".join(map(output.paragraphs, lines))


def _span(first: datetime | None, last: datetime | None) -> str:
    if first is None:
        return ""
    begin = f"{first.astimezone():%Y-%m-%d %H:%M}"
    return begin if last is None else f"{begin} to {last.astimezone():%Y-%m-%d %H:%M}"

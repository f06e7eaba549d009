"""Remembers files and directories: ``ksi upsert``."""

import hashlib
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ksi_cli import output
from ksi_cli.connection import connect
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Client, Denied
from ksi_memory import events as e

TABLE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
PIECE_BYTES: Final = 1024 * 1024
SHOWN_PROBLEMS: Final = 20
COUNTS: Final = (
    "files", "unchanged_files", "skipped_files", "inserted", "updated", "unchanged", "ended",
    "forgotten",
)  # fmt: skip
PROSE_TABLES: Final = ("", "resources", "ontologies")

Words = Annotated[
    list[str],
    typer.Argument(metavar="[TABLE] PATH…", help="Files or directories; - is what comes on stdin."),
]
Tell = Callable[[e.ContentProgress], None]


def upsert(
    words: Words,
    *,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to call it; the file's or directory's name."),
    ] = None,
    owner: Annotated[
        str, typer.Option(metavar="USER", help="Whom it belongs to; everybody unless given.")
    ] = "",
    category: Annotated[
        str | None, typer.Option(metavar="CATEGORY", help="Of all that is made of it.")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(min=100, max=100_000, metavar="N", help="Characters of a chunk."),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, max=50_000, metavar="N", help="How many the next one repeats."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what has not changed.")] = False,
    even_forgotten: Annotated[
        bool, typer.Option("--even-forgotten", help="Also what was forgotten.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remember files and directories.

    Markdown goes to ontologies, with its front matter, headings and links; rows of YAML or JSON to
    the table that they name, or that you name; all else to resources, PDF, DOCX and their like
    where ksi[documents] is installed. Only what has changed is read again, and what went away from
    a directory ends. Ctrl-C leaves whole documents.
    """
    table, paths = split(words)
    if name is not None and len(paths) > 1:
        raise UsageError("--name names one path")
    ask: dict[str, Any] = {
        "table": table or None,
        "owner": owner,
        "category": category,
        "chunk_characters": chunk,
        "overlap_characters": overlap,
        "again": again,
        "even_forgotten": even_forgotten,
    }
    loading = Loading({key: value for key, value in ask.items() if value is not None})
    is_interrupted = False
    with connect(timeout_s=None) as client, progress(is_shown=not as_json) as tell:
        try:
            for path in paths:
                loading.load(client, path, name, tell)
        except KeyboardInterrupt:
            is_interrupted = True
    if is_interrupted:
        if as_json:
            output.write_json(loading.told())
        output.note(f"ksi: {loading.interruption()}")
        raise typer.Exit(output.INTERRUPTED)
    output.show(loading.told(), summary, as_json=as_json)
    if loading.counts["files"] and loading.counts["files"] == loading.counts["skipped_files"]:
        raise typer.Exit(output.FAILED)


def split(words: list[str]) -> tuple[str, list[str]]:
    """Return the table, if one is named, and the paths.

    Raises:
        UsageError: There is no path.
    """
    table, paths = "", words
    if TABLE.fullmatch(words[0]) and not Path(words[0]).exists():
        table, paths = words[0], words[1:]
    if not paths:
        raise UsageError(f"there is no file {words[0]!r}; a table alone says not what to remember")
    return table, paths


class Loading:
    """Loads one path after the other, and adds up what came of them.

    Args:
        ask: What is asked of each.
    """

    def __init__(self, ask: dict[str, Any]) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self._ask = ask
        self._lists: dict[str, list[Any]] = {"gone": [], "problems": [], "dangling": []}
        self._now: e.ContentProgress | None = None
        self._found = 0
        self._skipped: list[e.Refused] = []

    def load(self, client: Client, path: str, name: str | None, tell: Tell) -> None:
        """Load a path, or what comes on stdin."""
        if path == "-":
            table = self._ask.get("table", "")
            called = name or ("stdin.txt" if table in PROSE_TABLES else "stdin.yaml")
            self._upload(client, sys.stdin.buffer.read(), called, tell)
            return
        full = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100  links stay as they are
        request = {"path": str(full), **({"name": name} if name else {})}
        try:
            self._stream(client, request, tell)
        except Denied:  # who may name no path can still send a file
            if not full.is_file():
                raise
            self._upload(client, _read(full), name or full.name, tell)

    def _upload(self, client: Client, data: bytes, name: str, tell: Tell) -> None:
        upload_id = f"ksi-{uuid.uuid4().hex}"
        begin = e.ContentUpload(
            upload_id=upload_id,
            name=name,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        client.request("content:upload", begin)
        for offset in range(0, len(data), PIECE_BYTES):
            piece = data[offset : offset + PIECE_BYTES]
            client.request(
                "content:upload",
                e.ContentUpload(upload_id=upload_id, offset=offset, data=piece),
            )
        self._stream(client, {"upload_id": upload_id}, tell)

    def _stream(self, client: Client, request: dict[str, Any], tell: Tell) -> None:
        self._now, self._skipped = None, []
        chunks = client.stream("content:load", {**self._ask, **request}, result_type=e.ContentChunk)
        try:
            for chunk in chunks:
                if isinstance(chunk, e.ContentLoaded):
                    self._add(chunk)
                else:
                    self._note(chunk)
                    tell(chunk)
        except KeyboardInterrupt:
            self._add_what_is_known()
            raise

    def _note(self, chunk: e.ContentProgress) -> None:
        self._now = chunk
        if chunk.skipped and len(self._skipped) < 1000:
            self._skipped.append(
                e.Refused(place=chunk.files_done - 1, key=chunk.path, why=chunk.skipped)
            )

    def _add(self, loaded: e.ContentLoaded) -> None:
        self._found += loaded.files
        for name in COUNTS:
            self.counts[name] += getattr(loaded, name)
        for name, listed in self._lists.items():
            listed.extend(getattr(loaded, name))
        self._now = None

    def _add_what_is_known(self) -> None:
        """Add up a load that was broken off, as far as it was told of."""
        if self._now is not None:
            self._found += self._now.files_found
            self.counts["files"] += self._now.files_done
            self.counts["skipped_files"] += len(self._skipped)
            self._lists["problems"] += self._skipped

    def interruption(self) -> str:
        """Say how far it was when it was broken off."""
        if not self.counts["files"]:
            return "interrupted before any file was dealt with; run it again to begin anew"
        done, skipped = self.counts["files"], self.counts["skipped_files"]
        left_out = f", and {skipped:,} of them skipped" if skipped else ""
        return (
            f"interrupted: {done:,} of {max(self._found, done):,} files were dealt with{left_out}; "
            "run it again to go on"
        )

    def told(self) -> e.ContentLoaded:
        """Return what came of all."""
        fields: dict[str, Any] = {name: tuple(listed) for name, listed in self._lists.items()}
        return e.ContentLoaded(**{**self.counts, **fields})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        where = output.displayed(path)
        raise UsageError(f"the file {where} can't be read: {error.strerror}") from error


@contextmanager
def progress(*, is_shown: bool) -> Iterator[Tell]:
    """Yield what shows how far a load is, on stderr where somebody looks."""
    if not is_shown or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda chunk: None
        return
    from rich.console import Console  # noqa: PLC0415  only where somebody looks
    from rich.progress import (  # noqa: PLC0415  the same
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text  # noqa: PLC0415  the same

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rate="", name="")
        size = skipped = 0

        def tell(chunk: e.ContentProgress) -> None:
            nonlocal size, skipped
            size += chunk.bytes
            skipped += chunk.skipped is not None
            speed = bar.tasks[0].speed or 0.0
            left_out = f", {skipped} skipped" if skipped else ""
            bar.update(
                task,
                total=chunk.files_found,
                completed=chunk.files_done,
                rate=f"{speed:,.0f}/s, {size / 1e6:,.1f} MB{left_out}",
                name=Text(output.clean(chunk.path)).plain[-60:],
            )

        yield tell


def summary(loaded: e.ContentLoaded) -> str:
    """Say what came of a load, and what was left out and why."""
    files = f"{loaded.files:,} file{'' if loaded.files == 1 else 's'}"
    apart = [
        f"{count:,} {word}"
        for count, word in (
            (loaded.unchanged_files, "unchanged"),
            (loaded.skipped_files, "skipped"),
        )
        if count
    ]
    items = [
        f"{count:,} {word}"
        for count, word in (
            (loaded.inserted, "new"),
            (loaded.updated, "changed"),
            (loaded.unchanged, "as they were"),
            (loaded.ended, "ended"),
            (loaded.forgotten, "forgotten before"),
        )
        if count
    ]
    head = files + (f" ({', '.join(apart)})" if apart else "")
    lines = [f"{head}; items: {', '.join(items) or 'none touched'}"]
    for title, listed in (
        ("went away", [(each, "") for each in loaded.gone]),
        ("left out", [(each.key, each.why) for each in loaded.problems]),
        ("links to nothing", [(each, "") for each in loaded.dangling]),
    ):
        lines += _listed(title, listed)
    return "\n".join(lines)


def _listed(title: str, listed: list[tuple[str, str]]) -> list[str]:
    if not listed:
        return []
    shown = [
        f"  {output.clean(key)}{f': {why}' if why else ''}" for key, why in listed[:SHOWN_PROBLEMS]
    ]
    more = len(listed) - len(shown)
    return [f"{title}:", *shown, *([f"  … and {more:,} more"] if more > 0 else [])]

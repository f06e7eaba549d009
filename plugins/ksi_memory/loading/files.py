"""Remembers files: each with its document and its chunks whole, or not at all.

Several small files are written in one transaction; where one of them can't be remembered, each is
tried by itself. What a file had and has no more ends in the same transaction.
"""

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct

from ksi_daemon.protocol import Busy, InvalidData, KsiError, NotFound, TimedOut
from ksi_memory import events as e
from ksi_memory.items.ids import folded, item_id
from ksi_memory.items.store import WHY_NOT, Items, Publish
from ksi_memory.loading.chunks import Chunk, chunks_of, headings_of
from ksi_memory.loading.directories import Directory, Found, Skipped, why_no_file
from ksi_memory.loading.links import Links
from ksi_memory.loading.moments import FILES, TABLE, Came, LoadMoment
from ksi_memory.loading.uploads import SQL
from ksi_memory.reading.document import Document, Rows, Unreadable
from ksi_memory.reading.reader import VERSION, Given, Reader, media_type_of
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Connection, Database

__all__ = ["File", "How", "Loader"]

log = logging.getLogger(__name__)

# The order in which a file's items are written: each comes from one of those before it.
FILE, DOCUMENT, PARTS, ROWS = 0, 1, 2, 3
FORGOTTEN: Final = WHY_NOT["forgotten"]
PROTECTED: Final = WHY_NOT["protected"]
A_ROW_OF_IT: Final = "a row of it"  # how the source of a row says what it is
MAX_KEY_BYTES: Final = 980  # with the number of a chunk after it
ATTEMPTS: Final = 3
MAX_BATCH: Final = 200  # files of one transaction
MAX_BATCH_ITEMS: Final = 1000
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
MAX_PROBLEMS: Final = 1000
MAX_GONE: Final = 100
MAX_DANGLING: Final = 1000
MAX_TOLD_DANGLING: Final = 100
MAX_HEADINGS: Final = 200
PAGE: Final = 500
SUMMARY: Final = 500


class How(Struct, frozen=True, kw_only=True):
    """How files are to be remembered."""

    owner: str = ""
    table: str = ""
    category: str | None = None
    chunk_characters: int
    overlap_characters: int
    again: bool = False
    even_forgotten: bool = False

    @property
    def made_by(self) -> str:
        """What tells apart what was made of the same bytes otherwise."""
        said = (
            VERSION, self.table, self.category, self.chunk_characters, self.overlap_characters
        )  # fmt: skip
        return hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:16]


class File(Struct, frozen=True, kw_only=True):
    """A file with what stands in it.

    Attributes:
        key: What it is remembered as.
        name: Its name.
        data: Its bytes.
        path: Where it lies; empty for one that was uploaded.
        modified_at: When it was written last.
        media_type: What kind of file it is.
    """

    key: str
    name: str
    data: bytes
    path: str = ""
    modified_at: datetime | None = None
    media_type: str = ""

    @property
    def sha256(self) -> str:
        """The hash of its bytes."""
        return hashlib.sha256(self.data).hexdigest()


class _Batch(Struct, frozen=True):
    """Items of a table; those of a later stage say that they come from those of the one before."""

    stage: int
    table: str
    origin: e.Origin
    items: list[e.NewItem]


class _Prepared(Struct, frozen=True, kw_only=True):
    """A file as items.

    Attributes:
        document: The table whose chunks it has; none where it has rows.
        parts: How many chunks.
        rows: The ids of its rows; ``None`` where not all of them could be read.
        was_in: The table whose chunks it had before.
        came: Whether it was known.
        problems: What of it could not be read.
    """

    file: File
    batches: tuple["_Batch", ...]
    document: str = ""
    parts: int = 0
    rows: tuple[UUID, ...] | None = ()
    was_in: str = ""
    came: Came = "new"
    problems: tuple[e.Refused, ...] = ()

    @property
    def size(self) -> int:
        """How many items it is."""
        return sum(len(each.items) for each in self.batches)


class _Refusal(Exception):
    """A file's items were refused: nothing of it is remembered."""

    def __init__(self, refused: Sequence[e.Refused]) -> None:
        super().__init__(refused[0].why)
        self.refused = tuple(refused)


# What a file may be to blame for, such as rows of a table that is not there; the others go on.
_WRONG: Final = (_Refusal, asyncpg.PostgresError, InvalidData, NotFound, Busy, TimedOut)


class _Within(Database):
    """A transaction as the store of items takes it; a statement that fails leaves it usable."""

    def __init__(self, connection: Connection) -> None:
        self._connected = connection

    async def fetch(
        self, sql: str, *arguments: Any, timeout_s: float | None = None
    ) -> list[asyncpg.Record]:
        """Return all rows."""
        found: list[asyncpg.Record] = await self._connected.fetch(sql, *arguments)
        return found

    async def fetchrow(
        self, sql: str, *arguments: Any, timeout_s: float | None = None
    ) -> asyncpg.Record | None:
        """Return the first row."""
        async with self._connected.transaction():
            return await self._connected.fetchrow(sql, *arguments)

    async def fetchval(self, sql: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Return the first value."""
        async with self._connected.transaction():
            return await self._connected.fetchval(sql, *arguments)


class Tally:
    """What came of a load, as far as it has come.

    Args:
        moment: Tells of it.
    """

    def __init__(self, moment: LoadMoment) -> None:
        self.moment = moment
        self.counts = dict.fromkeys(
            ("files", "unchanged_files", "skipped_files", "inserted", "updated", "unchanged",
             "ended", "forgotten"), 0
        )  # fmt: skip
        self.files_found = 0
        self.problems: list[e.Refused] = []
        self.gone: list[str] = []
        self.dangling: dict[str, None] = {}

    @property
    def has_changed(self) -> bool:
        """Whether anything is new, another, or no more."""
        return any(self.counts[name] for name in ("inserted", "updated", "ended"))

    def problem(self, key: str, why: str, place: int | None = None) -> None:
        """Note what was not remembered."""
        if len(self.problems) < MAX_PROBLEMS:
            at = self.counts["files"] if place is None else place
            self.problems.append(e.Refused(place=at, key=key[:1000], why=why[:1000]))

    def upserted(self, told: e.MemoryUpserted) -> None:
        """Note what came of items."""
        for name in ("inserted", "updated", "unchanged"):
            self.counts[name] += getattr(told, name)
        for key in told.dangling:
            if len(self.dangling) < MAX_DANGLING:
                self.dangling[key] = None

    def told(self, dangling: Sequence[str] = ()) -> e.ContentLoaded:
        """Return it as it is answered."""
        return e.ContentLoaded(
            **self.counts,
            gone=tuple(self.gone),
            problems=tuple(self.problems),
            dangling=tuple(dangling)[:MAX_TOLD_DANGLING],
        )


class Loader:
    """Remembers files.

    Args:
        database: The store.
        settings: Sizes.
        reader: Reads files.
        publish: Tells of what was remembered.
    """

    def __init__(
        self, database: Database, settings: MemorySettings, reader: Reader, publish: Publish
    ) -> None:
        self._database = database
        self._settings = settings
        self._reader = reader
        self._publish = publish

    # -- from where -----------------------------------------------------------------------------

    async def load_path(
        self, whose: Whose, how: How, path: Path, name: str | None
    ) -> AsyncGenerator[e.ContentChunk]:
        """Load a file or a directory of this machine.

        Raises:
            InvalidData: There is none, or it has too many files.
        """
        try:
            path = await asyncio.to_thread(path.resolve, strict=True)
            mode = (await asyncio.to_thread(path.stat)).st_mode
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidData(f"{_shown(path)} can't be read: {_reason(error)}") from error
        root = name or _shown(Path(path.name)) or "root"
        is_directory = stat.S_ISDIR(mode)
        load = _Load(self, whose, how, _tally(how, f"{root}/" if is_directory else root))
        if is_directory:
            directory = Directory(path)
            work = load.directory(directory, root, self._settings.max_load_files)
        else:
            found: Found | Skipped = Found(path.name, 0)
            if why := why_no_file(mode):
                found = Skipped(path.name, why)
            links = Links(path.parent, "")
            work = load.single(path, found, root, links)
        async with aclosing(work) as chunks:
            async for chunk in chunks:
                yield chunk

    async def load_data(self, whose: Whose, how: How, file: File) -> AsyncGenerator[e.ContentChunk]:
        """Load a file that was uploaded."""
        load = _Load(self, whose, how, _tally(how, file.key.rstrip("/")))
        async with aclosing(load.uploaded(file)) as chunks:
            async for chunk in chunks:
                yield chunk

    # -- what is known --------------------------------------------------------------------------

    async def known(self, whose: Whose, owner: str, keys: Sequence[str]) -> dict[str, Any]:
        """Return what is known of files, by their folded keys."""
        rows = await self._database.fetch(SQL["files"], whose.tenant, owner, list(keys))
        return {folded(row["key"]): row for row in rows}

    async def missing(self, whose: Whose, keys: Sequence[str]) -> list[str]:
        """Return those of some keys that nothing bears."""
        found: list[str] = await self._database.fetchval(
            SQL["missing"], whose.tenant, whose.user, list(keys)
        )
        return found

    async def loaded_below(
        self, whose: Whose, owner: str, below: str, path: str, after: str
    ) -> list[Any]:
        """Return a page of the files that were loaded from a folder."""
        return await self._database.fetch(
            SQL["below"], whose.tenant, owner, below, path, after, PAGE
        )

    # -- items of a file ------------------------------------------------------------------------

    async def prepare(self, how: How, file: File, links: Links, was_in: str) -> _Prepared:
        """Read a file, and make items of it.

        Raises:
            Unreadable: It can't be read; the message is the reason.
        """
        given = Given(name=file.name, data=file.data, table=how.table, find=links.finder(file.key))
        reading, table = await self._reader.read(given)
        if isinstance(reading, Rows):
            return await asyncio.to_thread(_rows, how, file, reading, was_in)
        return await asyncio.to_thread(_document, how, file, reading, table, was_in)

    # -- writing --------------------------------------------------------------------------------

    async def write(
        self, whose: Whose, how: How, some: Sequence[_Prepared], tally: Tally
    ) -> list[tuple[_Prepared, str]]:
        """Remember files; return those that were not, each with the reason."""
        if not some:
            return []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._write(whose, how, some, tally)
            except _WRONG as error:
                if isinstance(error, Busy) and attempt < ATTEMPTS:
                    continue
                if len(some) == 1:
                    return [(some[0], _why(error))]
                break
            return []
        refused = []
        for one in some:
            refused += await self.write(whose, how, [one], tally)
        return refused

    async def _write(self, whose: Whose, how: How, some: Sequence[_Prepared], tally: Tally) -> None:
        published: list[tuple[str, Any]] = []
        outcome = Tally(tally.moment)
        async with self._database.transaction() as connection:
            items = self._items(connection, published)
            for batch in _merged(some):
                told = await items.upsert(
                    whose,
                    batch.table,
                    batch.items,
                    origin=batch.origin,
                    even_forgotten=how.even_forgotten,
                )
                alone = some[0].file if len(some) == 1 else None
                self._take(batch.stage, told, outcome, alone)
            outcome.counts["ended"] += await self._end_parts(connection, whose, how, some)
            outcome.counts["ended"] += await self._end_rows(connection, whose, how, some)
            if outcome.has_changed:
                outcome.moment = tally.moment.with_loaded(
                    [(each.file.key, each.came) for each in some]
                )
                await self._tell(items, whose, how, outcome.moment)
        for event, data in published:
            self._publish(event, data)
        tally.moment = outcome.moment
        for name, count in outcome.counts.items():
            tally.counts[name] += count
        tally.dangling.update(list(outcome.dangling.items())[: MAX_DANGLING - len(tally.dangling)])
        tally.problems += outcome.problems[: MAX_PROBLEMS - len(tally.problems)]
        for each in some:
            for problem in each.problems:
                tally.problem(f"{each.file.key}: {problem.key}", problem.why, problem.place)

    def _items(self, connection: Connection, published: list[tuple[str, Any]]) -> Items:
        """Return the items as a transaction has them; what is to be published waits for its end."""
        return Items(
            _Within(connection),
            self._settings,
            lambda event, data: published.append((event, data)),
        )

    async def _tell(self, items: Items, whose: Whose, how: How, moment: LoadMoment) -> None:
        """Write the moment that tells of a load, as far as it has come."""
        item = moment.item()
        told = await items.upsert(
            whose, TABLE, [item], origin="derived", even_forgotten=how.even_forgotten
        )
        for each in told.refused:
            log.info("a moment is not kept", extra={"key": each.key, "why": each.why})

    def _take(self, stage: int, told: e.MemoryUpserted, outcome: Tally, alone: File | None) -> None:
        """Note what came of items; all must be remembered but for what a person had otherwise.

        A part that was forgotten stays so, and what a person corrected stays as that person has
        it; where a file or a document was forgotten, so is all of it. Rows that can't be
        remembered are told of, where the file is written by itself.
        """
        forgotten = [each for each in told.refused if each.why == FORGOTTEN]
        wrong = [each for each in told.refused if each.why not in (FORGOTTEN, PROTECTED)]
        if stage < PARTS:
            wrong += forgotten
        if wrong and (stage != ROWS or alone is None):
            raise _Refusal(wrong)
        outcome.upserted(told)
        outcome.counts["forgotten"] += len(forgotten)
        named = f"{alone.key}: " if stage == ROWS and alone is not None else ""
        for each in told.refused:
            outcome.problem(f"{named}{each.key}", each.why)

    async def _end_parts(
        self, connection: Connection, whose: Whose, how: How, some: Sequence[_Prepared]
    ) -> int:
        """End what the files consisted of and do no more, and documents that are something else."""
        keys, tables, parts = [], [], []
        for each in some:
            for table in {each.document, each.was_in} - {""}:
                keys.append(each.file.key)
                tables.append(table)
                parts.append(each.parts if table == each.document else None)
        if not keys:
            return 0
        ended: int = await connection.fetchval(
            SQL["end_parts"], whose.tenant, how.owner, keys, tables, parts
        )
        return ended

    async def _end_rows(
        self, connection: Connection, whose: Whose, how: How, some: Sequence[_Prepared]
    ) -> int:
        """End rows that the files have no more, where all that they have is known."""
        read = [each for each in some if each.rows is not None]
        files = [item_id(FILES, each.file.key, how.owner) for each in read]
        there = [row for each in read for row in each.rows or ()]
        ended: int = await connection.fetchval(
            SQL["end_rows"], whose.tenant, files, there, A_ROW_OF_IT
        )
        return ended

    async def end_files(self, whose: Whose, how: How, gone: Sequence[Any], tally: Tally) -> None:
        """End files that went away, with all that they consisted of."""
        named = [(row["key"], row["kind"]) for row in gone if row["kind"]]
        named += [(row["key"], FILES) for row in gone]
        keys, tables = [key for key, _ in named], [table for _, table in named]
        files = [item_id(FILES, row["key"], how.owner) for row in gone]
        moment = tally.moment
        published: list[tuple[str, Any]] = []
        async with self._database.transaction() as connection:
            ended: int = await connection.fetchval(
                SQL["end_parts"], whose.tenant, how.owner, keys, tables, [None] * len(keys)
            )
            ended += await connection.fetchval(
                SQL["end_rows"], whose.tenant, files, [], A_ROW_OF_IT
            )
            if ended:
                moment = moment.with_gone([row["key"] for row in gone])
                await self._tell(self._items(connection, published), whose, how, moment)
        for event, data in published:
            self._publish(event, data)
        tally.moment = moment
        tally.counts["ended"] += ended


class _Load:
    """One load: what is read just now, and what waits to be written."""

    def __init__(self, loader: Loader, whose: Whose, how: How, tally: Tally) -> None:
        self._loader = loader
        self._whose = whose
        self._how = how
        self._owner = how.owner
        self._tally = tally
        self._waiting: list[_Prepared] = []
        self._waiting_bytes = 0

    async def single(
        self, path: Path, found: Found | Skipped, key: str, links: Links
    ) -> AsyncGenerator[e.ContentChunk]:
        """Load one file."""
        self._tally.files_found = 1
        async for chunk in self._batch(path.parent, [found], lambda _: key, links):
            yield chunk
        async for chunk in self._end():
            yield chunk

    async def uploaded(self, file: File) -> AsyncGenerator[e.ContentChunk]:
        """Load what was uploaded."""
        self._tally.files_found = 1
        known = await self._loader.known(self._whose, self._owner, [file.key])
        links = Links(None, "")
        for chunk in await self._take(file, known.get(folded(file.key)), links):
            yield chunk
        async for chunk in self._end():
            yield chunk

    async def directory(
        self, directory: Directory, root: str, most: int
    ) -> AsyncGenerator[e.ContentChunk]:
        """Load a directory, and end what went away from it.

        Raises:
            InvalidData: It has too many files.
        """
        self._tally.files_found = await asyncio.to_thread(_counted, directory, most)
        links = Links(directory.root, root, directory)
        walk = directory.walk()

        def key_of(relative: str) -> str:
            return f"{root}/{relative}"

        while batch := await asyncio.to_thread(_some, walk):
            async for chunk in self._batch(directory.root, batch, key_of, links):
                yield chunk
        async for chunk in self._flushed():
            yield chunk
        await self._end_gone(directory, root)
        async for chunk in self._end():
            yield chunk

    # -- a batch of files -----------------------------------------------------------------------

    async def _batch(
        self,
        root: Path,
        batch: Sequence[Found | Skipped],
        key_of: Callable[[str], str],
        links: Links,
    ) -> AsyncGenerator[e.ContentChunk]:
        keys = [key_of(each.relative) for each in batch if isinstance(each, Found)]
        known = await self._loader.known(
            self._whose, self._owner, [key for key in keys if _fits(key)]
        )
        for each in batch:
            if isinstance(each, Skipped):
                yield self._skipped(f"{links.root}/{each.relative}", each.why)
                continue
            key = key_of(each.relative)
            before = known.get(folded(key))
            try:
                file = await self._opened(root / each.relative, key, before)
            except Unreadable as error:
                yield self._skipped(key, str(error))
                continue
            for chunk in await self._take(file, before, links):
                yield chunk
            known[folded(key)] = {
                "path": file.path, "sha256": file.sha256, "made_by": self._how.made_by, "kind": "",
            }  # fmt: skip

    async def _opened(self, path: Path, key: str, before: Any) -> File:
        if not _fits(key):
            raise Unreadable(
                f"its key would have {len(key.encode()):,} bytes; at most {MAX_KEY_BYTES} are "
                "possible: give it another name"
            )
        most = self._loader._settings.max_file_bytes
        file = await asyncio.to_thread(_read_file, path, key, most)
        other = before["path"] if before is not None else None
        if other and other != file.path and await asyncio.to_thread(os.path.isfile, other):
            raise Unreadable(
                f"its key is that of another file, {other}: give this load a name of its own"
            )
        return file

    async def _take(self, file: File, before: Any, links: Links) -> list[e.ContentChunk]:
        """Read a file that has changed, and have it wait to be written with others."""
        is_known = (
            before is not None
            and before["sha256"] == file.sha256
            and before["made_by"] == self._how.made_by
        )
        if is_known and not self._how.again and not self._how.even_forgotten:
            self._tally.counts["unchanged_files"] += 1
            return [self._progress(file.key, 0, len(file.data))]
        was_in = (before["kind"] or "") if before is not None else ""
        try:
            prepared = await self._loader.prepare(self._how, file, links, was_in)
        except Unreadable as error:
            return [self._skipped(file.key, str(error))]
        came: Came = "new" if before is None else "again" if is_known else "changed"
        self._waiting.append(msgspec.structs.replace(prepared, came=came))
        self._waiting_bytes += len(file.data)
        if (
            len(self._waiting) >= MAX_BATCH
            or self._waiting_bytes >= MAX_BATCH_BYTES
            or sum(each.size for each in self._waiting) >= MAX_BATCH_ITEMS
        ):
            return [chunk async for chunk in self._flushed()]
        return []

    async def _flushed(self) -> AsyncGenerator[e.ContentChunk]:
        """Write what waits, and tell of each."""
        some, self._waiting, self._waiting_bytes = self._waiting, [], 0
        refused = await self._loader.write(self._whose, self._how, some, self._tally)
        why = {each.file.key: reason for each, reason in refused}
        for each in some:
            if each.file.key in why:
                yield self._skipped(each.file.key, why[each.file.key])
            else:
                yield self._progress(each.file.key, each.size, len(each.file.data))

    def _progress(self, key: str, items: int, size: int) -> e.ContentProgress:
        self._tally.counts["files"] += 1
        return e.ContentProgress(
            path=key,
            files_done=self._tally.counts["files"],
            files_found=max(self._tally.files_found, self._tally.counts["files"]),
            items=items,
            bytes=size,
        )

    def _skipped(self, key: str, why: str) -> e.ContentProgress:
        key = key.lstrip("/")
        self._tally.problem(key, why)
        self._tally.counts["skipped_files"] += 1
        return msgspec.structs.replace(self._progress(key, 0, 0), skipped=why)

    # -- the end --------------------------------------------------------------------------------

    async def _end_gone(self, directory: Directory, root: str) -> None:
        """End what was loaded from the directory before, and is not in it any more."""
        below, path, after = f"{root}/", f"{directory.root}{os.sep}", ""
        while page := await self._loader.loaded_below(self._whose, self._owner, below, path, after):
            after = page[-1]["name"]
            gone = await asyncio.to_thread(_gone, directory, page)
            if gone:
                await self._loader.end_files(self._whose, self._how, gone, self._tally)
                room = MAX_GONE - len(self._tally.gone)
                self._tally.gone += [row["key"] for row in gone[:room]]

    async def _end(self) -> AsyncGenerator[e.ContentChunk]:
        async for chunk in self._flushed():
            yield chunk
        dangling = list(self._tally.dangling)
        if dangling:
            dangling = await self._loader.missing(self._whose, dangling)
        yield self._tally.told(dangling)


# -- files ----------------------------------------------------------------------------------------


def _tally(how: How, root: str) -> Tally:
    return Tally(LoadMoment(root=root, owner=how.owner, began_at=datetime.now(UTC)))


def _counted(directory: Directory, most: int) -> int:
    count = 0
    for _ in directory.walk():
        count += 1
        if count > most:
            raise InvalidData(
                f"{_shown(directory.root)} has more than {most:,} files "
                "(memory.max_load_files): load its folders one by one"
            )
    return count


def _some(walk: Iterator[Found | Skipped]) -> list[Found | Skipped]:
    """Return the next few files."""
    found: list[Found | Skipped] = []
    for each in walk:
        found.append(each)
        if len(found) >= MAX_BATCH:
            break
    return found


def _read_file(path: Path, key: str, most: int) -> File:
    """Read a file, and nothing that only looks like one.

    Raises:
        Unreadable: It can't be read, or is too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            status = os.fstat(handle)
            if why := why_no_file(status.st_mode):
                raise Unreadable(why)
            data = b"" if status.st_size > most else opened.read(most + 1)
    except (OSError, ValueError) as error:
        raise Unreadable(f"it can't be read: {_reason(error)}") from error
    size = max(status.st_size, len(data))
    if size > most:
        raise Unreadable(
            f"it has {size:,} bytes; at most {most:,} are loaded (memory.max_file_bytes)"
        )
    return File(
        key=key,
        name=path.name,
        data=data,
        path=str(path),
        modified_at=_modified(status.st_mtime),
        media_type=media_type_of(path.name),
    )


def _modified(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None  # a time that no calendar has


def _gone(directory: Directory, page: Sequence[Any]) -> list[Any]:
    """Return the files that are not there any more, or are ignored now."""
    found = []
    for row in page:
        path = Path(row["path"])
        try:
            is_there = stat.S_ISREG(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        except OSError:
            is_there = True  # nobody can say; it may come back
        if not is_there or directory.has_ignored(str(path.relative_to(directory.root))):
            found.append(row)
    return found


def _fits(key: str) -> bool:
    try:
        return 0 < len(key.encode()) <= MAX_KEY_BYTES and "\0" not in key
    except UnicodeEncodeError:
        return False


def _shown(path: Path) -> str:
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _why(error: Exception) -> str:
    if isinstance(error, _Refusal):
        first = error.refused[0]
        more = len(error.refused) - 1
        return f"{first.key}: {first.why}" + (f" (and {more} more)" if more else "")
    if isinstance(error, KsiError):
        return error.message
    return str(error).partition("\n")[0]


# -- items ----------------------------------------------------------------------------------------


def _merged(some: Sequence[_Prepared]) -> list[_Batch]:
    """Return the items of several files, in as few batches as can be, in their order."""
    found: dict[tuple[int, str, e.Origin], list[e.NewItem]] = {}
    for each in some:
        for batch in each.batches:
            if batch.items:
                key = (batch.stage, batch.table, batch.origin)
                found.setdefault(key, []).extend(batch.items)
    return [_Batch(*key, found[key]) for key in sorted(found)]


def _file_item(how: How, file: File, table: str, parts: int) -> e.NewItem:
    attributes: dict[str, Any] = {
        "sha256": file.sha256,
        "size_bytes": len(file.data),
        "media_type": file.media_type or media_type_of(file.name),
        "made_by": how.made_by,
        "table": table,
        "parts": parts,
    }
    if file.path:
        attributes["path"] = file.path
    if file.modified_at is not None:
        attributes["modified_at"] = file.modified_at.isoformat()
    return e.NewItem(
        key=file.key, owner=how.owner, title=file.name, category=how.category, attributes=attributes
    )


def _source(table: str, how: How, file: File) -> e.Source:
    return e.Source(kind="item", item=str(item_id(table, file.key, how.owner)))


def _rows(how: How, file: File, rows: Rows, was_in: str) -> _Prepared:
    """Make items of rows; those that can't be are told of, and the others are remembered."""
    source = msgspec.structs.replace(_source(FILES, how, file), told=A_ROW_OF_IT)
    items: dict[str, list[e.NewItem]] = {}
    problems = []
    for row in rows.rows:
        if row.item is None:
            problems.append(e.Refused(place=row.place, key=row.key, why=row.why))
            continue
        item = msgspec.structs.replace(row.item, sources=(source,))
        if not item.owner:
            item = msgspec.structs.replace(item, owner=how.owner)
        if item.category is None and how.category is not None:
            item = msgspec.structs.replace(item, category=how.category)
        items.setdefault(row.table, []).append(item)
    return _Prepared(
        file=file,
        batches=(
            _Batch(FILE, FILES, "given", [_file_item(how, file, "", 0)]),
            *(_Batch(ROWS, table, "given", batch) for table, batch in items.items()),
        ),
        rows=None if problems else tuple(_ids(items)),
        was_in=was_in,
        problems=tuple(problems),
    )


def _ids(items: dict[str, list[e.NewItem]]) -> Iterator[UUID]:
    for table, batch in items.items():
        for each in batch:
            yield item_id(table, each.key, each.owner)


def _document(how: How, file: File, document: Document, table: str, was_in: str) -> _Prepared:
    """Make items of a document: itself, and its chunks."""
    chunks = chunks_of(
        document.text,
        form=document.form,
        size=how.chunk_characters,
        overlap=how.overlap_characters,
    )
    if not document.text.strip():
        chunks = ()
    source = _source(table, how, file)
    category = how.category if how.category is not None else document.category
    title = document.title or file.name
    whole = e.NewItem(
        key=file.key,
        owner=how.owner,
        title=title[:2000],
        body=document.summary or _beginning(document.text),
        category=category,
        attributes={
            **document.attributes,
            "file": file.name,
            "media_type": file.media_type or media_type_of(file.name),
            "chunks": len(chunks),
            "characters": len(document.text),
        },
        persons=document.persons,
        starts_at=document.starts_at,
        ends_at=document.ends_at,
        edges=(*document.edges, *_sections(file.key, document, chunks))[:1000],
        sources=(_source(FILES, how, file),),
    )
    parts = [
        e.NewItem(
            key=f"{file.key}#{place}",
            owner=how.owner,
            title=_part_title(title, chunk),
            body=chunk.text,
            category=category,
            attributes=_position(document, chunk),
            persons=document.persons,
            session=file.key,
            place=place,
            starts_at=document.starts_at,
            ends_at=document.ends_at,
            edges=(),
            sources=(source,),
        )
        for place, chunk in enumerate(chunks)
    ]
    return _Prepared(
        file=file,
        batches=(
            _Batch(FILE, FILES, "given", [_file_item(how, file, table, len(chunks))]),
            _Batch(DOCUMENT, table, "derived", [whole]),
            _Batch(PARTS, table, "derived", parts),
        ),
        document=table,
        parts=len(chunks),
        was_in=was_in,
    )


def _beginning(text: str) -> str:
    """Return the first words of a text, as what stands for the whole of it."""
    if len(text) <= SUMMARY:
        return text.strip()
    return text[:SUMMARY].rpartition(" ")[0].strip() or text[:SUMMARY].strip()


def _part_title(title: str, chunk: Chunk) -> str:
    path = [title, *(each for each in chunk.headings if each != title)]
    return " › ".join(path)[:2000]


def _position(document: Document, chunk: Chunk) -> dict[str, Any]:
    position: dict[str, Any] = {"offset": document.offset + chunk.start, "length": len(chunk.text)}
    if chunk.overlap:
        position["overlap"] = chunk.overlap
    if chunk.headings:
        position["headings"] = list(chunk.headings)
    return position


def _sections(key: str, document: Document, chunks: Sequence[Chunk]) -> Iterator[e.Edge]:
    """Yield an edge to the chunk where each heading stands."""
    if document.form != "markdown" or not chunks:
        return
    headings = headings_of(document.text)[:MAX_HEADINGS]
    place = 0
    seen: set[int] = set()
    for heading in headings:
        while place + 1 < len(chunks) and chunks[place].end <= heading.offset:
            place += 1
        if place not in seen:
            seen.add(place)
            yield e.Edge(to=f"{key}#{place}", relation="has_section")

"""Takes what is remembered out as lines of JSON, and in again, with every version and source."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_memory import events as e
from ksi_memory.items.drafts import Drafting, Unfit
from ksi_memory.items.ids import item_id
from ksi_memory.settings import MemorySettings
from ksi_memory.tables import TABLES
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
FORMAT: Final = 1
LINES_AT_ONCE: Final = 200
ROWS_AHEAD: Final = 50
BYTES_AT_ONCE: Final = 512 * 1024
WHY_NOT: Final = {
    "differs": "another text is known as this version",
    "forgotten": "it was forgotten here",
    "vanished": "it went with what it came from, which was deleted here",
    "superseded": "another version holds here",
    "no_table": "there is no such table here",
}
_BLAMED: Final = (
    InvalidData,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.IntegrityConstraintViolationError,
)


class Head(Struct, frozen=True, tag_field="is", tag="memory", forbid_unknown_fields=True):
    """The first line: which form the others have."""

    format: int


class ForgottenLine(Struct, frozen=True, tag_field="is", tag="forgotten"):
    """What was forgotten, and whose it was."""

    id: UUID
    kind: e.Table
    text_hash: str
    forgotten_at: datetime
    reason: str = ""
    owner: str | None = None


class ItemLine(Struct, frozen=True, kw_only=True, tag_field="is", tag="item"):
    """A version of an item."""

    id: UUID
    kind: e.Table
    owner: str
    key: str
    version: int
    title: str
    body: str
    category: str | None = None
    attributes: msgspec.Raw
    persons: tuple[str, ...]
    session: str | None = None
    place: int | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    days: str
    words: int
    hash: str
    origin: e.Origin
    is_pinned: bool
    valid_from: datetime
    valid_to: datetime | None = None
    recorded_at: datetime
    edges: tuple[e.Edge, ...] | None = None
    sources: tuple[e.Source, ...] | None = None

    def as_new(self) -> e.NewItem:
        """Return it as it was given."""
        return e.NewItem(
            key=self.key,
            owner=self.owner,
            title=self.title,
            body=self.body,
            category=self.category,
            attributes=msgspec.json.decode(self.attributes, type=dict[str, Any]),
            persons=self.persons,
            session=self.session,
            place=self.place,
            starts_at=self.starts_at,
            ends_at=self.ends_at,
            edges=self.edges or (),
            sources=self.sources or (),
            valid_from=self.valid_from,
        )


Line: TypeAlias = Head | ForgottenLine | ItemLine
_DECODER: Final = msgspec.json.Decoder(Line)


class Transfer:
    """Exports and imports what is remembered.

    Args:
        database: The store.
        settings: Sizes.
    """

    def __init__(self, database: Database, settings: MemorySettings) -> None:
        self._database = database
        self._settings = settings

    async def export(
        self, whose: Whose, table: str | None, owner: str | None
    ) -> AsyncGenerator[list[str]]:
        """Yield lines: first what was forgotten, then all versions as they were recorded.

        They are those of one moment.
        """
        yield [msgspec.json.encode(Head(FORMAT)).decode()]
        lines: list[str] = []
        size = 0
        async with self._database.transaction(tenant=whose.tenant, readonly=True) as connection:
            rows = connection.cursor(SQL["export"], whose.user, table, owner, prefetch=ROWS_AHEAD)
            async for row in rows:
                lines.append(row["line"])
                size += len(row["line"])
                if len(lines) >= LINES_AT_ONCE or size >= BYTES_AT_ONCE:
                    yield lines
                    lines, size = [], 0
        if lines:
            yield lines

    async def take_in(self, whose: Whose, lines: Sequence[str]) -> e.MemoryImported:
        """Take in lines that were exported; what is there already stays as it is."""
        fit: list[tuple[int, str, bytes]] = []
        refused: list[e.Refused] = []
        for place, line in enumerate(lines):
            try:
                key, row = self._checked(whose, line)
            except Unfit as error:
                refused.append(e.Refused(place=place, key="", why=str(error)))
            else:
                if row is not None:
                    fit.append((place, key, row))
        counts = {"inserted": 0, "unchanged": 0}
        async for place, key, verdict in self._written(whose, fit):
            if verdict in counts:
                counts[verdict] += 1
            else:
                why = WHY_NOT.get(verdict, verdict)
                refused.append(e.Refused(place=place, key=key[:200], why=why))
        return e.MemoryImported(
            **counts, refused=tuple(sorted(refused, key=lambda each: each.place))
        )

    def _checked(self, whose: Whose, line: str) -> tuple[str, bytes | None]:
        """Return a line's key, and the line as the store takes it.

        Raises:
            Unfit: It is none that was exported, or not the sender's.
        """
        try:
            found = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise Unfit(f"it is no line that was exported: {error}") from error
        if isinstance(found, Head):
            if found.format != FORMAT:
                raise Unfit(f"its form is {found.format}; known is {FORMAT}")
            return "", None
        if isinstance(found, ForgottenLine):
            if whose.user is not None:
                raise Unfit("what was forgotten is the daemon's owner's to take in")
            if not _is_hash(found.text_hash):
                raise Unfit("its text_hash is none")
            return "", msgspec.json.encode(found)
        self._check_item(whose, found)
        return found.key, msgspec.json.encode(found)

    def _check_item(self, whose: Whose, found: ItemLine) -> None:
        if whose.user is not None and found.owner != whose.user:
            raise Unfit("it belongs to somebody else")
        if found.id != item_id(found.kind, found.key, found.owner):
            raise Unfit("its id is not that of its table, its key and its owner")
        if not _is_hash(found.hash) or not 1 <= found.version < 2**31:
            raise Unfit("its hash or its version is none")
        if not 0 <= found.words < 2**31:
            raise Unfit("its number of words is none")
        if found.valid_to is not None and found.valid_to < found.valid_from:
            raise Unfit("it ends to hold before it begins to")
        try:
            Drafting(self._settings, whose, found.kind).one(0, found.as_new())
        except msgspec.DecodeError as error:
            raise Unfit(f"its attributes are none: {error}") from error

    async def _written(
        self, whose: Whose, rows: Sequence[tuple[int, str, bytes]]
    ) -> AsyncIterator[tuple[int, str, str]]:
        """Write rows, and yield what came of each; where one can't be, write the others."""
        if not rows:
            return
        given = "[" + ",".join(row.decode() for _, _, row in rows) + "]"
        try:
            verdicts = await self._database.fetchval(
                SQL["import"], whose.tenant, whose.user, list(TABLES), given
            )
        except _BLAMED as error:
            if len(rows) == 1:
                yield rows[0][0], rows[0][1], str(error).partition("\n")[0]
                return
            half = len(rows) // 2
            for part in (rows[:half], rows[half:]):
                async for each in self._written(whose, part):
                    yield each
            return
        for (place, key, _), verdict in zip(rows, verdicts, strict=True):
            yield place, key, verdict


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)

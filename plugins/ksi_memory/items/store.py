"""Keeps what is remembered: the one way in for all that is written, and the items themselves."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from ksi_daemon.protocol import Busy, Conflict, Denied, Failed, InvalidData, NotFound
from ksi_memory import events as e
from ksi_memory.items import schemas
from ksi_memory.items.drafts import Check, Draft, Drafting, days_of
from ksi_memory.settings import MemorySettings
from ksi_memory.tables import TABLES
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__)
MAX_ROWS: Final = 1000  # of one statement
PART: Final = 500  # so many are made ready while others are written
MAX_BYTES: Final = 8 * 1024 * 1024
MAX_TOLD: Final = 100
SMALL: Final = 20  # so many are made rows of at once; more would keep others waiting
ATTEMPTS: Final = 4
OWNER: Final = "the daemon's owner"
WHY_NOT: Final = {
    "forgotten": "it was forgotten; to remember it all the same, say even_forgotten",
    "no_source": "a source that it names is not there",
    "protected": "a person said otherwise",
    "ends_first": "it would end before it starts",
    "too_old": "it would hold since before what is known of it",
    "no_attributes": "the table's schema wants attributes",
}
# What one item of many may be to blame for; which one, is found out.
_BLAMED: Final = (
    InvalidData,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.IntegrityConstraintViolationError,
)

Publish = Callable[[str, Any], None]


class _Outcome:
    """What came of a batch, as far as it has come."""

    def __init__(self) -> None:
        self.refused: list[e.Refused] = []
        self.ids: list[tuple[int, str]] = []
        self.counts = {"inserted": 0, "updated": 0, "unchanged": 0}
        self.dangling: list[str] = []

    def take(self, draft: Draft, verdict: str) -> None:
        """Note what came of an item."""
        if verdict in self.counts:
            self.counts[verdict] += 1
            self.ids.append((draft.place, draft.id))
        else:
            self.refuse(draft, WHY_NOT[verdict])

    def refuse(self, draft: Draft, why: str) -> None:
        """Note that an item was not remembered."""
        self.refused.append(e.Refused(place=draft.place, key=draft.key[:200], why=why))

    def told(self) -> e.MemoryUpserted:
        """Return it as it is answered."""
        return e.MemoryUpserted(
            ids=tuple(each for _, each in sorted(self.ids)),
            **self.counts,
            refused=tuple(sorted(self.refused, key=lambda each: each.place)),
            dangling=tuple(dict.fromkeys(self.dangling))[:MAX_TOLD],
        )


class Items:
    """What is remembered, of all tenants.

    Args:
        database: The store.
        settings: Sizes.
        publish: Tells of what was remembered and forgotten; nobody unless given.
    """

    def __init__(
        self, database: Database, settings: MemorySettings, publish: Publish | None = None
    ) -> None:
        self._database = database
        self._settings = settings
        self._publish = publish or (lambda event, data: None)
        self._checks = schemas.Checks()

    # -- writing --------------------------------------------------------------------------------

    async def upsert(
        self,
        whose: Whose,
        table: str,
        items: Sequence[e.NewItem],
        *,
        origin: e.Origin = "given",
        even_forgotten: bool = False,
    ) -> e.MemoryUpserted:
        """Remember items: new ones, and those that differ from what is known in a new version.

        Whatever can't be remembered is told of, and the rest is. Items that are said to come from
        nowhere come from the run, or from whoever's event it is.

        Raises:
            NotFound: There is no such table.
        """
        check = await self._check(whose, table)
        drafting = Drafting(self._settings, whose, table, check)
        outcome = _Outcome()
        needs_attributes = check is not None and check({}) is not None
        words = (table, origin, even_forgotten, needs_attributes)
        async with aclosing(_drafted(drafting, items)) as batches:
            async for drafts, refused in batches:
                outcome.refused += refused
                for some in _slices(drafts):
                    await self._write(whose, words, some, outcome)
        told = outcome.told()
        if told.inserted or told.updated:
            self._publish(
                "memory:changed",
                e.MemoryChanged(table=table, inserted=told.inserted, updated=told.updated),
            )
        return told

    async def _check(self, whose: Whose, table: str) -> Check | None:
        """Return what holds attributes to the schema of a table, if it has one.

        Raises:
            NotFound: There is no such table.
        """
        if table in TABLES:
            return None
        try:
            found = await self.get(whose, id=schemas.schema_id("table", table))
        except NotFound as error:
            raise schemas.no_such_table(table) from error
        return self._checks.of(table, found.attributes)

    async def _write(
        self, whose: Whose, words: tuple[Any, ...], drafts: Sequence[Draft], outcome: _Outcome
    ) -> None:
        """Write some items; where one of them can't be, find out which, and write the others."""
        try:
            row = await self._upserted(whose, words, drafts)
        except _BLAMED as error:
            if len(drafts) == 1:
                outcome.refuse(drafts[0], str(error).partition("\n")[0])
                return
            half = len(drafts) // 2
            await self._write(whose, words, drafts[:half], outcome)
            await self._write(whose, words, drafts[half:], outcome)
            return
        for draft, verdict in zip(drafts, row["verdicts"], strict=True):
            outcome.take(draft, verdict)
        outcome.dangling += row["dangling"] or ()

    async def _upserted(
        self, whose: Whose, words: tuple[Any, ...], drafts: Sequence[Draft]
    ) -> asyncpg.Record:
        given = "[" + ",".join(draft.json.decode() for draft in drafts) + "]"
        by_whom = whose.user or whose.agent or whose.origin or OWNER
        for attempt in range(1, ATTEMPTS + 1):
            try:
                row = await self._database.fetchrow(
                    SQL["upsert"], whose.tenant, whose.user, *words, whose.run, by_whom, given
                )
                break
            except (Busy, asyncpg.ForeignKeyViolationError, asyncpg.UniqueViolationError):
                # A message that it comes from goes just now, or a conversation: look again.
                if attempt == ATTEMPTS:
                    raise
        assert row is not None
        for mixed in msgspec.json.decode(row["mixed"] or "[]"):
            await self._set_days(whose.tenant, mixed)
        return row

    async def _set_days(self, tenant: str, mixed: dict[str, Any]) -> None:
        """Note of which days the text of a version speaks that was given in parts."""
        at = None if mixed["starts_at"] is None else datetime.fromisoformat(mixed["starts_at"])
        days = days_of(f"{mixed['title']}\n{mixed['body']}", at) or "{}"
        await self._database.fetchval(
            SQL["set_days"], tenant, UUID(mixed["id"]), mixed["version"], days
        )

    # -- reading --------------------------------------------------------------------------------

    async def get(
        self,
        whose: Whose,
        *,
        id: str | UUID | None = None,  # noqa: A002  it is what the field is called
        key: str | None = None,
        table: str | None = None,
        owner: str | None = None,
        as_of: datetime | None = None,
    ) -> e.Item:
        """Return an item, as it is or as it was then.

        Raises:
            Conflict: Several bear that key.
            InvalidData: It is named neither by an id nor by a key.
            NotFound: There is none, or it is not the asker's to see.
        """
        found = await self._database.fetch(
            SQL["find"], whose.tenant, whose.user, _uuid(id), key, table, owner, as_of
        )
        if id is None and key is None:
            raise InvalidData("name an item, by its id or its key")
        if not found:
            what = f"the id {id}" if id is not None else repr(key)
            raise NotFound(f"nothing is remembered as {what}{_where(table, owner, as_of)}")
        if len(found) > 1:
            choices = [f"{row['kind']}/{row['key']} of {row['owner'] or 'all'}" for row in found]
            raise Conflict(
                f"{key!r} is the key of several; name the table, the owner or the id: "
                + ", ".join(choices),
                details={"ids": [str(row["id"]) for row in found]},
            )
        return item_of(found[0])

    async def list(self, whose: Whose, request: e.MemoryList) -> e.MemoryListed:
        """Return a page of items by table and key, without their texts.

        Raises:
            InvalidData: The cursor is none of this list's.
        """
        after = _read_cursor(request.cursor)
        rows = await self._database.fetch(
            SQL["list"],
            whose.tenant,
            whose.user,
            request.table,
            request.owner,
            request.category,
            request.origin,
            *after,
            request.limit,
        )
        more = None
        if len(rows) == request.limit:
            last = rows[-1]
            more = _cursor(last["kind"], last["name"], str(last["id"]))
        return e.MemoryListed(items=tuple(map(item_of, rows)), next=more)

    async def stats(self, whose: Whose) -> e.MemoryCounted:
        """Return the memory in figures, but for the vectors'."""
        tables = await self._database.fetch(SQL["count"], whose.tenant, whose.user)
        rest = await self._database.fetchrow(SQL["count_rest"], whose.tenant, whose.user)
        assert rest is not None
        return e.MemoryCounted(
            tables=tuple(
                e.TableStats(
                    table=row["kind"],
                    items=row["items"],
                    versions=row["versions"],
                    words=row["words"],
                )
                for row in tables
            ),
            embedders=(),
            edges=rest["edges"],
            forgotten=rest["forgotten"],
        )

    async def chain(self, whose: Whose, id: str) -> Sequence[e.Item]:  # noqa: A002  as above
        """Return an item's versions, the newest first, and then what they rest on, step by step."""
        rows = await self._database.fetch(
            SQL["chain"], whose.tenant, whose.user, UUID(id), self._settings.max_why_steps
        )
        return [item_of(row) for row in rows]

    async def resting_on(self, whose: Whose, id: str) -> tuple[str, ...]:  # noqa: A002  as above
        """Return the ids of what was derived of an item."""
        rows = await self._database.fetch(
            SQL["resting_on"], whose.tenant, whose.user, UUID(id), self._settings.max_why_steps
        )
        return tuple(str(row["id"]) for row in rows)

    # -- what a person says of it ---------------------------------------------------------------

    async def correct(self, whose: Whose, item: e.Item, request: e.MemoryCorrect) -> e.Item:
        """Have what a person says supersede what was remembered.

        Raises:
            Denied: It is not the asker's.
            InvalidData: It can't be remembered.
        """
        check_own(whose, item)
        who = whose.user or whose.agent or whose.origin or OWNER
        told = await self.upsert(
            whose,
            item.table,
            [
                e.NewItem(
                    key=item.key,
                    owner=item.owner,
                    title=request.title,
                    body=request.body,
                    attributes=request.attributes,
                    sources=(e.Source(kind="person", told=_told(who, request.reason)),),
                )
            ],
            even_forgotten=True,
        )
        if told.refused:
            raise InvalidData(f"it can't be corrected so: {told.refused[0].why}")
        return await self.get(whose, id=item.id)

    async def pin(self, whose: Whose, item: e.Item, *, pinned: bool) -> e.Item:
        """Have nothing but a person change an item, or let it go.

        Raises:
            Denied: It is not the asker's.
        """
        check_own(whose, item)
        await self._database.fetchval(SQL["pin"], whose.tenant, UUID(item.id), pinned)
        return await self.get(whose, id=item.id)

    async def forget(
        self,
        whose: Whose,
        ids: Sequence[str],
        *,
        everything_of: str | None = None,
        reason: str = "",
        dry_run: bool = False,
    ) -> e.MemoryForgotten:
        """Forget items in all versions, and what machines derived from them alone.

        What they made of it together with other things is made anew without it, or goes as well
        where it says the same. After that it is looked for in all of the memory. A dry run does
        all of it in a transaction that it takes back.

        Raises:
            Denied: One is not the asker's.
            Failed: Something is still there.
            NotFound: One is not there, or not the asker's to see.
        """
        for each in ids:
            check_own(whose, await self.get(whose, id=each))
        row = await self._database.fetchrow(
            SQL["forget"],
            whose.tenant,
            whose.user,
            [UUID(each) for each in ids],
            everything_of,
            reason,
            dry_run,
        )
        assert row is not None
        gone = tuple(sorted(map(str, row["gone"])))
        ids = tuple(sorted(map(str, (*row["gone"], *row["along"]))))
        checked: tuple[str, ...] = ()
        kept = list(_kept(row))
        if not dry_run:
            checked, texts_in = await self._look_for(whose.tenant, gone, row["needles"])
            kept += [f"its text, in {place} of the memory" for place in texts_in]
            await self._look_for_all_of(whose.tenant, everything_of)
        if ids and not dry_run:
            self._publish("memory:forgot", e.MemoryForgot(ids=ids))
        return e.MemoryForgotten(
            ids=ids,
            rewritten=tuple(map(str, row["rewritten"])),
            uploads=row["uploads"],
            checked=checked,
            kept=tuple(kept),
            dry_run=dry_run,
        )

    async def _look_for(
        self, tenant: str, ids: Sequence[str], needles: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return where was looked, and where texts were found.

        Raises:
            Failed: An id was found.
        """
        uuids = [UUID(each) for each in ids]
        by_id = await self._database.fetchrow(SQL["look_for"], tenant, uuids, [])
        by_text = await self._database.fetchrow(SQL["look_for"], tenant, [], needles)
        assert by_id is not None
        assert by_text is not None
        _refuse_what_is_left(by_id["found_in"])
        return tuple(by_id["looked_at"]), tuple(by_text["found_in"])

    async def _look_for_all_of(self, tenant: str, user: str | None) -> None:
        """Make sure that nothing belongs to a user of whom everything was forgotten.

        Raises:
            Failed: Something does.
        """
        if user is not None:
            _refuse_what_is_left(await self._database.fetchval(SQL["left_of"], tenant, user))


def check_own(whose: Whose, item: e.Item) -> None:
    """Make sure that an item is the asker's to change.

    Raises:
        Denied: It is everybody's.
    """
    if whose.user is not None and item.owner != whose.user:
        raise Denied(
            f"{item.table}/{item.key} belongs to everybody: the daemon's owner alone changes it"
        )


def _refuse_what_is_left(places: Sequence[str]) -> None:
    if places:
        where = ", ".join(places)
        raise Failed(f"what was to be forgotten is still named in {where}: report this")


def _told(who: str, reason: str) -> str:
    return f"{who}: {reason}"[:2000] if reason else who


def _kept(row: Any) -> Iterator[str]:
    """Say where copies may be that are out of reach."""
    for message in row["messages"]:
        yield f"{message}, which it came from (conversation:delete forgets that)"
    for item in row["said_by"]:
        yield f"{item}, whose own text says the same"
    for item in row["led_to_by"]:
        yield f"{item}, an edge of which leads to its key"
    yield "the journal, as far as it recorded the events that brought it (journal.retention_days)"
    yield f"backups that were made before {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _cursor(*parts: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode()


def _read_cursor(given: str | None) -> tuple[str | None, str | None, UUID | None]:
    if given is None:
        return None, None, None
    try:
        decoded = base64.urlsafe_b64decode(given.encode("ascii"))
        kind, name, last = msgspec.json.decode(decoded, type=tuple[str, str, UUID])
    except (ValueError, msgspec.DecodeError) as error:
        raise InvalidData("the cursor is none that memory:list has given") from error
    return kind, name, last


def _uuid(given: str | UUID | None) -> UUID | None:
    if given is None or isinstance(given, UUID):
        return given
    try:
        return UUID(given)
    except ValueError as error:
        raise NotFound(f"nothing is remembered as the id {given[:100]!r}") from error


def _where(table: str | None, owner: str | None, as_of: datetime | None) -> str:
    return (
        (f" in {table}" if table else "")
        + (f" of {owner}" if owner else "")
        + (f" as of {as_of.isoformat()}" if as_of else "")
    )


def item_of(row: Any) -> e.Item:
    """Make an item of what the store shows of it."""
    return e.Item(
        id=str(row["id"]),
        table=row["kind"],
        key=row["key"],
        version=row["version"],
        owner=row["owner"],
        title=row["title"],
        body=row["body"],
        category=row["category"],
        attributes=msgspec.json.decode(row["attributes"]),
        persons=tuple(row["persons"]),
        session=row["session"],
        place=row["place"],
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        edges=msgspec.json.decode(row["edges"] or "[]", type=tuple[e.Edge, ...]),
        sources=msgspec.json.decode(row["sources"] or "[]", type=tuple[e.Source, ...]),
        origin=row["origin"],
        is_pinned=row["is_pinned"],
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
    )


async def _drafted(
    drafting: Drafting, items: Sequence[e.NewItem]
) -> AsyncGenerator[tuple[list[Draft], list[e.Refused]]]:
    """Yield rows of items, part by part; the next part is made while one is written."""
    if len(items) <= SMALL:
        yield drafting.all(items)
        return
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, drafting.all, items[:PART], 0)
    for first in range(PART, len(items) + PART, PART):
        made = await ahead
        if first < len(items):
            ahead = loop.run_in_executor(None, drafting.all, items[first : first + PART], first)
        yield made


def _slices(drafts: Sequence[Draft]) -> Iterator[Sequence[Draft]]:
    """Cut a batch into what one statement can take."""
    first = size = 0
    for place, draft in enumerate(drafts):
        if place > first and (place - first >= MAX_ROWS or size + len(draft.json) > MAX_BYTES):
            yield drafts[first:place]
            first, size = place, 0
        size += len(draft.json)
    if first < len(drafts):
        yield drafts[first:]

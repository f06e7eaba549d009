"""Makes rows of what is to be remembered, and says what can't be."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ksi_memory.events import Edge, NewItem, Refused, Source
from ksi_memory.items.ids import folded, item_id
from ksi_memory.language import dates
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose

MAX_KEY_BYTES: Final = 1000  # an index holds it, together with its table and its owner
MAX_OWNER_CHARACTERS: Final = 200
MAX_PLACE: Final = 2**31 - 1
MAX_MESSAGE: Final = 2**63 - 1
AHEAD: Final = timedelta(minutes=5)  # how far another machine's clock may be wrong

Check = Callable[[dict[str, Any]], str | None]


class SourceRow(Struct, frozen=True, omit_defaults=True):
    """A source as the store takes it."""

    conversation: str | None = None
    message: int | None = None
    item: str | None = None
    version: int | None = None
    run: str | None = None
    told: str | None = None


class Row(Struct, omit_defaults=True):
    """An item as the store takes it; what is left out stays as it is."""

    id: str
    owner: str
    key: str
    category: str | None = None
    title: str | None = None
    body: str | None = None
    attributes: msgspec.Raw | UnsetType = UNSET
    persons: tuple[str, ...] | None = None
    session: str | None = None
    place: int | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    edges: tuple["EdgeRow", ...] | None = None
    valid_from: datetime | None = None
    days: str | None = None
    words: int = -1
    hash: str = ""
    text_hash: str = ""
    sources: tuple[SourceRow, ...] | None = None


class EdgeRow(Struct, frozen=True):
    """An edge as the store takes it."""

    to: str
    relation: str
    weight: float


class Draft(Struct, frozen=True):
    """A row on its way: where it stood, and the JSON that is sent."""

    place: int
    key: str
    id: str
    json: bytes


class Unfit(Exception):
    """An item can't be remembered; the message says why."""


class Drafting(Struct):
    """Makes rows for a table.

    Args:
        settings: Sizes.
        whose: In whose name.
        table: Where to.
        check: Says what does not fit about attributes, if anything.
    """

    settings: MemorySettings
    whose: Whose
    table: str
    check: Check | None = None
    known: dict[str, int] = {}  # ids of the batch so far, and where they stand

    def all(self, items: Sequence[NewItem], first: int = 0) -> tuple[list[Draft], list[Refused]]:
        """Make rows of what fits, and say of the rest why it does not.

        Args:
            items: Some of a batch.
            first: Where in the batch they begin.
        """
        drafts: list[Draft] = []
        refused: list[Refused] = []
        for place, item in enumerate(items, first):
            try:
                draft = self.one(place, item)
                known = self.known.setdefault(draft.id, place)
                if known != place:
                    raise Unfit(f"it is a duplicate of number {known} of the same batch")
            except Unfit as error:
                refused.append(Refused(place=place, key=_shown(item.key), why=str(error)))
            else:
                drafts.append(draft)
        return drafts, refused

    def one(self, place: int, item: NewItem) -> Draft:
        """Make the row of an item.

        Raises:
            Unfit: It can't be remembered.
        """
        try:
            return self._draft(place, item)
        except UnicodeEncodeError as error:
            raise Unfit("a text holds half a character (a lone surrogate)") from error
        except RecursionError as error:
            raise Unfit("its attributes are nested too deep") from error

    def _draft(self, place: int, item: NewItem) -> Draft:
        owner = self._owner(item.owner)
        self._check_key("the key", item.key)
        if not folded(item.key):
            raise Unfit("its key is empty")
        self._check_sizes(item)
        starts_at, ends_at = _utc("starts_at", item.starts_at), _utc("ends_at", item.ends_at)
        row = Row(
            id=str(item_id(self.table, item.key, owner)),
            owner=owner,
            key=item.key.strip(),
            category=item.category,
            title=item.title,
            body=item.body,
            attributes=self._attributes(item.attributes),
            persons=item.persons,
            session=item.session,
            place=item.place,
            starts_at=starts_at,
            ends_at=ends_at,
            edges=None if item.edges is None else tuple(map(self._edge, item.edges)),
            valid_from=_valid_from(item.valid_from),
        )
        _fill(row)
        row.sources = tuple(map(_source, item.sources)) or None
        encoded = msgspec.json.encode(row)
        if b"\\u0000" in encoded and _has_nul(msgspec.to_builtins(item)):
            raise Unfit("a text holds a NUL character")
        return Draft(place, item.key, row.id, encoded)

    def _owner(self, owner: str) -> str:
        user = self.whose.user
        if len(owner) > MAX_OWNER_CHARACTERS:
            raise Unfit(f"its owner's name is longer than {MAX_OWNER_CHARACTERS} characters")
        if user is None or owner == user:
            return owner
        if owner:
            raise Unfit("it would belong to somebody else")
        return user

    def _check_key(self, what: str, key: str) -> None:
        size = len(key.encode())
        if size > MAX_KEY_BYTES:
            raise Unfit(f"{what} has {size:,} bytes; at most {MAX_KEY_BYTES:,} are possible")

    def _check_sizes(self, item: NewItem) -> None:
        length = len(item.title or "") + len(item.body or "")
        bound = self.settings.max_item_characters
        if length > bound:
            raise Unfit(
                f"its text has {length:,} characters; at most {bound:,} are possible "
                "(memory.max_item_characters): load it in chunks, by content:load"
            )
        if item.session is not None:
            self._check_key("the session", item.session)
        for person in item.persons or ():
            self._check_key("a person's name", person)
        for name in ("persons", "edges", "sources"):
            count, limit = len(getattr(item, name) or ()), self.settings.max_item_links
            if count > limit:
                raise Unfit(f"it has {count:,} {name}; {limit:,} at most (memory.max_item_links)")
        if item.place is not None and not 0 <= item.place <= MAX_PLACE:
            raise Unfit(f"its place is to be between 0 and {MAX_PLACE}")

    def _attributes(self, given: dict[str, Any] | None) -> msgspec.Raw | UnsetType:
        if given is None:
            return UNSET
        try:
            encoded = msgspec.json.encode(given)
        except UnicodeEncodeError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise Unfit(f"its attributes are no JSON: {error}") from error
        bound = self.settings.max_attributes_bytes
        if len(encoded) > bound:
            raise Unfit(
                f"its attributes have {len(encoded):,} bytes as JSON; at most {bound:,} are "
                "possible (memory.max_attributes_bytes)"
            )
        wrong = None if self.check is None else self.check(msgspec.json.decode(encoded))
        if wrong:
            raise Unfit(wrong)
        return msgspec.Raw(encoded)

    def _edge(self, edge: Edge) -> EdgeRow:
        self._check_key("an edge's key", edge.to)
        if not folded(edge.to) or not edge.relation:
            raise Unfit("an edge leads to no key, or has no relation")
        if not 0 <= edge.weight <= 1:
            raise Unfit(f"the weight of an edge to {_shown(edge.to)} is not in [0, 1]")
        return EdgeRow(edge.to, edge.relation, edge.weight)


def _fill(row: Row) -> None:
    """Note what is known of a row's content: its hashes, its words, the days it speaks of."""
    row.hash = "\\x" + hashlib.sha256(msgspec.json.encode(row)).hexdigest()
    title, body = row.title or "", row.body or ""
    text = f"{title}\n{body}"
    row.text_hash = "\\x" + hashlib.sha256(text.encode()).hexdigest()
    row.words = len(text.split())
    row.days = days_of(text, row.starts_at)


def days_of(text: str, at: datetime | None) -> str | None:
    """Return the days that a text speaks of as the store takes them; ``None`` where there are none.

    ``at`` is when it was said.
    """
    spans = dates.spoken_of(text, at)
    if not spans:
        return None
    return "{" + ",".join(f"[{first:%Y-%m-%d},{after:%Y-%m-%d})" for first, after in spans) + "}"


def _utc(what: str, at: datetime | None) -> datetime | None:
    if at is None:
        return None
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError as error:
        raise Unfit(f"{what} lies beyond the years 1 to 9999") from error


def _valid_from(given: datetime | None) -> datetime | None:
    at = _utc("valid_from", given)
    if at is not None and at > datetime.now(UTC) + AHEAD:
        raise Unfit("valid_from lies in the future")
    return at


def _source(source: Source) -> SourceRow:
    if source.kind == "message":
        if not source.conversation_id:
            raise Unfit("a source that is a message names no conversation_id")
        if not 0 <= (source.message or 0) <= MAX_MESSAGE:
            raise Unfit("a source names a message that can't be")
        return SourceRow(
            conversation=source.conversation_id, message=source.message, told=source.told or None
        )
    if source.kind == "item":
        if not 0 <= (source.version or 0) <= MAX_PLACE:
            raise Unfit("a source names a version that can't be")
        try:
            item = str(UUID(source.item or ""))
        except ValueError as error:
            raise Unfit(f"a source names an item by {source.item!r}, which is no id") from error
        return SourceRow(item=item, version=source.version, told=source.told or None)
    if source.kind == "run":
        if not source.run_id:
            raise Unfit("a source that is a run names no run_id")
        return SourceRow(run=source.run_id, told=source.told or None)
    return SourceRow(told=source.told)


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    return any(map(_has_nul, _parts(value)))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _shown(key: str) -> str:
    """Return a key as an answer can bear it: whole characters, and not too many."""
    return key[:200].encode(errors="replace").decode()

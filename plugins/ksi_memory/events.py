"""The payloads of ``memory:*``, ``schema:*`` and ``content:*``."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Table = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}\Z")]
Key = Annotated[str, Meta(min_length=1, max_length=1000)]
# Of something to be remembered: what is too long is refused by itself, and the rest is remembered.
GivenKey = Annotated[str, Meta(description="At most 1,000 bytes.")]
Owner = Annotated[str, Meta(max_length=200)]
Category = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=2_000_000)]
Short = Annotated[str, Meta(max_length=2000)]
Relation = Annotated[str, Meta(min_length=1, max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Mode = Literal["lookup", "search", "fuzzy", "traverse", "timeline", "sql"]
Direction = Literal["out", "in", "both"]
Origin = Literal["given", "said", "derived"]


# -- what is remembered ---------------------------------------------------------------------------


class Source(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where something comes from: a message, another item, a run, or whoever said so."""

    kind: Literal["message", "item", "run", "person"]
    conversation_id: str | None = None
    message: int | None = None
    item: str | None = None
    version: int | None = None
    run_id: str | None = None
    told: Short = ""


class Edge(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an item hangs together with another, which its key names; ``weight`` is in [0, 1]."""

    to: GivenKey
    relation: Relation = "related_to"
    weight: Share = 1.0


class NewItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something to be remembered; what is left out of a known one stays as it is.

    Args:
        key: What it is called; with the table and the owner it makes the id.
        owner: The user it belongs to; empty: everybody in the tenant.
        title: A line.
        body: The text that is searched.
        category: Narrows searches.
        attributes: Anything else, up to ``memory.max_attributes_bytes``.
        persons: Who says it, or whom it is about.
        session: What it is a part of; neighbours in a session are understood together.
        place: Where in that.
        starts_at: When it happened.
        ends_at: Until when.
        edges: What it hangs together with.
        sources: Where it comes from; where none is named, whoever sends it.
        valid_from: Since when it holds; now unless given.
    """

    key: GivenKey
    owner: Owner = ""
    title: Short | None = None
    body: Text | None = None
    category: Category | None = None
    attributes: dict[str, Any] | None = None
    persons: tuple[GivenKey, ...] | None = None
    session: GivenKey | None = None
    place: Annotated[int, Meta(ge=0)] | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    edges: tuple[Edge, ...] | None = None
    sources: tuple[Source, ...] = ()
    valid_from: datetime | None = None


class Item(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something remembered, in one version."""

    id: str
    table: str
    key: str
    version: int
    owner: str = ""
    title: str = ""
    body: str = ""
    category: str | None = None
    attributes: dict[str, Any] = {}
    persons: tuple[str, ...] = ()
    session: str | None = None
    place: int | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    edges: tuple[Edge, ...] = ()
    sources: tuple[Source, ...] = ()
    origin: Origin = "given"
    is_pinned: bool = False
    valid_from: datetime
    valid_to: datetime | None = None


class MemoryUpsert(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Remember items in a table; known ones get a new version where anything differs.

    What was forgotten is remembered again only with ``even_forgotten``.
    """

    table: Table
    items: Annotated[tuple[NewItem, ...], Meta(min_length=1, max_length=10_000)]
    even_forgotten: bool = False


class Refused(Struct, frozen=True, kw_only=True):
    """An item that was not remembered; ``place`` is where it stood, from 0 on."""

    place: int
    key: str
    why: str


class MemoryUpserted(Struct, frozen=True, kw_only=True):
    """How many were new, got a new version, were known as they are, and which were refused.

    ``dangling`` are keys that edges name and nothing bears, the first hundred.
    """

    ids: tuple[str, ...]
    inserted: int
    updated: int
    unchanged: int
    refused: tuple[Refused, ...] = ()
    dangling: tuple[str, ...] = ()


class MemoryGet(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Get one item, by its id or its key; as it was at ``as_of``."""

    id: str | None = None
    key: Key | None = None
    table: Table | None = None
    owner: Owner | None = None
    as_of: datetime | None = None


class MemoryList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """List items by key, without their bodies; ``cursor`` is the answer's ``next``."""

    table: Table | None = None
    owner: Owner | None = None
    category: Category | None = None
    origin: Origin | None = None
    cursor: str | None = None
    limit: Limit = 100


class MemoryListed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A page of items."""

    items: tuple[Item, ...]
    next: str | None = None


# -- the question ---------------------------------------------------------------------------------


class MemoryQuery(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask the memory: in the REM dialect (``text``), or by a ``mode`` and what it takes.

    Args:
        text: ``SEARCH "rent" FROM moments LIMIT 5``; a plain sentence is a search.
        mode: Instead of the dialect.
        query: What a search, a FUZZY or an SQL is about.
        keys: Of a LOOKUP; the first is where a TRAVERSE starts.
        tables: Where to search; everywhere unless given.
        field: ``title`` or ``body`` alone.
        limit: How many results.
        min_similarity: Leave out results whose vectors are farther, in [0, 1].
        threshold: Of a FUZZY, in [0, 1].
        category: Only these.
        since: Only what happened then or later.
        until: Only what happened before.
        as_of: As the memory was then.
        depth: Of a TRAVERSE.
        relations: Which edges to follow; all unless given.
        direction: Along which.
        load: Whether a TRAVERSE returns the bodies.
        subject: Of a TIMELINE: a conversation's id, a user, a key.
        max_tokens: How much the results may take in a model's window.
        explain: Whether each result tells its features and their weights.
    """

    text: Annotated[str, Meta(max_length=100_000)] | None = None
    mode: Mode | None = None
    query: Annotated[str, Meta(max_length=100_000)] | None = None
    keys: Annotated[tuple[Key, ...], Meta(max_length=1000)] = ()
    tables: tuple[Table, ...] = ()
    field: Literal["title", "body"] | None = None
    limit: Limit | None = None
    min_similarity: Share | None = None
    threshold: Share | None = None
    category: Category | None = None
    since: datetime | None = None
    until: datetime | None = None
    as_of: datetime | None = None
    depth: Annotated[int, Meta(ge=0, le=100)] | None = None
    relations: tuple[Relation, ...] = ()
    direction: Direction = "out"
    load: bool = False
    subject: Key | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    explain: bool = False


class Found(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One result.

    Attributes:
        score: How good it is, by the mode's own measure; the higher the better.
        snippet: The part of its text that fits best, with the matches between ``**``.
        source: In words: ``message 12 of c_9``, ``resource notes/rent.md``.
        depth: Of a TRAVERSE: how many steps away.
        via: Of a TRAVERSE: the relation and the key it was reached by.
        is_dangling: Of a TRAVERSE: edges name the key, and nothing bears it.
        tokens: What the result takes in a model's window.
        features: Of a search with ``explain``: what its score is made of.
    """

    id: str
    table: str
    key: str
    version: int
    score: float
    owner: str = ""
    title: str = ""
    snippet: str = ""
    body: str | None = None
    category: str | None = None
    attributes: dict[str, Any] = {}
    session: str | None = None
    source: str = ""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    depth: int | None = None
    via: tuple[str, str] | None = None
    is_dangling: bool = False
    tokens: int = 0
    features: dict[str, float] | None = None


class MemoryKeys(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """List the keys that begin so, for whoever types one, and the tables that hold something."""

    beginning: Annotated[str, Meta(max_length=1000)] = ""
    limit: Limit = 20


class MemoryKeysListed(Struct, frozen=True, kw_only=True):
    """Keys in their order, and tables."""

    keys: tuple[str, ...]
    tables: tuple[str, ...]


class MemoryFound(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The results, the best first.

    Attributes:
        mode: What was done.
        columns: Of SQL: the names of the columns.
        rows: Of SQL.
        notes: What the asker should know: a cap that was hit, a search without vectors and why.
        embedder: The model whose vectors were used, if any.
        tokens: What all results take in a model's window.
        truncated: Whether there is more.
        weights: Of a search with ``explain``.
    """

    mode: Mode
    results: tuple[Found, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    notes: tuple[str, ...] = ()
    embedder: str | None = None
    tokens: int = 0
    truncated: bool = False
    weights: dict[str, float] | None = None


# -- what becomes of it ---------------------------------------------------------------------------


class MemoryWhy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask where an item comes from: its versions, their sources, and the sources of those."""

    id: str | None = None
    key: Key | None = None
    table: Table | None = None
    owner: Owner | None = None


class Because(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A link of the chain: a version or a message, what it says, and what it rests on."""

    what: str
    text: str
    at: datetime | None = None
    item: Item | None = None
    source: Source | None = None
    rests_on: tuple["Because", ...] = ()


class MemoryReasons(Struct, frozen=True, kw_only=True):
    """The versions of an item, the newest first, each with what it rests on."""

    id: str
    versions: tuple[Because, ...]
    derived: tuple[str, ...] = ()


class MemoryCorrect(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say what is right: a new version supersedes what was remembered."""

    id: str | None = None
    key: Key | None = None
    table: Table | None = None
    owner: Owner | None = None
    title: Short | None = None
    body: Text | None = None
    attributes: dict[str, Any] | None = None
    reason: Short = ""


class MemoryForget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Forget an item, in all versions, and what was derived from it alone.

    ``everything_of`` forgets all that belongs to a user. With ``dry_run`` it is only said what
    would go.
    """

    id: str | None = None
    key: Key | None = None
    table: Table | None = None
    owner: Owner | None = None
    everything_of: Owner | None = None
    reason: Short = ""
    dry_run: bool = False


class MemoryForgotten(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is gone.

    Attributes:
        ids: The items: those that were meant, what was derived of them, and moments that said it.
        rewritten: Items that rested on it among others, and have a version without it.
        uploads: How many of a user's uploads went, where all of theirs did.
        checked: Where it was looked for after that, and not found.
        kept: Where copies may be that are out of reach, such as backups, in words.
    """

    ids: tuple[str, ...]
    rewritten: tuple[str, ...] = ()
    uploads: int = 0
    checked: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    dry_run: bool = False


class MemoryPin(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Pin an item, so that nothing but a person changes it; or let it go."""

    id: str | None = None
    key: Key | None = None
    table: Table | None = None
    owner: Owner | None = None
    pinned: bool = True


class MemoryStats(Struct, frozen=True, kw_only=True):
    """Ask what is remembered, and how far the vectors are."""


class TableStats(Struct, frozen=True, kw_only=True):
    """A table in figures."""

    table: str
    items: int
    versions: int
    words: int


class EmbedderStats(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model's vectors: how many there are, how many wait, how many were set aside."""

    model: str
    dimension: int
    vectors: int
    waiting: int
    set_aside: int
    is_current: bool
    why_set_aside: tuple[str, ...] = ()


class MemoryCounted(Struct, frozen=True, kw_only=True):
    """The memory in figures."""

    tables: tuple[TableStats, ...]
    embedders: tuple[EmbedderStats, ...]
    edges: int
    forgotten: int


class MemoryReembed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Make vectors anew by a model; the old ones answer until all are there."""

    model: str | None = None
    retry_set_aside: bool = False


class MemoryReembedding(Struct, frozen=True, kw_only=True):
    """It goes on behind; ``memory:stats`` tells how far it is."""

    model: str
    waiting: int


class MemoryExport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Stream all items as lines of JSON, with every version, source and edge."""

    table: Table | None = None
    owner: Owner | None = None


class ExportedLines(Struct, frozen=True, kw_only=True):
    """Some lines, each a JSON object."""

    lines: tuple[str, ...]


class MemoryExported(Struct, frozen=True, kw_only=True):
    """All was streamed."""

    versions: int


class MemoryImport(Struct, frozen=True, kw_only=True):
    """Take in lines that were exported; what is there already stays."""

    lines: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]


class MemoryImported(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was taken in, and which lines were not."""

    inserted: int
    unchanged: int
    refused: tuple[Refused, ...] = ()


class MemoryForgot(Struct, frozen=True, kw_only=True):
    """Published when items were forgotten, so that whoever keeps copies lets them go."""

    ids: tuple[str, ...]


class MemoryChanged(Struct, frozen=True, kw_only=True):
    """Published when items were remembered."""

    table: str
    inserted: int
    updated: int


# -- moments --------------------------------------------------------------------------------------


class MemoryMoments(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """List moments, the newest first."""

    type: Category | None = None
    conversation_id: str | None = None
    person: Key | None = None
    topic: Key | None = None
    since: datetime | None = None
    until: datetime | None = None
    cursor: str | None = None
    limit: Limit = 50


class MemoryTimeline(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Show what happened around a subject in its order: a conversation's id, a user, a key."""

    subject: Key | None = None
    since: datetime | None = None
    until: datetime | None = None
    as_of: datetime | None = None
    limit: Limit = 100


class MemoryCompact(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sum up what a conversation's moments don't cover yet, if it is more than a threshold."""

    conversation_id: Annotated[str, Meta(min_length=1, max_length=200)]
    threshold_tokens: Annotated[int, Meta(ge=0)] | None = None


class MemoryCompacted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The moments that were made, and up to which message they reach."""

    conversation_id: str
    moments: tuple[str, ...]
    up_to: int
    uncovered_tokens: int


class MemoryRemembered(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Published when a conversation was read: what was kept of it, and what models took for that.

    ``cost_usd`` is ``None`` where a price was not known. ``left`` is what was found and not kept,
    by the reason.
    """

    conversation_id: str
    through: int
    kept: tuple[str, ...] = ()
    left: dict[str, int] = {}
    moments: tuple[str, ...] = ()
    tokens: int = 0
    cost_usd: float | None = 0.0


class MemoryDream(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Go over the recent past: write moments, strengthen and merge, propose patterns."""

    since: datetime | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_cost_usd: Annotated[float, Meta(ge=0)] | None = None
    dry_run: bool = False


class Dreamed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that a dream did, or would do, and what it rests on."""

    did: Literal["wrote", "strengthened", "weakened", "merged", "proposed"]
    table: str
    key: str
    text: str = ""
    rests_on: tuple[str, ...] = ()


class MemoryDreamt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a dream."""

    run_id: str | None
    did: tuple[Dreamed, ...]
    read_items: int
    tokens: int = 0
    cost_usd: float | None = 0.0
    dry_run: bool = False


# -- schemas --------------------------------------------------------------------------------------


class SchemaRegister(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Register a JSON Schema; one of kind ``table`` makes a table of that name, and checks it."""

    name: Table
    kind: Table = "table"
    description: Short = ""
    schema: dict[str, Any]


class SchemaShown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A registered schema."""

    name: str
    kind: str
    version: int
    description: str = ""
    schema: dict[str, Any] = {}


class SchemaList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """List schemas, of a kind if given."""

    kind: Table | None = None


class SchemaListed(Struct, frozen=True, kw_only=True):
    """The schemas by kind and name, and the tables that are there without one."""

    schemas: tuple[SchemaShown, ...]
    tables: tuple[str, ...]


class SchemaGet(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Get a schema."""

    name: Table
    kind: Table = "table"


class SchemaVerify(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Check the items of a table against its schema, or an object against any."""

    name: Table
    kind: Table = "table"
    object: dict[str, Any] | None = None


class SchemaVerified(Struct, frozen=True, kw_only=True):
    """How many were looked at, and which don't fit."""

    checked: int
    problems: tuple[Refused, ...] = ()


class SchemaDelete(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Delete a schema; a table's is kept while it has items."""

    name: Table
    kind: Table = "table"


class SchemaDeleted(Struct, frozen=True, kw_only=True):
    """It is gone."""

    name: str
    kind: str


# -- content --------------------------------------------------------------------------------------


class ContentUpload(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hand over a piece of a file; without ``data`` it tells how far the upload is.

    The first piece makes the upload and needs ``size_bytes`` and ``sha256`` (hex). A piece that is
    there already is left as it is; ``offset`` is where the piece begins.
    """

    upload_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,100}\Z")]
    name: Key | None = None
    size_bytes: Annotated[int, Meta(ge=0)] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    media_type: Annotated[str, Meta(max_length=200)] | None = None
    offset: Annotated[int, Meta(ge=0)] = 0
    data: bytes | None = None


class ContentUploaded(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far an upload is; ``known_as`` is the key of a file with the same content."""

    upload_id: str
    received_bytes: int
    size_bytes: int
    is_complete: bool
    known_as: str | None = None


class ContentLoad(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Remember what a complete upload holds, or a file or directory of the daemon's own machine.

    Args:
        upload_id: What was uploaded.
        path: A path, of which only the daemon's owner may speak.
        name: What to call it; the file's name unless given.
        table: Where to; by what it is unless given: Markdown to ``ontologies``, rows to the table
            that they name, all else to ``resources``.
        owner: The user it belongs to.
        category: Of all that is made of it.
        chunk_characters: How long a chunk is.
        overlap_characters: How much of a chunk the next one repeats.
        again: Whether to load what has not changed, too.
        even_forgotten: Whether to remember what was forgotten, too.
    """

    upload_id: str | None = None
    path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    name: Key | None = None
    table: Table | None = None
    owner: Owner = ""
    category: Category | None = None
    chunk_characters: Annotated[int, Meta(ge=100, le=100_000)] | None = None
    overlap_characters: Annotated[int, Meta(ge=0, le=50_000)] | None = None
    again: bool = False
    even_forgotten: bool = False


class ContentProgress(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="progress", tag_field="kind"
):
    """A file was dealt with, or skipped and why."""

    path: str
    files_done: int
    files_found: int
    items: int
    bytes: int = 0
    skipped: str | None = None


class ContentLoaded(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="loaded", tag_field="kind"
):
    """All was dealt with; what ``ContentLoad`` ends with.

    Attributes:
        files: How many were found.
        unchanged_files: How many were known as they are.
        skipped_files: How many were not remembered.
        inserted: How many items are new.
        updated: How many have a new version.
        unchanged: How many are known as they are.
        ended: How many hold no longer: parts that a file has lost, and files that went away.
        forgotten: How many had been forgotten, and were not remembered again.
        gone: The files that went away, the first hundred.
        problems: What was not remembered and why, the first thousand.
        dangling: What links name and nothing bears, the first hundred.
    """

    files: int
    unchanged_files: int
    skipped_files: int
    inserted: int
    updated: int
    unchanged: int
    ended: int = 0
    forgotten: int = 0
    gone: tuple[str, ...] = ()
    problems: tuple[Refused, ...] = ()
    dangling: tuple[str, ...] = ()


ContentChunk = ContentProgress | ContentLoaded

"""Searches by words, meaning, persons and time."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from ksi_daemon.protocol import Context, InvalidData, KsiError
from ksi_memory.embedding.service import Answering, Embedding
from ksi_memory.querying.finding import SQL
from ksi_memory.querying.hints import Question, multirange, names_in, taken_apart
from ksi_memory.whose import Whose
from ksi_postgres.database import Database

FEATURES: Final = ("cos", "max_cos", "lex", "max_lex", "person", "time", "span", "near")
WEIGHTS: Final = (0.70, 0.31, 0.36, 0.09, 0.20, 0.20, 0.35, 0.35)
MAX_LIMIT: Final = 1000
_MEANING: Final = 2  # so many of the features are nothing without vectors


class Hit(Struct, frozen=True, kw_only=True):
    """An item that fits, and how well.

    Attributes:
        score: The sum of the features, each times its weight.
        features: By their names.
    """

    id: UUID
    table: str
    key: str
    version: int
    score: float
    owner: str
    title: str
    body: str
    category: str | None
    attributes: dict[str, Any]
    persons: tuple[str, ...]
    session: str | None
    place: int | None
    starts_at: datetime | None
    ends_at: datetime | None
    origin: str
    is_pinned: bool
    valid_from: datetime
    valid_to: datetime | None
    features: dict[str, float]


class Searched(Struct, frozen=True, kw_only=True):
    """What was found, the best first.

    Attributes:
        embedder: The model whose vectors were compared, if any were.
        notes: What the asker should know.
        truncated: Whether there is more.
        weights: What the features weigh.
    """

    results: tuple[Hit, ...]
    embedder: str | None
    notes: tuple[str, ...]
    truncated: bool
    weights: dict[str, float]


class Search:
    """Searches what is remembered.

    Args:
        database: The store.
        embedding: Embeds questions.
    """

    def __init__(self, database: Database, embedding: Embedding) -> None:
        self._database = database
        self._embedding = embedding

    async def search(
        self,
        whose: Whose,
        question: str,
        *,
        tables: Sequence[str] = (),
        field: str | None = None,
        limit: int = 10,
        min_similarity: float | None = None,
        category: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        as_of: datetime | None = None,
        explain: bool = False,
        loads: bool = True,
    ) -> Searched:
        """Return what fits a question, the best first.

        Args:
            whose: In whose name; a user finds what is theirs and what belongs to everybody.
            question: A sentence, or some words.
            tables: Where; everywhere unless given.
            field: ``title`` or ``body``: there a word of the question has to be.
            limit: How many.
            min_similarity: How near vectors have to be, from 0 to 1.
            category: Only these.
            since: Only what happened then or later, or began to hold.
            until: Only what did before.
            as_of: As the memory was then.
            explain: Kept for callers that show the features; they are always there.
            loads: Whether moments count that only tell that something was loaded.

        Raises:
            InvalidData: ``field`` or ``limit`` is wrong.
        """
        if field not in (None, "title", "body"):
            raise InvalidData(f"FIELD is title or body, not {field!r}")
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidData(f"the limit is from 1 to {MAX_LIMIT}, not {limit}")
        question = question.replace("\0", " ").encode(errors="replace").decode()
        asked = await self.understood(whose, question, tables, as_of)
        answering = await self._embedding.answering()
        vector, note = await self._vector(whose, asked, answering)
        rows = await self._database.fetch(
            SQL["search" if loads else "search_but_loads"],
            whose.tenant,
            whose.user,
            list(tables),
            asked.text,
            answering.id if vector is not None else None,
            None if vector is None else msgspec.json.encode(vector).decode(),
            asked.person,
            asked.asks_when,
            multirange(asked.spans) if asked.spans else None,
            multirange(asked.days) if asked.days else None,
            field,
            category,
            since,
            until,
            as_of,
            min_similarity,
            limit + 1,
        )
        notes = [note] if note else []
        if vector is None and min_similarity:
            notes.append("there are no vectors to be similar: MIN_SIMILARITY was left out")
        embedder = answering.embedder
        return Searched(
            results=tuple(_hit(row) for row in rows[:limit]),
            embedder=embedder.name if embedder is not None and vector is not None else None,
            notes=tuple(notes),
            truncated=len(rows) > limit,
            weights=dict(zip(FEATURES, WEIGHTS, strict=True)),
        )

    async def understood(
        self, whose: Whose, question: str, tables: Sequence[str], as_of: datetime | None
    ) -> Question:
        """Take a question apart, with the persons that its asker may know of."""
        words = names_in(question)
        names = sorted({word.name for word in words})
        rows = await self._database.fetch(
            SQL["persons"], whose.tenant, whose.user, list(tables), names
        )
        persons: dict[str, set[str]] = {}
        for row in rows:
            persons.setdefault(row["asked"], set()).add(row["name"])
        return taken_apart(question, words, persons, as_of or datetime.now(UTC))

    async def _vector(
        self, whose: Whose, asked: Question, answering: Answering
    ) -> tuple[list[float] | None, str]:
        """Embed a question; where that fails, the search goes on without and says so."""
        if answering.embedder is None:
            return None, answering.note
        context = Context(
            "",
            None,
            whose.origin,
            whose.tenant,
            whose.user,
            whose.agent,
            whose.conversation,
            whose.run,
        )
        try:
            return await self._embedding.question(
                answering, asked.embedded, context
            ), answering.note
        except KsiError as error:
            return None, f"searched without vectors: {error.message}"


def _hit(row: Any) -> Hit:
    return Hit(
        id=row["id"],
        table=row["kind"],
        key=row["key"],
        version=row["version"],
        score=row["score"],
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
        origin=row["origin"],
        is_pinned=row["is_pinned"],
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
        features=dict(zip(FEATURES, row["features"], strict=True)),
    )

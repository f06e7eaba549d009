"""Tests of the search: by words, meaning, persons and time, in one statement."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from ksi_memory.embedders.hashed import HashedEmbedder
from ksi_memory.embedding import Embedding
from ksi_memory.events import NewItem
from ksi_memory.items import Items
from ksi_memory.search import Search, Searched
from ksi_memory.settings import MemorySettings
from ksi_memory.tests.searching import drain, embedding_of
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

ALL = Whose("default")
MAY = datetime(2023, 5, 8, 13, tzinfo=UTC)


@pytest.fixture
def items(database: Database) -> Items:
    return Items(database, MemorySettings())


@pytest.fixture
def embedding(database: Database) -> Embedding:
    return embedding_of(database, HashedEmbedder())


@pytest.fixture
def search(database: Database, embedding: Embedding) -> Search:
    return Search(database, embedding)


@pytest.fixture
async def owner(database_logins: Logins) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_logins.admin)
    yield connection
    await connection.close()


TALK = (
    ("melanie", "Hey Caroline! How have you been?"),
    ("caroline", "I went to a support group yesterday and it was so powerful."),
    ("melanie", "Wow, that is cool. What happened there?"),
    ("caroline", "The stories of the others were inspiring."),
    ("melanie", "I painted a lake with a sunrise last year."),
    ("caroline", "You must show me that picture, Melanie."),
)


def talk(session: str = "s1", at: datetime = MAY, owner: str = "") -> list[NewItem]:
    return [
        NewItem(
            key=f"{session}-{place}",
            body=body,
            persons=(person,),
            session=session,
            place=place,
            starts_at=at,
            owner=owner,
        )
        for place, (person, body) in enumerate(TALK)
    ]


def keys(found: Searched) -> list[str]:
    return [hit.key for hit in found.results]


async def test_words_are_found_at_once_before_any_vector(items: Items, search: Search) -> None:
    await items.upsert(ALL, "moments", talk())

    found = await search.search(ALL, "support group")

    assert keys(found)[0] == "s1-1"
    assert found.embedder is None
    assert any("without vectors" in note for note in found.notes)


async def test_meaning_is_found_once_there_are_vectors(
    items: Items, search: Search, embedding: Embedding
) -> None:
    await items.upsert(ALL, "moments", talk())
    await drain(embedding)

    found = await search.search(ALL, "paintings of sunrises")

    assert keys(found)[0] == "s1-4"
    assert found.embedder == "test-1"
    assert found.notes == ()

"""Tests of the nearest vectors: all that a filter leaves, however little of the index that is."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from ksi_memory.embedding.hashed import DIMENSION, HashedEmbedder, vector
from ksi_memory.embedding.vectors import Vectors
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

BIG: Final = 5600  # more than is compared one by one
SMALL: Final = 56  # 1 % of that
MAY: Final = datetime(2023, 5, 1, tzinfo=UTC)
SYLLABLES: Final = ("ka", "lo", "mi", "ru", "te", "so", "na", "vi", "do", "pe", "ga", "zu")


def sentence(dice: random.Random) -> str:
    return " ".join(
        "".join(dice.choices(SYLLABLES, k=dice.randint(2, 3))) for _ in range(dice.randint(4, 12))
    )


@pytest.fixture
async def admin(database_logins: Logins) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_logins.admin)
    yield connection
    await connection.close()


ITEMS: Final = """
    INSERT INTO ksi_memory.item (
        tenant, id, version, kind, owner, key, name, category, body, starts_at, hash, text_hash,
        lexemes, words, valid_from)
    SELECT $1, g.id, 1, 'moments', g.owner, g.key, g.key, g.category, g.body, g.at, '-', '-',
           to_tsvector('ksi_memory.words', g.body), 8, g.at
      FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
           g (id, owner, key, category, body, at)
"""
MEANINGS: Final = """
    INSERT INTO ksi_memory.meaning (
        tenant, embedder, item, version, kind, owner, is_current, text_hash, vector)
    SELECT $1, $2, g.id, 1, 'moments', g.owner, true, '-', g.vector::halfvec
      FROM unnest($3::uuid[], $4::text[], $5::text[]) g (id, owner, vector)
"""


async def fill(
    admin: asyncpg.Connection, tenant: str, count: int, dice: random.Random, number: int
) -> None:
    """Put in items with vectors: each hundredth has a category, an owner and a time of its own."""
    rows: list[tuple[Any, ...]] = []
    meanings: list[tuple[Any, ...]] = []
    for place in range(count):
        id_, text = uuid4(), sentence(dice)
        owner = "ann" if place % 100 == 1 else "" if place % 2 else "bob"
        category = "rare" if place % 100 == 2 else None
        at = MAY if place % 100 == 3 else MAY + timedelta(days=100)
        rows.append((id_, owner, f"k{place}", category, text, at))
        meanings.append((id_, owner, msgspec.json.encode(vector(text)).decode()))
    await admin.execute(ITEMS, tenant, *map(list, zip(*rows, strict=True)))
    await admin.execute(MEANINGS, tenant, number, *map(list, zip(*meanings, strict=True)))


ASK: Final = """
    SELECT item, cos FROM ksi_memory.nearest($1, $2, $3, $4, $5::text::halfvec, $6, NULL, NULL,
                                             NULL, $7, $8, $9, $10)
"""
EXACT: Final = """
    SELECT m.item
      FROM ksi_memory.meaning m
      JOIN ksi_memory.item i ON (i.tenant, i.id, i.version) = (m.tenant, m.item, m.version)
     WHERE m.tenant = $1 AND m.embedder = $2 AND ($3::text IS NULL OR m.owner IN ('', $3))
       AND ($4::text IS NULL OR i.category = $4)
       AND ($5::timestamptz IS NULL OR (i.starts_at >= $5 AND i.starts_at < $6))
     ORDER BY m.vector <=> $7::text::halfvec LIMIT $8
"""


async def test_a_filter_leaves_all_that_it_should(
    database: Database, admin: asyncpg.Connection
) -> None:
    dice = random.Random(3)
    vectors = Vectors(database)
    number, _ = await vectors.want(HashedEmbedder.name, DIMENSION)
    await fill(admin, "big", BIG, dice, number)
    await fill(admin, "small", SMALL, dice, number)
    assert await vectors.index(number)
    assert not await vectors.index(number)  # it is there
    await admin.execute("ANALYZE")
    in_may = (MAY, MAY + timedelta(days=1))
    filters: dict[str, tuple[str, str | None, str | None, Any, Any, float]] = {
        "a tenant of 1 %": ("small", None, None, None, None, 1.0),
        "an owner of 1 %, and what is everybody's": ("big", "ann", None, None, None, 1.0),
        "a category of 1 %": ("big", None, "rare", None, None, 1.0),
        "a day of 1 %": ("big", None, None, *in_may, 1.0),
        "an owner's category": ("big", "bob", "rare", None, None, 1.0),
        "nothing": ("big", None, None, None, None, 0.93),
    }

    for what, (tenant, owner, category, first, after, least) in filters.items():
        shares = []
        for _ in range(12):
            asked = msgspec.json.encode(vector(sentence(dice))).decode()
            documents = BIG if tenant == "big" else SMALL
            found = await admin.fetch(
                ASK, tenant, owner, [], number, asked, category, first, after, documents, 50
            )
            exact: list[UUID] = [
                row["item"]
                for row in await admin.fetch(
                    EXACT, tenant, number, owner, category, first, after, asked, 50
                )
            ]
            assert len(found) == len(exact) > 0, what
            nearness = [row["cos"] for row in found]
            assert all(-1.001 <= each <= 1.001 for each in nearness)
            shares.append(len({row["item"] for row in found} & set(exact)) / len(exact))
        assert sum(shares) / len(shares) >= least, what


async def test_few_vectors_have_no_index(database: Database, admin: asyncpg.Connection) -> None:
    vectors = Vectors(database)
    number, _ = await vectors.want(HashedEmbedder.name, DIMENSION)
    await fill(admin, "small", SMALL, random.Random(1), number)

    assert not await vectors.index(number)

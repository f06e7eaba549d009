"""The memory: SEARCH at 100,000 items, its recall under filters, and the queue of the embedder."""

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final
from uuid import uuid4

import asyncpg
import msgspec
from memory_store import Local, embed_all, embedding_for, memory_database
from report import Figure, at_least, at_most

from ksi_daemon.protocol import Context
from ksi_memory.embedding.embedder import Embedder
from ksi_memory.embedding.hashed import DIMENSION, HashedEmbedder, vector
from ksi_memory.embedding.vectors import Vectors
from ksi_memory.events import NewItem
from ksi_memory.items.store import Items
from ksi_memory.querying.search import Search
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.settings import PostgresSettings

ITEMS: Final = 100_000
QUICK_ITEMS: Final = 12_000
TENANTS: Final = 5000
SESSION: Final = 20
BATCH: Final = 5000
ASKED: Final = 400
QUICK_ASKED: Final = 120
WARM: Final = 30
QUEUED: Final = 6000
PACE_S: Final = 0.4  # what a batch of 256 takes a fast model on two cores
MAY: Final = datetime(2022, 5, 1, tzinfo=UTC)
WORDS: Final = 20_000
VOCABULARY: Final = 1  # the seed of the words
PEOPLE: Final = ("ann", "bob")

PUT_ITEMS: Final = """
    INSERT INTO ksi_memory.item (
        tenant, id, version, kind, key, name, category, body, persons, session, place, starts_at,
        hash, text_hash, lexemes, words, valid_from)
    SELECT g.tenant, g.id, 1, 'moments', g.id::text, g.id::text, g.category, g.body,
           ARRAY[g.person], g.session, g.place, g.at, '-', '-',
           setweight(to_tsvector('ksi_memory.words', g.body), 'A'), g.words, g.at
      FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[],
                  $7::integer[], $8::timestamptz[], $9::integer[])
           g (tenant, id, category, body, person, session, place, at, words)
"""
PUT_VECTORS: Final = """
    INSERT INTO ksi_memory.meaning (
        tenant, embedder, item, version, kind, owner, is_current, text_hash, vector)
    SELECT g.tenant, $1, g.id, 1, 'moments', '', true, '-', g.vector::halfvec
      FROM unnest($2::text[], $3::uuid[], $4::text[]) g (tenant, id, vector)
"""
NEAREST: Final = """
    SELECT item FROM ksi_memory.nearest($1, NULL, '{}', $2, $3::text::halfvec, $4, NULL, NULL,
                                        NULL, NULL, NULL, $5, 50)
"""
EXACT: Final = """
    SELECT m.item
      FROM ksi_memory.meaning m
      JOIN ksi_memory.item i ON (i.tenant, i.id, i.version) = (m.tenant, m.item, m.version)
     WHERE m.tenant = $1 AND m.embedder = $2 AND ($4::text IS NULL OR i.category = $4)
     ORDER BY m.vector <=> $3::text::halfvec LIMIT 50
"""


class Speech:
    """Says sentences of the same made-up words, some of them far more often than others."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(VOCABULARY)
        syllables = [one + two for one in "bcdfghjklmnprstvwz" for two in "aeiou"]
        words: set[str] = set()
        while len(words) < WORDS:
            words.add("".join(self._dice.choices(syllables, k=self._dice.randint(2, 4))))
        self._words = sorted(words)
        self._shares = list(accumulate(1 / (rank + 8) for rank in range(WORDS)))
        self._dice = random.Random(seed)

    def say(self, least: int, most: int) -> str:
        """Return a sentence."""
        count = self._dice.randint(least, most)
        return " ".join(self._dice.choices(self._words, cum_weights=self._shares, k=count))


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure searches, recall and the queue."""
    yield from asyncio.run(_measured(quick=quick))


async def _measured(*, quick: bool) -> list[Figure]:
    async with memory_database(PostgresSettings()) as (database, logins):
        admin = await asyncpg.connect(logins.admin)
        figures = await _queue(database)
        count = QUICK_ITEMS if quick else ITEMS
        asked = QUICK_ASKED if quick else ASKED
        many = [f"t{number}" for number in range(TENANTS)]
        for where, tenants in (("5,000 tenants", many), ("one tenant", ["one"])):
            await _fill(admin, tenants, count)
            figures += await _searches(where, database, tenants, asked)
        figures.append(await _recall(admin, count))
        await admin.close()
    return figures


async def _fill(admin: asyncpg.Connection, tenants: Sequence[str], count: int) -> None:
    speech = Speech(1)
    number = await admin.fetchval(
        "SELECT id FROM ksi_memory.want_embedder($1, $2)", HashedEmbedder.name, DIMENSION
    )
    await admin.execute("UPDATE ksi_memory.embedder SET is_wanted = false, is_indexed = false")
    # A hundred thousand rows are written, and indexed then, in a tenth of the time.
    await admin.execute(f"DROP INDEX IF EXISTS ksi_memory.meaning_{number}_near")
    for first in range(0, count, BATCH):
        rows = [_row(speech, tenants, place) for place in range(first, min(first + BATCH, count))]
        await admin.execute(PUT_ITEMS, *map(list, zip(*rows, strict=True)))
        made = [msgspec.json.encode(vector(row[3])).decode() for row in rows]
        await admin.execute(PUT_VECTORS, number, [r[0] for r in rows], [r[1] for r in rows], made)
    await admin.execute("SELECT ksi_memory.fold_counts(100000)")
    await admin.execute("SELECT ksi_memory.index_embedder($1)", number)
    await admin.execute("UPDATE ksi_memory.embedder SET is_wanted = true, is_complete = true")
    await admin.execute("VACUUM ANALYZE")


def _row(speech: Speech, tenants: Sequence[str], place: int) -> tuple[Any, ...]:
    session = place // SESSION
    body = speech.say(8, 25) + (" yesterday" if place % 17 == 0 else "")
    return (
        tenants[session % len(tenants)],
        uuid4(),
        "rare" if place % 100 == 0 else None,
        body,
        PEOPLE[place % len(PEOPLE)],
        f"s{session}",
        place % SESSION,
        MAY + timedelta(hours=session),
        len(body.split()),
    )


async def _searches(
    where: str, database: Database, tenants: Sequence[str], asked: int
) -> list[Figure]:
    embedding = embedding_for(database, "test", Local())
    await embed_all(embedding)
    search = Search(database, embedding)
    speech, dice = Speech(2), random.Random(2)
    times = []
    for number in range(WARM + asked):
        question = speech.say(3, 9)
        if number % 3 == 0:
            question = f"When did ann {question}"
        if number % 10 == 0:
            question += " on 3 July 2022"
        whose = Whose(dice.choice(tenants))
        began = time.perf_counter()
        await search.search(whose, question)
        times.append(1000 * (time.perf_counter() - began))
    times = sorted(times[WARM:])
    return [
        at_most(f"SEARCH, {where}, p50", statistics.median(times), 25, " ms"),
        at_most(f"SEARCH, {where}, p99", times[int(0.99 * len(times))], 60, " ms"),
    ]


async def _recall(admin: asyncpg.Connection, count: int) -> Figure:
    """Compare what a tenant of 1 %, and a category of 1 %, get with what they should."""
    await _fill(admin, ["small"], count // 100)
    known = await admin.fetchval("SELECT id FROM ksi_memory.embedder ORDER BY id LIMIT 1")
    speech = Speech(3)
    shares = []
    for _ in range(40):
        asked = msgspec.json.encode(vector(speech.say(3, 9))).decode()
        for tenant, category, documents in (("small", None, count // 100), ("one", "rare", count)):
            found = await admin.fetch(NEAREST, tenant, known, asked, category, documents)
            exact = await admin.fetch(EXACT, tenant, known, asked, category)
            both = {row["item"] for row in found} & {row["item"] for row in exact}
            shares.append(len(both) / len(exact))
    return at_least("recall under a filter of 1 %", statistics.fmean(shares), 0.99, "")


# -- the queue ------------------------------------------------------------------------------------


class Paced(HashedEmbedder):
    """Takes as long as a model would, and notes how long it was at work."""

    name = "paced"

    def __init__(self) -> None:
        self.began = 0.0
        self.ended = 0.0
        self.busy_s = 0.0

    async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
        """Turn texts into vectors, after a while."""
        began = time.perf_counter()
        made = await super().embed(texts, context)
        await asyncio.sleep(max(0.0, PACE_S * len(texts) / 256 - (time.perf_counter() - began)))
        self.ended = time.perf_counter()
        self.began = self.began or began
        self.busy_s += self.ended - began
        return made


class Given(Local):
    """Has one embedder."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self._embedder = embedder

    async def find(self, spec: str) -> Embedder | None:
        """Return it."""
        return self._embedder


async def _queue(database: Database) -> list[Figure]:
    speech = Speech(4)
    items = [
        NewItem(
            key=f"q{place}",
            body=speech.say(8, 25),
            session=f"s{place // SESSION}",
            place=place % SESSION,
        )
        for place in range(QUEUED)
    ]
    store = Items(database, MemorySettings())
    for first in range(0, QUEUED, 2000):
        await store.upsert(Whose("queue"), "moments", items[first : first + 2000])
    began = time.perf_counter()
    await embed_all(embedding_for(database, "test", Given(HashedEmbedder())))
    rate = QUEUED / (time.perf_counter() - began)
    paced = Paced()
    await embed_all(embedding_for(database, "paced", Given(paced)))
    share = paced.busy_s / (paced.ended - paced.began)
    vectors = Vectors(database)
    assert all(each.vectors == QUEUED for each in await vectors.stats("queue", None))
    return [
        at_least("embedded by the test embedder", rate, 1000, " /s", f"{QUEUED:,} texts"),
        at_least("an embedder is kept busy", share, 0.9, ""),
    ]

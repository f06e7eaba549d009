"""The memory: how fast many items are written, and what of that any way of writing them takes."""

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import asyncpg
from memory_store import memory_database
from report import Figure, at_least, spread

from ksi_memory.events import NewItem
from ksi_memory.items.drafts import Drafting
from ksi_memory.items.store import Items
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.settings import PostgresSettings

ROWS: Final = 2000
ROUNDS: Final = 7
QUICK_ROUNDS: Final = 3
A_SECOND: Final = 10_000
PLACES: Final = 50  # chunks of a document
LENGTHS: Final = (("short ones, 100 characters", 100), ("whole chunks, 1,500 characters", 1500))
WHOSE: Final = Whose("bench")

# The same rows, into a table with the same columns and indexes: nothing is checked or follows.
BARE_TABLE: Final = """
    CREATE TABLE bare (LIKE ksi_memory.item INCLUDING DEFAULTS INCLUDING GENERATED
                       INCLUDING INDEXES INCLUDING STORAGE)
"""
BARE: Final = """
    INSERT INTO bare (tenant, id, version, kind, key, name, title, body, session, place, hash,
                      text_hash, words, lexemes)
    SELECT 'bench', gen_random_uuid(), 1, 'resources', r.key, ksi_memory.folded(r.key), r.title,
           r.body, r.session, r.place, sha256(convert_to(r.body, 'UTF8')),
           sha256(convert_to(r.body, 'UTF8')), 0,
           setweight(to_tsvector('ksi_memory.words', r.title || ' ' || r.body), 'A')
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[])
           AS r (key, title, body, session, place)
"""
LEXEMES: Final = """
    SELECT count(to_tsvector('ksi_memory.words', title || ' ' || body))
      FROM unnest($1::text[], $2::text[]) AS r (title, body)
"""


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure the writing of many items, the same items again, and the bare insert."""
    yield from asyncio.run(_measured(QUICK_ROUNDS if quick else ROUNDS))


async def _measured(rounds: int) -> list[Figure]:
    figures = []
    async with memory_database(PostgresSettings()) as (database, logins):
        admin = await asyncpg.connect(logins.admin)
        await admin.execute(BARE_TABLE)
        items = Items(database, MemorySettings())
        dice = random.Random(1)
        for what, length in LENGTHS:
            told = [await _round(items, admin, _chunks(dice, length)) for _ in range(rounds + 1)]
            figures += _figures(what, told[1:])
        await admin.close()
    return figures


async def _round(
    items: Items, admin: asyncpg.Connection, chunks: Sequence[NewItem]
) -> dict[str, float]:
    """Write the same chunks in each way, and return how many seconds each took."""
    columns = [
        [getattr(each, name) for each in chunks]
        for name in ("key", "title", "body", "session", "place")
    ]
    took = {
        "lexemes": await _timed(admin.fetchval(LEXEMES, columns[1], columns[2])),
        "bare": await _timed(admin.execute(BARE, *columns)),
        "ours": await _timed(items.upsert(WHOSE, "resources", chunks)),
        "again": await _timed(items.upsert(WHOSE, "resources", chunks)),
    }
    began = time.perf_counter()
    Drafting(MemorySettings(), WHOSE, "resources").all(chunks)
    return {**took, "drafts": time.perf_counter() - began}


async def _timed(work: Any) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def _figures(what: str, told: Sequence[dict[str, float]]) -> list[Figure]:
    middle = {name: statistics.median(each[name] for each in told) for name in told[0]}
    ratios = [each["ours"] / each["bare"] for each in told]
    shares = ", ".join(
        f"{name} {middle[key] / ROWS * 1e6:.0f} µs"
        for name, key in (
            ("its lexemes alone", "lexemes"),
            ("the bare insert", "bare"),
            ("what Python makes of it, meanwhile", "drafts"),
            ("all of ours", "ours"),
        )
    )
    rate, again = ROWS / middle["ours"], ROWS / middle["again"]
    return [
        at_least(f"upsert of {ROWS:,}, {what}", rate, A_SECOND, " rows/s", f"a row: {shares}"),
        Figure(
            f"{what}: against a bare insert with the same indexes",
            "–",
            f"{statistics.median(ratios):.2f} × bare",
            None,
            f"ratio {spread(ratios)}",
        ),
        Figure(f"{what}: the same again, unchanged", "–", f"{again:,.0f} rows/s", None),
    ]


def _chunks(dice: random.Random, length: int) -> list[NewItem]:
    """Make chunks of documents, in words of which some are much more frequent than others."""
    name = f"{dice.getrandbits(64):x}"
    return [
        NewItem(
            key=f"{name}/{n}",
            title=f"Document {n // PLACES}",
            body=_text(dice, length),
            session=f"{name}/{n // PLACES}",
            place=n % PLACES,
        )
        for n in range(ROWS)
    ]


def _text(dice: random.Random, length: int) -> str:
    words: list[str] = []
    size = 0
    while size < length:
        number = int(dice.paretovariate(0.7)) % 20_000
        word = "".join("bcdfghklmnprst"[number // 14**at % 14] + "aeiou"[at] for at in range(3))
        words.append(word)
        size += len(word) + 1
    return " ".join(words)[:length]

"""The memory: LOOKUP, FUZZY and TRAVERSE at 100,000 keys, in 5,000 tenants and in one."""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
from memory_store import memory_database
from report import Figure, at_most

from ksi_memory.querying.finding import Finding
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.reader import Reader
from ksi_postgres.settings import PostgresSettings

KEYS: Final = 100_000
QUICK_KEYS: Final = 20_000
TENANTS: Final = 5000
EDGES: Final = 5
ASKED: Final = 200
WARM: Final = 30
CLIQUE: Final = 14
ITEM: Final = (
    "tenant",
    "id",
    "version",
    "kind",
    "key",
    "name",
    "title",
    "body",
    "hash",
    "text_hash",
)
EDGE: Final = ("tenant", "item", "version", "number", "from_name", "relation", "to_name", "weight")
BARE_LOOKUP: Final = "SELECT * FROM ksi_memory.item WHERE (tenant, id, version) = ($1, $2, 1)"
# What returns the same nodes with what bears them, each as often as there are depths it has.
BARE_WALK: Final = """
    WITH RECURSIVE walk (name, depth) AS (
        SELECT $2::text, 0
         UNION
        SELECT e.to_name, w.depth + 1
          FROM walk w
          JOIN ksi_memory.edge e ON (e.tenant, e.from_name) = ($1, w.name)
          JOIN ksi_memory.item i ON (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
                                AND i.valid_to IS NULL
         WHERE w.depth < $3
    )
    SELECT w.depth, i.*
      FROM walk w
      JOIN ksi_memory.item i ON (i.tenant, i.name) = ($1, w.name) AND i.valid_to IS NULL
"""


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure what finds by key, by likeness and along edges."""
    yield from asyncio.run(_measured(QUICK_KEYS if quick else KEYS))


async def _measured(keys: int) -> list[Figure]:
    async with memory_database(PostgresSettings()) as (database, logins):
        return await _figures(database, logins.admin, keys)


async def _figures(database: Database, admin_url: str, keys: int) -> list[Figure]:
    admin = await asyncpg.connect(admin_url)
    finding = Finding(database, Reader(database, PostgresSettings()), MemorySettings())
    dice = random.Random(1)
    figures = []
    many = [f"t{n}" for n in range(TENANTS)]
    for where, tenants in (("5,000 tenants", many), ("one tenant", ["one"])):
        rows = await _fill(admin, tenants, keys, dice)
        asked = dice.sample(rows, ASKED)
        figures.append(await _lookup(f"LOOKUP, {where}", finding, admin, asked))
        figures.append(await _fuzzy(f"FUZZY, {where}", finding, asked, dice))
        figures.append(await _walk(f"TRAVERSE depth 2, {where}", finding, admin, asked))
    figures.append(await _clique(finding, admin))
    await admin.close()
    return figures


# -- what is asked --------------------------------------------------------------------------------


def _word(dice: random.Random) -> str:
    return "".join(
        dice.choice("bcdfghklmnprstvz") + dice.choice("aeiou") for _ in range(dice.randint(2, 4))
    )


async def _fill(
    admin: asyncpg.Connection, tenants: Sequence[str], keys: int, dice: random.Random
) -> list[tuple[Any, ...]]:
    """Put in entities with names of three words, and some edges to others of their tenant."""
    rows: list[tuple[Any, ...]] = []
    by_tenant: dict[str, list[str]] = {}
    for n in range(keys):
        tenant, name = tenants[n % len(tenants)], " ".join(_word(dice) for _ in range(3))
        by_tenant.setdefault(tenant, []).append(name)
        body = "Some words about it. " * 5
        rows.append((tenant, uuid4(), 1, "entities", name, name, name.title(), body, b"-", b"-"))
    await _copy(admin, "item", ITEM, rows)
    edges = [
        (row[0], row[1], 1, n, row[5], "knows", dice.choice(by_tenant[row[0]]), dice.random())
        for row in rows
        for n in range(EDGES)
    ]
    await _copy(admin, "edge", EDGE, edges)
    await admin.execute("VACUUM ANALYZE ksi_memory.item, ksi_memory.edge")
    return rows


async def _copy(
    admin: asyncpg.Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    await admin.copy_records_to_table(
        table, schema_name="ksi_memory", columns=columns, records=rows, timeout=600
    )


def _misspelt(name: str, dice: random.Random) -> str:
    place = dice.randrange(1, len(name) - 1)
    return name[:place] + name[place + 1 :]


# -- figures --------------------------------------------------------------------------------------


async def _times_ms(ask: Callable[[Any], Awaitable[object]], asked: Sequence[Any]) -> list[float]:
    times = []
    for n, each in enumerate((*asked[:WARM], *asked)):
        began = time.perf_counter()
        await ask(each)
        if n >= WARM:
            times.append((time.perf_counter() - began) * 1e3)
    return sorted(times)


async def _both_ms(
    bare: Callable[[Any], Awaitable[object]],
    own: Callable[[Any], Awaitable[object]],
    asked: Sequence[Any],
) -> tuple[list[float], list[float]]:
    """Ask both in turn, so that what else the machine does slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    for each in asked[:WARM]:
        await bare(each)
        await own(each)
    for each in asked:
        for ask, taken in zip((bare, own), times, strict=True):
            began = time.perf_counter()
            await ask(each)
            taken.append((time.perf_counter() - began) * 1e3)
    return sorted(times[0]), sorted(times[1])


def _told(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} / {times[int(len(times) * 0.99)]:.2f} ms (p50 / p99)"


def _ratio(what: str, own: list[float], bare: list[float], bound: float) -> Figure:
    ratio = statistics.median(own) / statistics.median(bare)
    return at_most(what, ratio, bound, " × bare", f"bare {_told(bare)}, KSI {_told(own)}")


async def _lookup(
    what: str, finding: Finding, admin: asyncpg.Connection, asked: Sequence[tuple[Any, ...]]
) -> Figure:
    """Compare with a prepared SELECT by the primary key, as a login without walls."""
    statement = await admin.prepare(BARE_LOOKUP)

    async def bare(row: tuple[Any, ...]) -> None:
        await statement.fetchrow(row[0], row[1])

    async def own(row: tuple[Any, ...]) -> None:
        found = await finding.lookup(Whose(row[0]), [row[4]])
        assert UUID(found[0].id) == row[1]

    bare_ms, own_ms = await _both_ms(bare, own, asked)
    return _ratio(what, own_ms, bare_ms, 3.0)


async def _fuzzy(
    what: str, finding: Finding, asked: Sequence[tuple[Any, ...]], dice: random.Random
) -> Figure:
    questions = [(row[0], _misspelt(row[4], dice), row[4]) for row in asked]
    found = 0

    async def own(question: tuple[str, str, str]) -> None:
        nonlocal found
        results = await finding.fuzzy(Whose(question[0]), question[1])
        found += question[2] in {each.key for each in results}

    times = await _times_ms(own, questions)
    share = found / (len(questions) + WARM)
    details = f"{_told(times)}; {share:.1%} of the keys are found by a misspelt one"
    return at_most(what, statistics.median(times), 20.0, " ms", details)


async def _walk(
    what: str, finding: Finding, admin: asyncpg.Connection, asked: Sequence[tuple[Any, ...]]
) -> Figure:
    statement = await admin.prepare(BARE_WALK)

    async def bare(row: tuple[Any, ...]) -> None:
        await statement.fetch(row[0], row[5], 2)

    async def own(row: tuple[Any, ...]) -> None:
        await finding.traverse(Whose(row[0]), row[4], depth=2)

    figures = []
    # The bare query with whichever kind of plan suits it better: a kept one may be much too slow
    # in a large tenant, and one made anew costs more than the walk in a small one.
    for mode in ("force_generic_plan", "force_custom_plan"):
        await admin.execute(f"SET plan_cache_mode = {mode}")
        bare_ms, own_ms = await _both_ms(bare, own, asked)
        figures.append((statistics.median(bare_ms), _ratio(what, own_ms, bare_ms, 2.0)))
    await admin.execute("RESET plan_cache_mode")
    return min(figures, key=lambda each: each[0])[1]


async def _clique(finding: Finding, admin: asyncpg.Connection) -> Figure:
    names = [f"n{n}" for n in range(CLIQUE)]
    ids = {name: uuid4() for name in names}
    await _copy(
        admin,
        "item",
        ITEM,
        [("c", ids[n], 1, "entities", n, n, "", "", b"-", b"-") for n in names],
    )
    pairs = [(a, n, b) for a in names for n, b in enumerate(names) if a != b]
    await _copy(admin, "edge", EDGE, [("c", ids[a], 1, n, a, "knows", b, 1.0) for a, n, b in pairs])
    began = time.perf_counter()
    walk = await finding.traverse(Whose("c"), "n0", depth=5)
    took_ms = (time.perf_counter() - began) * 1e3
    return at_most(
        "a clique of 14, depth 5", len(walk.results), CLIQUE, " nodes", f"{took_ms:.1f} ms"
    )

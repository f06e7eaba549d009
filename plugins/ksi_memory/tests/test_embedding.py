"""Tests of what waits for vectors: the queue, the embedders, and what becomes of vectors."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ksi_daemon.protocol import Context, Denied, InvalidData, Unavailable
from ksi_memory.embedding.choice import Choice
from ksi_memory.embedding.hashed import HashedEmbedder, vector
from ksi_memory.embedding.remote import RemoteEmbedder
from ksi_memory.embedding.service import Embedding
from ksi_memory.embedding.vectors import Made
from ksi_memory.embedding.worker import wrong_with
from ksi_memory.events import EmbedderStats, NewItem
from ksi_memory.items.store import Items
from ksi_memory.querying.search import Search
from ksi_memory.settings import MemorySettings
from ksi_memory.tests.searching import Fixed, drain, embedding_of, until_idle
from ksi_memory.whose import Whose
from ksi_models.events import ModelEmbed, ModelEmbedded, Usage
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

ALL = Whose("default")
AT = datetime(2023, 5, 8, tzinfo=UTC)
LEASE = timedelta(seconds=60)


class Fake(HashedEmbedder):
    """An embedder that keeps what it was asked, and does as a test says."""

    def __init__(
        self,
        name: str = "fake",
        dimension: int = 256,
        act: Callable[[Sequence[str]], None] = lambda texts: None,
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.act = act
        self.asked: list[str] = []
        self.asks = 0

    async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
        self.asks += 1
        self.act(texts)
        self.asked += texts
        return [self.made(text) for text in texts]

    def made(self, text: str) -> list[float]:
        return vector(text)[: self.dimension]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksi_memory.embedding.service.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("ksi_memory.embedding.worker.FIRST_PAUSE_S", 0.01)


@pytest.fixture
def items(database: Database) -> Items:
    return Items(database, MemorySettings())


@pytest.fixture
async def owner(database_logins: Logins) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_logins.admin)
    yield connection
    await connection.close()


async def stats(embedding: Embedding, tenant: str = "default") -> EmbedderStats:
    return (await embedding.vectors.stats(tenant, embedding.id))[0]


def texts(*bodies: str, session: str | None = None) -> list[NewItem]:
    return [
        NewItem(key=body, body=body, session=session, place=place, starts_at=AT)
        for place, body in enumerate(bodies)
    ]


async def vectors_of(owner: asyncpg.Connection) -> dict[str, list[float]]:
    rows = await owner.fetch(
        "SELECT i.key, m.vector::real[] AS vector FROM ksi_memory.meaning m "
        "JOIN ksi_memory.item i ON (i.tenant, i.id, i.version) = (m.tenant, m.item, m.version) "
        "WHERE i.valid_to IS NULL"
    )
    return {row["key"]: list(row["vector"]) for row in rows}


def together(*parts: tuple[float, str]) -> list[float]:
    total = [
        sum(weight * number for (weight, _), number in zip(parts, numbers, strict=True))
        for numbers in zip(*(vector(text) for _, text in parts), strict=True)
    ]
    length = math.hypot(*total)
    return [number / length for number in total]


# -- the queue ------------------------------------------------------------------------------------


async def test_what_comes_is_embedded_without_being_asked_for(
    database: Database, items: Items
) -> None:
    embedding = embedding_of(database, Fake())

    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(embedding.run())
        await until_idle(embedding)
        await items.upsert(ALL, "moments", texts("one", "two"))
        async with asyncio.timeout(20):
            while (await stats(embedding)).vectors < 2:
                embedding.idle.clear()
                await embedding.idle.wait()
        worker.cancel()

    assert (await stats(embedding)).waiting == 0


async def test_the_same_text_is_embedded_once(database: Database, items: Items) -> None:
    embedder = Fake()
    embedding = embedding_of(database, embedder)
    same = [NewItem(key=f"k{number}", body="the same") for number in range(50)]
    await items.upsert(ALL, "moments", same)
    await drain(embedding)
    await items.upsert(ALL, "facts", [NewItem(key="again", body="the same")])
    await drain(embedding)

    assert embedder.asked == ["the same"]
    assert (await stats(embedding)).vectors == 51


async def test_a_poison_text_is_set_aside_with_its_reason_and_the_others_are_embedded(
    database: Database, items: Items
) -> None:
    def choke(asked: Sequence[str]) -> None:
        if any("poison" in text for text in asked):
            raise ValueError("that is no food")

    embedder = Fake(act=choke)
    embedding = embedding_of(database, embedder)
    await items.upsert(ALL, "moments", texts(*(f"apple {n}" for n in range(40)), "poison", "pear"))
    await drain(embedding)

    told = await stats(embedding)

    assert (told.vectors, told.waiting, told.set_aside) == (41, 0, 1)
    assert told.why_set_aside == ("ValueError('that is no food')",)
    assert embedder.asks < 20  # by halves, not one by one

    embedder.act = lambda asked: None
    await embedding.reembed(ALL, None, only_set_aside=True)
    await drain(embedding)
    told = await stats(embedding)
    assert (told.vectors, told.set_aside) == (42, 0)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([0.0] * 256, "nothing but zeros"),
        ([math.nan] * 256, "finite"),
        ([math.inf] * 256, "finite"),
        ([1e300] * 256, "finite"),
        ([1.0] * 255, "255 numbers, not 256"),
        ([], "0 numbers, not 256"),
    ],
)
async def test_a_vector_that_is_none_is_set_aside_alone(
    database: Database, items: Items, bad: list[float], why: str
) -> None:
    class Broken(Fake):
        def made(self, text: str) -> list[float]:
            return bad if text == "odd" else vector(text)

    embedding = embedding_of(database, Broken())
    await items.upsert(ALL, "moments", texts("one", "odd", "two"))
    await drain(embedding)

    told = await stats(embedding)

    assert (told.vectors, told.set_aside) == (2, 1)
    assert why in told.why_set_aside[0]


async def test_long_and_short_vectors_are_kept_as_their_directions(
    database: Database, items: Items, owner: asyncpg.Connection
) -> None:
    class Loud(Fake):
        def made(self, text: str) -> list[float]:
            return [1e9 * number for number in vector(text)]

    embedding = embedding_of(database, Loud())
    await items.upsert(ALL, "moments", texts("one"))
    await drain(embedding)

    assert (await vectors_of(owner))["one"] == pytest.approx(vector("one"), abs=2e-3)


async def test_an_embedder_that_is_away_is_waited_for(database: Database, items: Items) -> None:
    failures = iter(range(3))

    def away(asked: Sequence[str]) -> None:
        if next(failures, None) is not None:
            raise Unavailable("gone for lunch")

    embedding = embedding_of(database, Fake(act=away))
    await items.upsert(ALL, "moments", texts("one", "two"))
    await drain(embedding)

    told = await stats(embedding)

    assert (told.vectors, told.set_aside) == (2, 0)


async def test_what_a_dead_daemon_had_in_hand_is_embedded_by_another(
    database: Database, items: Items
) -> None:
    dead = embedding_of(database, Fake(), embed_lease_s=0.2)
    await items.upsert(ALL, "moments", texts("one", "two"))
    await dead.use("test")
    assert dead.id is not None
    taken = await dead.vectors.claim(dead.id, 10, timedelta(seconds=0.2))
    living = embedding_of(database, Fake())

    await drain(living)

    assert len(taken) == 2
    assert (await stats(living)).vectors == 2


async def test_what_takes_daemons_along_is_handed_out_alone_and_then_no_more(
    database: Database, items: Items
) -> None:
    embedding = embedding_of(database, Fake())
    await items.upsert(ALL, "moments", texts("one", "two", "three"))
    await embedding.use("test")
    assert embedding.id is not None
    at_once = timedelta(0)
    handed_out = []
    for _ in range(40):
        claimed = await embedding.vectors.claim(embedding.id, 10, at_once)
        handed_out.append(len(claimed))

    told = await stats(embedding)

    assert handed_out[:2] == [3, 3]
    assert set(handed_out[2:11]) == {1}
    assert set(handed_out[11:]) == {0}
    assert told.set_aside == 3
    assert "did not come back" in told.why_set_aside[0]


async def test_several_daemons_share_the_queue(database: Database, items: Items) -> None:
    embedders = [Fake(), Fake(), Fake()]
    daemons = [embedding_of(database, each, embed_batch_texts=7) for each in embedders]
    await items.upsert(ALL, "moments", texts(*(f"text {number}" for number in range(300))))

    async with asyncio.TaskGroup() as tasks:
        workers = [tasks.create_task(each.run()) for each in daemons]
        for each in daemons:
            await until_idle(each)
        for worker in workers:
            worker.cancel()

    asked = [text for each in embedders for text in each.asked]
    assert sorted(asked) == sorted(f"text {number}" for number in range(300))
    assert (await stats(daemons[0])).vectors == 300


async def test_what_is_claimed_is_given_back_when_the_daemon_stops(
    database: Database, items: Items
) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    class Slow(Fake):
        async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
            begun.set()
            await never.wait()
            return []

    await items.upsert(ALL, "moments", texts("one"))
    stopped = embedding_of(database, Slow())
    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(stopped.run())
        await begun.wait()
        worker.cancel()

    await drain(embedding_of(database, Fake()))

    assert (await stats(stopped)).vectors == 1


# -- neighbours -----------------------------------------------------------------------------------


async def test_a_vector_has_those_of_its_neighbours_in_it(
    database: Database, items: Items, owner: asyncpg.Connection
) -> None:
    embedding = embedding_of(database, HashedEmbedder())
    await items.upsert(ALL, "moments", texts("lake", "tent", "river", session="s"))
    await drain(embedding)

    made = await vectors_of(owner)

    assert made["lake"] == pytest.approx(together((1, "lake"), (0.25, "tent")), abs=2e-3)
    assert made["tent"] == pytest.approx(
        together((1, "tent"), (0.35, "lake"), (0.25, "river")), abs=2e-3
    )
    assert made["river"] == pytest.approx(together((1, "river"), (0.35, "tent")), abs=2e-3)


async def test_vectors_are_made_anew_when_a_neighbour_comes_changes_or_goes(
    database: Database, items: Items, owner: asyncpg.Connection
) -> None:
    embedding = embedding_of(database, HashedEmbedder(), embed_batch_texts=1)

    def item(key: str, body: str, place: int) -> NewItem:
        return NewItem(key=key, body=body, session="s", place=place, starts_at=AT)

    await items.upsert(ALL, "moments", [item("a", "lake", 0), item("c", "river", 9)])
    await drain(embedding)
    alone = (await vectors_of(owner))["a"]

    told = await items.upsert(ALL, "moments", [item("b", "tent", 5)])
    await drain(embedding)
    with_one = (await vectors_of(owner))["a"]

    await items.upsert(ALL, "moments", [item("b", "violin", 5)])
    await drain(embedding)
    changed = (await vectors_of(owner))["a"]

    await items.forget(ALL, list(told.ids))
    gone = (await vectors_of(owner))["a"]

    assert alone == pytest.approx(together((1, "lake"), (0.25, "river")), abs=2e-3)
    assert with_one == pytest.approx(together((1, "lake"), (0.25, "tent")), abs=2e-3)
    assert changed == pytest.approx(together((1, "lake"), (0.25, "violin")), abs=2e-3)
    assert gone == alone


async def test_what_is_forgotten_leaves_no_vector_unless_another_says_the_same(
    database: Database, items: Items, owner: asyncpg.Connection
) -> None:
    embedding = embedding_of(database, HashedEmbedder())
    told = await items.upsert(
        ALL,
        "moments",
        [
            NewItem(key="a", body="shared"),
            NewItem(key="b", body="shared"),
            NewItem(key="c", body="own"),
        ],
    )
    await drain(embedding)
    await items.upsert(ALL, "moments", [NewItem(key="c", body="own, in another version")])
    await drain(embedding)
    assert await owner.fetchval("SELECT count(*) FROM ksi_memory.text_vector") == 3

    await items.forget(ALL, [told.ids[0], told.ids[2]])
    one_left = await owner.fetchval("SELECT count(*) FROM ksi_memory.text_vector")
    await items.forget(ALL, [told.ids[1]])

    assert one_left == 1
    for table in ("text_vector", "meaning", "waiting"):
        assert await owner.fetchval(f"SELECT count(*) FROM ksi_memory.{table}") == 0  # noqa: S608  names


async def test_what_is_forgotten_while_it_is_embedded_is_not_stored(
    database: Database, items: Items, owner: asyncpg.Connection
) -> None:
    embedding = embedding_of(database, HashedEmbedder())
    told = await items.upsert(ALL, "moments", texts("one", "two"))
    await embedding.use("test")
    assert embedding.id is not None
    claimed = await embedding.vectors.claim(embedding.id, 10, LEASE)
    await items.forget(ALL, [told.ids[0]])
    made = [Made(each, each.body.encode(), vector(each.body)) for each in claimed]

    await embedding.vectors.store(embedding.id, made)

    assert set(await vectors_of(owner)) == {"two"}
    assert await owner.fetchval("SELECT count(*) FROM ksi_memory.text_vector") == 1
    assert await owner.fetchval("SELECT count(*) FROM ksi_memory.waiting") == 0


async def test_forgetting_and_embedding_at_once_get_out_of_each_other_s_way(
    database: Database, items: Items, owner: asyncpg.Connection
) -> None:
    embedding = embedding_of(database, HashedEmbedder(), embed_batch_texts=5, embed_lease_s=0.5)
    told = await items.upsert(
        ALL, "moments", texts(*(f"text {number}" for number in range(120)), session="s")
    )

    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(embedding.run())
        for first in range(0, 120, 6):
            await items.forget(ALL, list(told.ids[first : first + 3]))
        await until_idle(embedding)
        worker.cancel()

    left = [f"text {number}" for number in range(120) if number % 6 >= 3]
    made = await vectors_of(owner)
    assert set(made) == set(left)
    for before, text, after in zip(left, left[1:], left[2:], strict=False):
        wanted = together((1, text), (0.35, before), (0.25, after))
        assert made[text] == pytest.approx(wanted, abs=3e-3)


# -- models ---------------------------------------------------------------------------------------


async def test_a_model_that_changes_in_the_middle_of_a_load_answers_when_all_is_there(
    database: Database, items: Items
) -> None:
    old, new = Fake("old", 256), Fake("new", 128)
    await items.upsert(ALL, "moments", texts(*(f"lake {number}" for number in range(20))))
    await drain(embedding_of(database, old))
    held = asyncio.Event()
    goes_on = asyncio.Event()

    class Held(Fake):
        async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
            held.set()
            await goes_on.wait()
            return await super().embed(texts, context)

    new = Held("new", 128)
    embedding = embedding_of(database, new, old, embed_batch_texts=8)
    search = Search(database, embedding)

    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(embedding.run())
        await held.wait()
        await items.upsert(ALL, "moments", texts("sunset"))
        during = await search.search(ALL, "lake 7")
        goes_on.set()
        await until_idle(embedding)
        after = await search.search(ALL, "lake 7")
        worker.cancel()

    assert during.embedder == "old"
    assert "are made" in during.notes[0]
    assert (after.embedder, after.notes) == ("new", ())
    assert (await stats(embedding)).vectors == 21


async def test_a_model_behind_the_same_name_that_makes_longer_vectors_is_another_one(
    database: Database, items: Items
) -> None:
    class Renewed(Fixed):
        async def find(self, spec: str) -> Fake:
            probe = await embedder.embed(["?"], Context(""))
            embedder.dimension = len(probe[0])
            return embedder

    class Changing(Fake):
        length = 64

        def made(self, text: str) -> list[float]:
            return vector(text)[: self.length]

    embedder = Changing("m", 64)
    embedding = Embedding(database, MemorySettings(embedder="test"), Renewed(embedder))
    await items.upsert(ALL, "moments", texts("one", "two", "three"))
    await drain(embedding)
    embedder.length = 96
    await items.upsert(ALL, "moments", texts("four"))
    await drain(embedding)

    told = await embedding.vectors.stats("default", embedding.id)

    assert [(each.dimension, each.vectors, each.set_aside) for each in told] == [
        (96, 4, 0),
        (64, 3, 0),
    ]


async def test_reembedding_makes_all_anew_while_the_old_vectors_answer(
    database: Database, items: Items
) -> None:
    embedder = Fake()
    embedding = embedding_of(database, embedder)
    await items.upsert(ALL, "moments", texts("one", "two"))
    await items.upsert(Whose("other"), "moments", texts("three"))
    await drain(embedding)

    told = await embedding.reembed(ALL, None, only_set_aside=False)
    found = await Search(database, embedding).search(ALL, "one")
    embedder.asked.clear()
    await drain(embedding)

    assert (told.model, told.waiting) == ("fake", 2)
    assert found.embedder == "fake"
    assert found.results[0].features["cos"] == pytest.approx(1, abs=1e-2)
    assert sorted(embedder.asked) == ["one", "two"]


async def test_only_the_daemon_s_owner_changes_the_model(database: Database) -> None:
    embedding = embedding_of(database, Fake())

    with pytest.raises(Denied, match="owner"):
        await embedding.reembed(Whose("default", "ann"), "openai:x", only_set_aside=False)


async def test_questions_are_searched_by_words_while_the_embedder_fails_or_is_slow(
    database: Database, items: Items
) -> None:
    def fail(asked: Sequence[str]) -> None:
        raise Unavailable("gone for lunch")

    embedder = Fake()
    embedding = embedding_of(database, embedder, question_timeout_s=0.05)
    search = Search(database, embedding)
    await items.upsert(ALL, "moments", texts("a lake"))
    await drain(embedding)

    embedder.act = fail
    failed = await search.search(ALL, "lake", min_similarity=0.5)

    class Slow(Fake):
        async def embed(self, texts: Sequence[str], context: Context) -> list[list[float]]:
            await asyncio.Event().wait()
            return []

    assert embedding._current is not None
    embedding._current.embedder = Slow()
    slow = await search.search(ALL, "lake")

    for found in (failed, slow):
        assert [hit.key for hit in found.results] == ["a lake"]
        assert found.embedder is None
    assert "gone for lunch" in failed.notes[0]
    assert "MIN_SIMILARITY" in failed.notes[1]
    assert "memory.question_timeout_s" in slow.notes[0]


class Bus:
    """Answers ``model:embed``."""

    def __init__(self) -> None:
        self.asked: list[ModelEmbed] = []
        self.tenants: list[str] = []

    async def request(self, event: str, data: Any, **options: Any) -> ModelEmbedded:
        from ksi_daemon.event_system import current_context  # noqa: PLC0415  as a handler would

        assert event == "model:embed"
        context = current_context()
        assert context is not None
        self.asked.append(data)
        self.tenants.append(context.tenant)
        return ModelEmbedded(
            model="p:m",
            vectors=tuple(tuple(vector(text)) for text in data.texts),
            usage=Usage(),
        )


async def test_a_provider_is_asked_over_the_bus_in_the_name_of_whose_text_it_is(
    database: Database, items: Items, tmp_path: Path
) -> None:
    bus = Bus()
    choice = Choice(tmp_path, 0, bus)  # type: ignore[arg-type]  # so much of a bus is enough
    settings = MemorySettings(embedder="p:m")
    embedding = Embedding(database, settings, choice)
    for tenant in ("a", "b"):
        await items.upsert(Whose(tenant), "moments", texts("the same"))
    await drain(embedding)

    found = await Search(database, embedding).search(Whose("b", "ann"), "same")

    assert found.embedder == "p:m"
    assert {each.model for each in bus.asked} == {"p:m"}
    assert {each.purpose for each in bus.asked} == {"memory"}
    assert sorted(bus.tenants[1:3]) == ["a", "b"]  # the first asks how long a vector is
    assert bus.tenants[-1] == "b"
    assert isinstance(await choice.find_again("p:m", 256), RemoteEmbedder)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nonsense", "give auto, none, path:FOLDER"),
        ("path:/there/is/none", "model.onnx, tokenizer.json, config.json is missing"),
        ("/there/is/none", "model.onnx"),
    ],
)
async def test_a_wrong_setting_is_told_in_every_answer(
    database: Database, tmp_path: Path, spec: str, why: str
) -> None:
    choice = Choice(tmp_path, 0, Bus())  # type: ignore[arg-type]  # enough of one
    embedding = Embedding(database, MemorySettings(embedder=spec), choice)
    with pytest.raises(InvalidData, match=r".*"):
        await choice.find(spec)

    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(embedding.run())
        async with asyncio.timeout(20):
            await embedding.looked.wait()
        worker.cancel()
    found = await Search(database, embedding).search(ALL, "lake")

    assert why in found.notes[0]


async def test_without_fastembed_it_is_said_what_to_install(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastembed", None)
    choice = Choice(tmp_path, 0, Bus())  # type: ignore[arg-type]  # enough of one

    with pytest.raises(Unavailable, match=r"ksi\[embed\]"):
        await choice.find("auto")


async def test_none_is_none(database: Database, tmp_path: Path) -> None:
    choice = Choice(tmp_path, 0, Bus())  # type: ignore[arg-type]  # enough of one

    assert await choice.find("none") is None


# -- vectors --------------------------------------------------------------------------------------


def test_the_test_embedder_finds_likeness() -> None:
    def cos(one: str, two: str) -> float:
        return sum(a * b for a, b in zip(vector(one), vector(two), strict=True))

    assert cos("a lake at sunset", "a lake at sunset") == pytest.approx(1)
    assert cos("painting a lake", "the lake was painted") > cos("painting a lake", "violin lessons")
    assert abs(cos("lake", "violin")) < 0.3
    assert vector("") == vector("…") != vector("x")


@pytest.mark.parametrize("text", ["", "word", "🦄", "\0", "x" * 100_000])
def test_the_test_embedder_makes_a_vector_of_anything(text: str) -> None:
    assert wrong_with(vector(text), 256) is None

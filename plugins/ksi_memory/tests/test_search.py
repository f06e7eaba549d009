"""Tests of the search: by words, meaning, persons and time, in one statement."""

import asyncio
import math
import random
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from ksi_daemon.protocol import InvalidData
from ksi_memory.embedding.hashed import HashedEmbedder, vector
from ksi_memory.embedding.service import Embedding
from ksi_memory.events import NewItem
from ksi_memory.items.store import Items
from ksi_memory.language.dates import Span, spoken_of
from ksi_memory.querying.finding import SQL
from ksi_memory.querying.hints import Question, embedded_text, names_in, taken_apart
from ksi_memory.querying.search import Search, Searched
from ksi_memory.settings import MemorySettings
from ksi_memory.tests.searching import drain, embedding_of
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

DAY = timedelta(days=1)
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


# -- the pipeline, against one that compares everything -------------------------------------------


class Doc(Struct):
    id: str
    lexemes: set[str]
    words: int
    item: NewItem
    vector: list[float] | None = None


async def docs_of(owner: asyncpg.Connection, given: list[NewItem], table: str) -> list[Doc]:
    rows = await owner.fetch(
        "SELECT id, key, words, tsvector_to_array(lexemes) AS lexemes FROM ksi_memory.item "
        "WHERE kind = $1 AND valid_to IS NULL",
        table,
    )
    by_key = {item.key: item for item in given}
    docs = [Doc(str(r["id"]), set(r["lexemes"]), r["words"], by_key[r["key"]]) for r in rows]
    return sorted(docs, key=lambda doc: (doc.item.session or "", doc.item.place or 0))


def unit(numbers: list[float]) -> list[float]:
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


def beside(docs: list[Doc], place: int, step: int) -> Doc | None:
    other = place + step
    here = docs[place].item.session
    if here is None or not 0 <= other < len(docs) or docs[other].item.session != here:
        return None
    return docs[other]


def joined(docs: list[Doc]) -> dict[str, list[float]]:
    own = {
        doc.id: vector(
            embedded_text(
                "",
                doc.item.body or "",
                doc.item.persons or (),
                doc.item.session,
                doc.item.starts_at,
            )
        )
        for doc in docs
    }
    made = {}
    for place, doc in enumerate(docs):
        parts = [own[doc.id]]
        for step, weight in ((-1, 0.35), (1, 0.25)):
            other = beside(docs, place, step)
            if other is not None:
                parts.append([weight * number for number in own[other.id]])
        made[doc.id] = unit([sum(numbers) for numbers in zip(*parts, strict=True)])
    return made


def expected(
    docs: list[Doc], lexemes: list[str], question: list[float] | None, asked: Question
) -> dict[str, tuple[float, list[float]]]:
    """The pipeline over all documents, in plain Python."""
    mean = sum(doc.words for doc in docs) / len(docs)
    idf = {}
    for lexeme in lexemes:
        df = sum(lexeme in doc.lexemes for doc in docs)
        if df:
            idf[lexeme] = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
    vectors = joined(docs)
    cos, lex = {}, {}
    for place, doc in enumerate(docs):
        near = [(doc, 1.0), (beside(docs, place, -1), 0.6), (beside(docs, place, 1), 0.4)]
        total = 0.0
        for lexeme, weight in idf.items():
            labels = [label for other, label in near if other and lexeme in other.lexemes]
            total += weight * max(labels, default=0.0)
        lex[doc.id] = total / (1 + 1.2 * (0.75 + 0.25 * doc.words / mean))
        pairs = zip(question, vectors[doc.id], strict=True) if question else ()
        cos[doc.id] = sum(one * two for one, two in pairs)
    best = max(lex.values()) or 1.0
    made = {}
    for doc in docs:
        session = [d.id for d in docs if d.item.session == doc.item.session and d.item.session]
        peers = session or [doc.id]
        at = doc.item.starts_at
        assert at is not None
        spoken = spoken_of(doc.item.body or "", at)
        around = [(first - 7 * DAY, after + 7 * DAY) for first, after in asked.days]
        features = [
            cos[doc.id],
            max(cos[peer] for peer in peers),
            lex[doc.id] / best,
            max(lex[peer] for peer in peers) / best,
            float(asked.person in (doc.item.persons or ())),
            float(asked.asks_when and bool(spoken)),
            float(touches(at.date(), spoken, asked.spans)),
            float(touches(at.date(), spoken, around)),
        ]
        weights = (0.70, 0.31, 0.36, 0.09, 0.20, 0.20, 0.35, 0.35)
        score = sum(one * two for one, two in zip(features, weights, strict=True))
        made[doc.id] = score, features
    return made


def touches(day: date, spoken: Sequence[Span], spans: Sequence[Span]) -> bool:
    return any(
        first <= day < after or any(one < after and first < two for one, two in spoken)
        for first, after in spans
    )


WORDS = re.findall(
    r"\w+",
    "lake sunset painting camping river tent pottery museum parade group support stories walking "
    "dinner concert violin birthday yesterday today adoption agency letter kitchen garden",
)
PEOPLE = ("caroline", "melanie", "jon")


def invented(seed: int, count: int) -> list[NewItem]:
    dice = random.Random(seed)
    return [
        NewItem(
            key=f"k{number}",
            body=" ".join(dice.choices(WORDS, k=dice.randint(2, 14)))
            + dice.choice(["", " yesterday", " on 7 May 2023", " last week"]),
            persons=(dice.choice(PEOPLE),),
            session=f"s{number // 7}" if number % 5 else None,
            place=number,
            starts_at=MAY + number * DAY,
        )
        for number in range(count)
    ]


QUESTIONS = (
    "What did Caroline paint at the lake?",
    "When did Melanie go to the museum?",
    "stories of the support group on 9 May 2023",
    "What happened in May 2023 at the parade and the concert with Jon?",
    "violin",
    "nothing that anybody said",
    "What did Jon and Melanie cook for dinner?",
)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("with_vectors", [True, False])
async def test_the_pipeline_is_the_one_that_was_measured(
    items: Items,
    embedding: Embedding,
    search: Search,
    owner: asyncpg.Connection,
    seed: int,
    with_vectors: bool,
) -> None:
    given = invented(seed, 60)
    await items.upsert(ALL, "moments", given)
    if with_vectors:
        await drain(embedding)
    docs = await docs_of(owner, given, "moments")

    for question in QUESTIONS:
        words = names_in(question)
        persons = {name: {name} for name in PEOPLE}
        asked = taken_apart(question, words, persons, datetime.now(UTC))
        lexemes = await owner.fetchval(
            "SELECT tsvector_to_array(to_tsvector('ksi_memory.words', $1))", question
        )
        told = vector(asked.embedded) if with_vectors else None
        wanted = expected(docs, lexemes, told, asked)

        found = await search.search(ALL, question, limit=60)

        assert found.results or not with_vectors
        for hit in found.results:
            score, features = wanted[str(hit.id)]
            assert list(hit.features.values()) == pytest.approx(features, abs=0.004), question
            assert hit.score == pytest.approx(score, abs=0.01)
        ranks = [hit.score for hit in found.results]
        assert ranks == sorted(ranks, reverse=True)
        if with_vectors:
            assert len(found.results) == 60  # all were candidates


async def test_few_that_are_asked_for_are_the_first_of_many(
    items: Items, embedding: Embedding, search: Search
) -> None:
    await items.upsert(ALL, "moments", invented(4, 300))
    await drain(embedding)
    shares = []

    for question in QUESTIONS:
        few = await search.search(ALL, question)
        many = await search.search(ALL, question, limit=50)  # of more candidates, all weighed alike
        assert few.truncated
        shares.append(len(set(keys(few)) & set(keys(many)[:10])) / 10)
        assert keys(few)[0] == keys(many)[0], question

    assert sum(shares) / len(shares) >= 0.9


# -- what a search is held to ---------------------------------------------------------------------


async def test_a_user_finds_what_is_theirs_and_everybody_s_and_nothing_else(
    items: Items, embedding: Embedding, search: Search
) -> None:
    await items.upsert(ALL, "moments", talk("all"))
    for user in ("ann", "bob"):
        await items.upsert(Whose("default", user), "moments", talk(user, owner=user))
    await items.upsert(Whose("other"), "moments", talk("foreign"))
    await drain(embedding)

    found = await search.search(Whose("default", "ann"), "support group", limit=100)
    everything = await search.search(ALL, "support group", limit=100)

    assert {hit.session for hit in found.results} == {"all", "ann"}
    assert {hit.session for hit in everything.results} == {"all", "ann", "bob"}


async def test_a_turn_is_found_by_the_words_of_those_beside_it(
    items: Items, search: Search
) -> None:
    await items.upsert(ALL, "moments", talk())

    found = await search.search(ALL, "powerful", limit=10)

    shares = {hit.key: hit.features["lex"] for hit in found.results}
    assert set(shares) == {"s1-0", "s1-1", "s1-2"}
    by_length = {key: share for key, share in shares.items() if key != "s1-1"}
    assert shares["s1-1"] == 1.0
    assert (
        0 < by_length["s1-0"] < by_length["s1-2"] < 1
    )  # it comes before 0, and after 2 … 0.4, 0.6


async def test_neighbours_of_other_owners_and_tables_are_none(items: Items, search: Search) -> None:
    await items.upsert(ALL, "moments", talk()[:1])
    await items.upsert(Whose("default", "ann"), "moments", talk(owner="ann")[1:2])
    await items.upsert(ALL, "resources", talk()[2:3])

    found = await search.search(Whose("default", "ann"), "powerful")

    assert [(hit.owner, hit.key) for hit in found.results] == [("ann", "s1-1")]


async def test_the_person_that_is_named_is_a_boost_and_no_filter(
    items: Items, embedding: Embedding, search: Search
) -> None:
    await items.upsert(ALL, "moments", talk())
    await drain(embedding)

    found = await search.search(ALL, "What did Melanie find inspiring about the stories?", limit=6)

    assert keys(found)[0] == "s1-3"  # Caroline said that
    assert found.results[0].features["person"] == 0.0
    assert {hit.features["person"] for hit in found.results} == {0.0, 1.0}


async def test_two_persons_are_no_boost(items: Items, search: Search) -> None:
    await items.upsert(ALL, "moments", talk())

    found = await search.search(ALL, "the stories of Melanie and Caroline", limit=6)

    assert {hit.features["person"] for hit in found.results} == {0.0}


async def test_persons_of_other_owners_are_not_known(items: Items, search: Search) -> None:
    await items.upsert(ALL, "moments", [NewItem(key="a", body="Zoe sings", persons=("ann",))])
    private = NewItem(key="b", body="nothing", persons=("zoe",), owner="bob")
    await items.upsert(Whose("default", "bob"), "moments", [private])
    asked = await search.understood(Whose("default", "ann"), "Does Zoe sing?", (), None)

    assert asked.person is None
    assert (await search.understood(ALL, "Does Zoe sing?", (), None)).person == "zoe"


async def test_who_asks_when_gets_what_speaks_of_a_time(items: Items, search: Search) -> None:
    await items.upsert(
        ALL,
        "moments",
        [
            NewItem(key="now", body="I went camping and it was great", starts_at=MAY),
            NewItem(key="then", body="I went camping last week and so on", starts_at=MAY),
        ],
    )

    when = await search.search(ALL, "When did I go camping?")
    what = await search.search(ALL, "What was camping like?")

    assert keys(when) == ["then", "now"]
    assert {hit.features["time"] for hit in what.results} == {0.0}


async def test_days_that_are_named_are_found_in_what_was_said_and_when(
    items: Items, search: Search
) -> None:
    june = datetime(2023, 6, 20, tzinfo=UTC)
    await items.upsert(
        ALL,
        "moments",
        [
            NewItem(key="of that day", body="a concert", starts_at=MAY),
            NewItem(key="speaks of it", body="a concert on 8 May 2023", starts_at=june),
            NewItem(key="of that week", body="a concert", starts_at=MAY + 5 * DAY),
            NewItem(key="of another time", body="a concert", starts_at=june),
        ],
    )

    found = await search.search(ALL, "the concert on 8 May 2023")

    told = {hit.key: (hit.features["span"], hit.features["near"]) for hit in found.results}
    assert told == {
        "of that day": (1.0, 1.0),
        "speaks of it": (1.0, 1.0),
        "of that week": (0.0, 1.0),
        "of another time": (0.0, 0.0),
    }
    assert keys(found)[3] == "of another time"


async def test_a_day_alone_finds_what_happened_then(items: Items, search: Search) -> None:
    await items.upsert(ALL, "moments", [NewItem(key="a", body="pottery", starts_at=MAY)])
    await items.upsert(ALL, "moments", [NewItem(key="b", body="tea", starts_at=MAY + 90 * DAY)])

    found = await search.search(ALL, "What happened on 8 May 2023?")

    assert keys(found) == ["a"]


async def test_relative_days_of_a_question_are_as_of_when_it_is_asked(
    items: Items, search: Search
) -> None:
    then = datetime(2024, 1, 10, tzinfo=UTC)
    await items.upsert(
        ALL, "moments", [NewItem(key="a", body="a concert", starts_at=then - DAY, valid_from=MAY)]
    )

    now = await search.search(ALL, "the concert yesterday")
    found = await search.search(ALL, "the concert yesterday", as_of=then)

    assert now.results[0].features["span"] == 0.0
    assert found.results[0].features["span"] == 1.0


async def test_what_was_superseded_is_found_as_of_then_alone(
    items: Items, embedding: Embedding, search: Search
) -> None:
    await items.upsert(ALL, "facts", [NewItem(key="home", body="lives in Sweden", valid_from=MAY)])
    await drain(embedding)
    await items.upsert(
        ALL,
        "facts",
        [NewItem(key="home", body="lives in Portugal", valid_from=MAY + 30 * DAY)],
    )
    await drain(embedding)

    before = await search.search(ALL, "who lives in Sweden", as_of=MAY + DAY)
    now = await search.search(ALL, "who lives in Sweden")

    assert [(hit.version, hit.body) for hit in before.results] == [(1, "lives in Sweden")]
    assert [(hit.version, hit.body) for hit in now.results] == [(2, "lives in Portugal")]
    assert before.results[0].features["cos"] > 0.5


async def test_filters_hold_for_every_result(
    items: Items, embedding: Embedding, search: Search
) -> None:
    await items.upsert(
        ALL,
        "moments",
        [
            NewItem(key="a", title="lake", body="tent", category="x", starts_at=MAY),
            NewItem(key="b", title="tent", body="lake", category="y", starts_at=MAY + 10 * DAY),
            NewItem(key="c", title="sand", body="lake", category="x", starts_at=MAY + 20 * DAY),
        ],
    )
    await items.upsert(ALL, "resources", [NewItem(key="d", body="lake")])
    await drain(embedding)

    async def found(**filters: Any) -> set[str]:
        return set(keys(await search.search(ALL, "lake", **filters)))

    assert await found() == {"a", "b", "c", "d"}
    assert await found(tables=["moments"]) == {"a", "b", "c"}
    assert await found(tables=["moments", "resources"]) == {"a", "b", "c", "d"}
    assert await found(tables=["facts"]) == set()
    assert await found(category="x") == {"a", "c"}
    assert await found(since=MAY + 10 * DAY, tables=["moments"]) == {"b", "c"}
    assert await found(until=MAY + 10 * DAY, tables=["moments"]) == {"a"}
    assert await found(field="title") == {"a"}
    assert await found(field="body") == {"b", "c", "d"}
    assert await found(min_similarity=0.9) == {"d"}
    with pytest.raises(InvalidData, match="title or body"):
        await found(field="key")


async def test_words_weigh_by_how_rare_they_are_in_all_tables_that_are_searched(
    items: Items, search: Search
) -> None:
    await items.upsert(ALL, "moments", [NewItem(key=f"m{n}", body="tent") for n in range(9)])
    await items.upsert(ALL, "moments", [NewItem(key="m-lake", body="lake")])
    await items.upsert(ALL, "resources", [NewItem(key=f"r{n}", body="lake") for n in range(30)])
    await items.upsert(ALL, "resources", [NewItem(key="r-tent", body="tent")])

    moments = await search.search(ALL, "lake or tent", tables=["moments"], limit=3)
    both = await search.search(ALL, "lake or tent", limit=3)

    assert keys(moments)[0] == "m-lake"  # 1 of 10
    assert {hit.body for hit in both.results} == {"tent"}  # 10 of 41, against 31


async def test_of_words_that_thousands_have_the_pairs_are_found(
    items: Items, search: Search
) -> None:
    many = [
        NewItem(key=f"n{place}", body=f"{('granite', 'basalt')[place % 2]} number {place}")
        for place in range(5200)
    ]
    both = NewItem(key="both", body="where granite meets basalt")
    for first in range(0, len(many), 1300):
        await items.upsert(ALL, "moments", many[first : first + 1300])
    await items.upsert(ALL, "moments", [both])

    assert keys(await search.search(ALL, "granite and basalt"))[0] == "both"
    # Of a word alone as many are looked at as a search may.
    assert len(keys(await search.search(ALL, "basalt"))) == 10
    # A rare word still leads to what has it alone.
    assert keys(await search.search(ALL, "basalt number 77"))[0] == "n77"


async def test_equals_are_in_the_order_of_their_ids(items: Items, search: Search) -> None:
    await items.upsert(ALL, "moments", [NewItem(key=f"m{n}", body="lake") for n in range(20)])

    found = await search.search(ALL, "lake", limit=20)

    assert [hit.id for hit in found.results] == sorted(hit.id for hit in found.results)


async def test_that_there_is_more_is_said(items: Items, search: Search) -> None:
    await items.upsert(ALL, "moments", [NewItem(key=f"m{n}", body="lake") for n in range(5)])

    assert (await search.search(ALL, "lake", limit=4)).truncated
    assert not (await search.search(ALL, "lake", limit=5)).truncated


async def test_scores_are_the_weighted_sum_of_the_features(
    items: Items, embedding: Embedding, search: Search, owner: asyncpg.Connection
) -> None:
    await items.upsert(ALL, "moments", talk())
    await drain(embedding)

    found = await search.search(ALL, "When did Caroline go to the group?", explain=True)

    assert await owner.fetchval(SQL["weights"]) == list(found.weights.values())
    for hit in found.results:
        total = sum(hit.features[name] * weight for name, weight in found.weights.items())
        assert hit.score == pytest.approx(total)


async def test_what_has_no_vector_yet_is_found_among_what_has(
    items: Items, embedding: Embedding, search: Search
) -> None:
    await items.upsert(ALL, "moments", talk())
    await drain(embedding)
    await items.upsert(ALL, "moments", [NewItem(key="new", body="A zeppelin over the lake")])

    found = await search.search(ALL, "the zeppelin")

    assert keys(found)[0] == "new"


HOSTILE = (
    "'; DROP TABLE item; --",
    "a & b | !c <-> d:* 'x':A",
    "\\'\\\\'' ''",
    "\0\0",
    "\ud800",
    "🦄 مرحبا שלום \u202e reversed",
    "the of and",
    "x" * 100_000,
    "lake " * 20_000,
    " ".join(f"word{n}" for n in range(20_000)),
    "",
)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
async def test_no_question_does_harm(
    items: Items, embedding: Embedding, search: Search, number: int
) -> None:
    await items.upsert(ALL, "moments", [*talk(), NewItem(key="odd", body="o'brien c:\\temp a&b")])
    await drain(embedding)

    found = await search.search(ALL, HOSTILE[number])

    assert len(found.results) <= 10
    assert keys(await search.search(ALL, "o'brien's temp"))[0] == "odd"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(question=st.text(max_size=200))
async def test_any_question_is_answered(database: Database, question: str) -> None:
    made = Search(database, embedding_of(database, None))

    found = await made.search(ALL, question)

    assert found.results == ()


# -- counts ---------------------------------------------------------------------------------------

RECOUNT = """
    SELECT tenant, kind, lexeme, count(*)::int FROM ksi_memory.item,
           unnest(tsvector_to_array(lexemes)) lexeme
     WHERE valid_to IS NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
COUNTED = """
    SELECT tenant, kind, lexeme, sum(documents)::int FROM ksi_memory.frequency
     GROUP BY 1, 2, 3 HAVING sum(documents) <> 0 ORDER BY 1, 2, 3
"""
REPEOPLE = """
    SELECT tenant, kind, owner, p.name, count(*)::int FROM ksi_memory.item, unnest(persons) p (name)
     WHERE valid_to IS NULL GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""
PEOPLED = """
    SELECT tenant, kind, owner, name, sum(items)::int FROM ksi_memory.person
     GROUP BY 1, 2, 3, 4 HAVING sum(items) <> 0 ORDER BY 1, 2, 3, 4
"""
RESIZED = """
    SELECT tenant, kind, count(*)::int, sum(words)::int FROM ksi_memory.item
     WHERE valid_to IS NULL GROUP BY 1, 2 ORDER BY 1, 2
"""
SIZED = """
    SELECT tenant, kind, sum(documents)::int, sum(words)::int FROM ksi_memory.collection
     GROUP BY 1, 2 HAVING sum(documents) <> 0 ORDER BY 1, 2
"""


async def counts_are_right(owner: asyncpg.Connection) -> None:
    for counted, again in ((COUNTED, RECOUNT), (PEOPLED, REPEOPLE), (SIZED, RESIZED)):
        assert await owner.fetch(counted) == await owner.fetch(again)


async def test_counts_follow_whatever_is_done(
    items: Items, embedding: Embedding, owner: asyncpg.Connection
) -> None:
    dice = random.Random(4)
    for round_ in range(12):
        await items.upsert(ALL, dice.choice(["moments", "facts"]), invented(round_, 30))
        known = await owner.fetch(
            "SELECT id FROM ksi_memory.item WHERE valid_to IS NULL ORDER BY id"
        )
        gone = dice.sample([str(row["id"]) for row in known], 5)
        await items.forget(ALL, gone)
        await counts_are_right(owner)
        await embedding.vectors.fold(1)
        await counts_are_right(owner)

    for _ in range(40):
        await items.upsert(ALL, "facts", invented(dice.randint(0, 99), 3), even_forgotten=True)
    before = await owner.fetchval("SELECT count(*) FROM ksi_memory.frequency")
    while await embedding.vectors.fold(10):
        pass

    await counts_are_right(owner)
    assert await owner.fetchval("SELECT count(*) FROM ksi_memory.frequency") < before / 2


async def test_counting_out_what_is_forgotten_leaves_no_word_of_it(
    items: Items, embedding: Embedding, owner: asyncpg.Connection
) -> None:
    told = await items.upsert(ALL, "facts", [NewItem(key="a", body="xylophone", persons=("zoe",))])
    await items.forget(ALL, list(told.ids))
    for _ in range(33):
        await items.upsert(ALL, "facts", invented(_, 1))
    await embedding.vectors.fold(10)

    assert (
        await owner.fetchval(
            "SELECT count(*) FROM ksi_memory.frequency WHERE lexeme LIKE 'xyloph%'"
        )
        == 0
    )
    assert await owner.fetchval("SELECT count(*) FROM ksi_memory.person WHERE name = 'zoe'") == 0


async def test_many_write_at_once_and_the_counts_are_right(
    items: Items, owner: asyncpg.Connection
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(12):
            whose = Whose(f"t{number % 3}")
            tasks.create_task(items.upsert(whose, "moments", invented(number, 40)))

    await counts_are_right(owner)

"""Questions as they come over the bus: every mode, budgets, snippets, who may ask what."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksi_client import AsyncClient
from ksi_completion.tokens import of_text
from ksi_daemon.protocol import Denied, InvalidData, KsiError, NotFound
from ksi_memory.events import Edge, MemoryFound, NewItem
from ksi_memory.items.store import Items
from ksi_memory.settings import MemorySettings
from ksi_memory.tests.asking import Searching, asking_daemon
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins

ALL = Whose("default")
OTHER = Whose("other")
SECRET = "of-another-tenant-4711"


@pytest.fixture
def items(database: Database) -> Items:
    return Items(database, MemorySettings())


@pytest.fixture
def searching(items: Items) -> Searching:
    return Searching(items)


@pytest.fixture
async def client(
    ksi_home: Path, database_logins: Logins, searching: Searching
) -> AsyncIterator[AsyncClient]:
    async with asking_daemon(ksi_home, database_logins, searching) as connected:
        yield connected


async def ask(client: AsyncClient, text: str | None = None, **fields: Any) -> MemoryFound:
    context = fields.pop("context", None)
    data = {"text": text, **fields} if text is not None else fields
    return await client.request("memory:query", data, result_type=MemoryFound, context=context)


def keys(found: MemoryFound) -> list[str]:
    return [each.key for each in found.results]


@pytest.fixture
async def remembered(items: Items) -> None:
    long = "Nothing of interest. " * 40
    await items.upsert(
        ALL,
        "resources",
        [
            NewItem(
                key="rent.md", title="Rent", body=f"{long}The rents are paid on the 3rd. {long}"
            ),
            NewItem(key="b.md", body="No match here", attributes={"page": 3}),
        ],
    )
    edges = (Edge(to="Bob", relation="knows"), Edge(to="nobody", relation="knows"))
    people = [NewItem(key="Anna", title="Anna Schmidt", edges=edges), NewItem(key="Bob")]
    await items.upsert(ALL, "entities", people)
    await items.upsert(OTHER, "entities", [NewItem(key=SECRET, body=SECRET)])


@pytest.mark.usefixtures("remembered")
async def test_every_mode_answers_in_the_dialect_and_as_a_payload(client: AsyncClient) -> None:
    assert keys(await ask(client, "LOOKUP anna, bob")) == ["Anna", "Bob"]
    assert keys(await ask(client, mode="lookup", keys=["anna", "bob"])) == ["Anna", "Bob"]
    assert keys(await ask(client, "FUZZY ana shmidt")) == ["Anna"]
    assert keys(await ask(client, mode="fuzzy", query="ana shmidt")) == ["Anna"]
    assert keys(await ask(client, "TRAVERSE anna")) == ["Anna", "Bob", "nobody"]
    assert keys(await ask(client, mode="traverse", keys=["anna"], depth=0)) == ["Anna"]
    assert keys(await ask(client, "TIMELINE anna")) == ["Anna"]
    assert keys(await ask(client, mode="timeline", subject="anna")) == ["Anna"]
    assert keys(await ask(client, "who pays the rent?")) == ["rent.md", "b.md"]
    assert keys(await ask(client, mode="search", query="rent")) == ["rent.md", "b.md"]
    sql = await ask(client, "SQL SELECT key FROM entities ORDER BY key")
    assert (sql.columns, sql.rows) == (("key",), (("Anna",), ("Bob",)))


@pytest.mark.usefixtures("remembered")
async def test_a_search_hands_its_clauses_on(client: AsyncClient, searching: Searching) -> None:
    found = await ask(
        client, "SEARCH rent FROM resources LIMIT 3 CATEGORY home FIELD body", explain=True
    )

    assert searching.asked["question"] == "rent"
    assert searching.asked["tables"] == ("resources",)
    assert (searching.asked["limit"], searching.asked["category"]) == (3, "home")
    assert (searching.asked["field"], searching.asked["explain"]) == ("body", True)
    assert found.results[0].features == {"cos": 0.5}
    assert (found.weights, found.embedder) == ({"cos": 0.7}, "test")
    assert (await ask(client, "rent")).results[0].features is None


@pytest.mark.usefixtures("remembered")
async def test_a_result_shows_the_match_its_source_and_its_tokens(client: AsyncClient) -> None:
    first, second = (await ask(client, "When do we pay rent?")).results

    assert "The **rents** are paid on the 3rd" in first.snippet
    assert first.snippet.startswith("…")
    assert first.snippet.endswith("…")
    assert len(first.snippet) < 300
    assert second.snippet == "No match here"
    assert first.source == "the daemon's owner"
    assert first.tokens > of_text(first.snippet)


@pytest.mark.usefixtures("remembered")
async def test_what_does_not_fit_into_a_budget_is_left_out_and_counted(
    client: AsyncClient,
) -> None:
    whole = await ask(client, "LOOKUP rent.md, b.md")
    small = await ask(client, "LOOKUP rent.md, b.md MAX_TOKENS 160")
    none = await ask(client, "LOOKUP rent.md, b.md", max_tokens=1)

    assert whole.tokens == sum(each.tokens for each in whole.results) > 160
    assert keys(small) == ["rent.md", "b.md"]
    assert small.tokens <= 160
    assert [each.body is None for each in small.results] == [True, False]
    assert (none.results, none.tokens, none.truncated) == ((), 0, True)
    assert "2 more did not fit into 1 tokens (max_tokens)" in none.notes


async def test_an_answer_has_only_so_many_characters(client: AsyncClient, items: Items) -> None:
    body = "日本 " * 50_000
    await items.upsert(ALL, "resources", [NewItem(key=f"k{n}", body=body) for n in range(5)])

    looked_up = await ask(client, "LOOKUP k0, k1, k2, k3, k4")
    rows = await ask(client, "SQL SELECT key, body FROM items")

    assert [each.body is None for each in looked_up.results] == [False] * 3 + [True] * 2
    assert all(each.snippet for each in looked_up.results)
    assert "memory.max_answer_chars" in looked_up.notes[0]
    assert (len(rows.rows), rows.truncated) == (3, True)
    assert "2 more did not fit into 500,000 characters" in rows.notes[0]


async def test_rows_of_sql_are_cut_to_a_budget_too(client: AsyncClient) -> None:
    found = await ask(client, "SQL SELECT generate_series(1, 500) AS n", max_tokens=100)

    assert 0 < len(found.rows) < 100
    assert found.truncated
    assert found.tokens <= 100


@pytest.mark.usefixtures("remembered")
async def test_what_is_not_there_is_said(client: AsyncClient) -> None:
    looked_up = await ask(client, "LOOKUP anna, charly")
    walked = await ask(client, "TRAVERSE charly")

    assert keys(looked_up) == ["Anna"]
    assert looked_up.notes == ("nothing bears the key 'charly'; FUZZY finds keys that are alike",)
    assert (walked.results, walked.notes) == ((), looked_up.notes)
    with pytest.raises(NotFound, match="did you mean moments"):
        await ask(client, "SEARCH rent FROM momets")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "say what you ask"),
        ({"text": "x", "mode": "search"}, "send no mode"),
        ({"mode": "search"}, "search needs query"),
        ({"mode": "search", "query": "  "}, "search needs a query"),
        ({"mode": "lookup", "keys": ["a", " "]}, "lookup needs keys"),
        ({"mode": "lookup", "keys": ["a"], "query": "b"}, "lookup takes no query"),
        ({"mode": "lookup", "keys": ["a"], "threshold": 0.5}, "lookup takes no threshold"),
        ({"mode": "traverse", "keys": ["a", "b"]}, "traverse takes one key"),
        ({"text": "LOOKUP a", "depth": 3}, "lookup takes no depth"),
        ({"mode": "fuzzy", "query": "a\0b"}, "a zero byte in query"),
        ({"mode": "lookup", "keys": ["a\0b"]}, "a zero byte in keys"),
        ({"mode": "search", "query": "a", "category": "\0"}, "a zero byte in category"),
        (
            {"mode": "search", "query": "a", "until": "0001-01-01T00:00:00+14:00"},
            "beyond all times",
        ),
        ({"text": "SEARCH x LIMIT ten"}, "expected a number after LIMIT, found 'ten'"),
        ({"text": "a " * 30_000}, r"at most 10,000 characters \(memory.max_query_chars\)"),
        ({"text": "a " * 60_000}, "<= 100000"),
    ],
)
async def test_a_question_that_is_none_is_refused(
    client: AsyncClient, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidData, match=told):
        await client.request("memory:query", fields)


@pytest.mark.usefixtures("remembered")
async def test_a_user_sees_their_own_and_may_not_ask_in_sql(client: AsyncClient) -> None:
    for whose in ({"user": "u"}, {"agent": "a"}, {"conversation": "c"}):
        with pytest.raises(Denied, match="SQL"):
            await ask(client, "SQL SELECT 1", context=whose)

    assert keys(await ask(client, "LOOKUP anna", context={"user": "u"})) == ["Anna"]
    assert keys(await ask(client, "LOOKUP anna", context={"tenant": "nobody's"})) == []
    rows = (await ask(client, "SQL SELECT key FROM items", context={"tenant": "other"})).rows
    assert rows == ((SECRET,),)


@pytest.mark.usefixtures("remembered")
async def test_a_timeline_and_keys_are_events_of_their_own(client: AsyncClient) -> None:
    timeline = await client.request("memory:timeline", {"subject": "anna"})
    listed = await client.request("memory:keys", {"beginning": "a"})

    assert [each["key"] for each in timeline["results"]] == ["Anna"]
    assert listed == {"keys": ["Anna"], "tables": ["entities", "resources"]}


async def test_emoji_and_text_from_right_to_left_are_keys_like_others(
    client: AsyncClient, items: Items
) -> None:
    named = ["🏠 rent", "שכר דירה", "إيجار", "e\u0301tude", "\u202eevil", "a\tb"]
    await items.upsert(ALL, "facts", [NewItem(key=key, body=key) for key in named])

    for key in named:
        assert keys(await ask(client, mode="lookup", keys=[key])) == [key]
        assert key in keys(await ask(client, mode="fuzzy", query=key, threshold=0.3)) or not any(
            c.isalnum() for c in key
        )


# -- attacks --------------------------------------------------------------------------------------

ATTACKS = (
    "SELECT * FROM ksi_memory.item",
    "SELECT * FROM ksi_memory.held_items",
    "SELECT body FROM ksi_memory.source",
    "SELECT * FROM ksi_memory.lookup('other', NULL, ARRAY['x'], NULL, NULL, 9)",
    "SELECT ksi_memory.fuzzy('other', NULL, 'secret', NULL, 0, NULL, 9, 9)",
    "SELECT ksi_memory.keys_from('other', NULL, '', 9)",
    "SELECT ksi_memory.kinds_seen('other', NULL)",
    "SELECT set_config('ksi.tenant', 'other', false)",
    "SELECT ksi_postgres.bind_reader(pg_backend_pid(), 'other')",
    "UPDATE items SET body = '' RETURNING 1",
    "DELETE FROM moments RETURNING 1",
    "INSERT INTO facts (key) VALUES ('x') RETURNING 1",
    "WITH x AS (DELETE FROM items RETURNING 1) SELECT * FROM x",
    "SELECT 1; DELETE FROM items",
    "SELECT 1 INTO TEMP t",
    "SELECT * FROM items FOR UPDATE",
    "SELECT query_to_xml('SELECT * FROM ksi_memory.item', true, false, '')",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_sleep(1)",
    "SELECT pg_notify('ksi_workflows', 'x')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_stats_of_nothing",
    "SELECT name::int FROM items",
    "SELECT dblink('', 'SELECT 1')",
    "COPY items TO '/tmp/x'",
    "COPY items TO PROGRAM 'cat'",
    "COPY (SELECT 1) TO STDOUT",
    "SET ROLE ksi_owner",
    "SET ksi.tenant = 'other'",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE TABLE t (n int)",
    "TRUNCATE ksi_memory.item",
    "DROP VIEW ksi_read.items",
    "ALTER VIEW ksi_read.items RESET (security_barrier)",
    "LOCK TABLE ksi_memory.item",
    "PREPARE p AS SELECT 1",
    "COMMIT",
    "VACUUM",
    "EXPLAIN ANALYZE DELETE FROM items",
)


@pytest.mark.usefixtures("remembered")
async def test_no_attack_comes_through_a_question(client: AsyncClient) -> None:
    for attack in ATTACKS:
        with pytest.raises((Denied, InvalidData)) as caught:
            pytest.fail(f"{attack} gave {await ask(client, f'SQL {attack}')}")
        assert SECRET not in str(caught.value.body), attack
        with pytest.raises((Denied, InvalidData)):
            await ask(client, mode="sql", query=attack)

    rows = (await ask(client, "SQL SELECT count(*) FROM items")).rows
    assert rows == ((4,),)


@pytest.mark.usefixtures("remembered")
async def test_what_leaks_in_other_databases_shows_nothing_here(client: AsyncClient) -> None:
    for query in (
        "SELECT * FROM items WHERE 1 / (length(key) - 22) > 0",
        "SELECT * FROM items WHERE key::int = 1",
        "SELECT count(*) FROM items WHERE key LIKE 'of-another%' AND 1 / 1 = 1",
        "SELECT most_common_vals::text FROM pg_stats",
        "SELECT * FROM item_versions UNION SELECT * FROM item_versions",
        "SELECT i::text FROM items i",
        "EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM items",
        "SELECT current_setting('ksi.tenant', true)",
    ):
        try:
            told = str((await ask(client, f"SQL {query}")).rows)
        except KsiError as error:
            told = str(error.body)
        assert SECRET not in told.replace(query, ""), query


FRAGMENTS: Sequence[str] = (
    *ATTACKS,
    *("SELECT key FROM items", "items", "ksi_memory.item", "'other'", "tenant", "1", "NULL"),
    *("LOOKUP", "SEARCH", "TRAVERSE", "FUZZY", "TIMELINE", "SQL", "LIMIT 5", SECRET[:10]),
)
GLUE = (
    " ",
    ";",
    "; ",
    " UNION ALL ",
    " WHERE ",
    ", ",
    ")",
    "(",
    " -- ",
    "/*",
    "*/",
    "'",
    '"',
    "\n",
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.sampled_from(["SQL ", "SQL SELECT ", "sql ", ""]),
    st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.sampled_from(GLUE)), min_size=1, max_size=4),
)
@pytest.mark.usefixtures("remembered")
async def test_no_mixture_shows_what_is_another_tenant_s(
    client: AsyncClient, begins: str, parts: list[tuple[str, str]]
) -> None:
    text = begins + "".join(fragment + glue for fragment, glue in parts)

    try:
        told = str(await ask(client, text))
    except KsiError as error:
        told = str(error.body)

    assert SECRET not in told

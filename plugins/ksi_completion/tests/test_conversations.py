"""Tests of conversations over a real daemon and Postgres: made, read, found, copied, gone."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ksi_client import AsyncClient, Conflict, Denied, InvalidData, NotFound
from ksi_completion.tests.conversing import (
    Started,
    calls,
    conversing,
    open_turn,
    postgres,
    results,
    run_sql,
    say,
)
from ksi_daemon.loader import EntryPoint
from ksi_models.events import TextPart, ThinkingPart, ToolCallPart
from ksi_postgres.logins import Logins


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    return [postgres(), conversing(Started())]


As = Callable[..., Awaitable[AsyncClient]]


@pytest.fixture
async def client_of(client: AsyncClient, connect: Callable[..., Awaitable[AsyncClient]]) -> As:
    """Connect as somebody: a user, an agent, somebody of another tenant."""

    async def connected(**who: str) -> AsyncClient:
        grants: dict[str, Any] = {"call": ["conversation:*"]}
        request: dict[str, Any] = {"name": "t", "ttl_s": 60, "grants": grants, **who}
        made = await client.request("token:create", request)
        return await connect(token=made["token"])

    return connected


# -- made, listed, named -------------------------------------------------------------------------


async def test_a_conversation_is_made_and_told(client: AsyncClient) -> None:
    made = await client.request(
        "conversation:create", {"title": "Trip", "model": "m", "agent": "guide"}
    )

    found = await client.request("conversation:get", {"conversation_id": made["conversation_id"]})

    assert found == made
    assert (found["title"], found["model"], found["agent"]) == ("Trip", "m", "guide")
    assert (found["messages"], found["turns"]) == (0, 0)


async def test_a_kind_tells_conversations_apart_and_goes_with_a_copy(client: AsyncClient) -> None:
    for name, kind in (("a", "eval"), ("b", "chat"), ("c", None)):
        made = {"conversation_id": name, "kind": kind}
        assert (await client.request("conversation:create", made)).get("kind") == kind
    copy = await client.request("conversation:fork", {"conversation_id": "a", "new_id": "d"})

    found = await client.request("conversation:list", {"kind": "eval"})

    assert copy["kind"] == "eval"
    assert [each["conversation_id"] for each in found["conversations"]] == ["d", "a"]
    with pytest.raises(InvalidData, match="kind"):
        await client.request("conversation:list", {"kind": "a b"})


async def test_making_a_conversation_again_leaves_it_as_it_is(client: AsyncClient) -> None:
    first = await client.request("conversation:create", {"conversation_id": "c", "title": "A"})

    again = await client.request("conversation:create", {"conversation_id": "c", "title": "B"})

    assert again == first


@pytest.mark.parametrize("bad", ["", "a b", "a\nb", "x" * 201])
async def test_an_id_that_can_t_be_one_is_refused(client: AsyncClient, bad: str) -> None:
    with pytest.raises(InvalidData, match="conversation_id"):
        await client.request("conversation:create", {"conversation_id": bad})


@pytest.mark.parametrize(
    ("event", "more"),
    [
        ("conversation:get", {}),
        ("conversation:history", {}),
        ("conversation:messages", {"first": 1, "last": 1}),
        ("conversation:rename", {"title": "x"}),
        ("conversation:archive", {}),
        ("conversation:delete", {}),
        ("conversation:fork", {}),
        ("conversation:lock", {"owner": "x"}),
        ("conversation:unlock", {}),
    ],
)
async def test_a_conversation_that_is_not_there_is_told(
    client: AsyncClient, event: str, more: dict[str, Any]
) -> None:
    with pytest.raises(NotFound, match="'nowhere'"):
        await client.request(event, {"conversation_id": "nowhere", **more})


async def test_conversations_are_listed_page_by_page_the_one_used_last_first(
    client: AsyncClient, database_logins: Logins
) -> None:
    for name in "abcde":
        await client.request("conversation:create", {"conversation_id": name})
    await say(database_logins, "b", ("user", "hello"))

    seen: list[str] = []
    cursor = None
    while True:
        page = await client.request("conversation:list", {"limit": 2, "cursor": cursor})
        seen += [each["conversation_id"] for each in page["conversations"]]
        cursor = page["cursor"]
        if cursor is None:
            break

    assert seen == ["b", "e", "d", "c", "a"]


async def test_conversations_of_the_same_moment_are_listed_once_each(
    client: AsyncClient, database_logins: Logins
) -> None:
    for name in "abcd":
        await client.request("conversation:create", {"conversation_id": name})
    await run_sql(database_logins, "UPDATE ksi_completion.conversation SET updated_at = now()")

    first = await client.request("conversation:list", {"limit": 3})
    rest = await client.request("conversation:list", {"limit": 3, "cursor": first["cursor"]})

    told = [*first["conversations"], *rest["conversations"]]
    assert [each["conversation_id"] for each in told] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("cursor", ["x", "2020-01-01 c", "2020-01-01T00:00:00+00:00 ", " "])
async def test_what_is_no_cursor_is_told(client: AsyncClient, cursor: str) -> None:
    with pytest.raises(InvalidData, match="no cursor"):
        await client.request("conversation:list", {"cursor": cursor})


async def test_one_that_is_put_away_is_listed_apart_and_can_be_taken_out(
    client: AsyncClient,
) -> None:
    await client.request("conversation:create", {"conversation_id": "c"})

    put_away = await client.request("conversation:archive", {"conversation_id": "c"})
    listed = await client.request("conversation:list")
    archive = await client.request("conversation:list", {"archived": True})
    back = await client.request("conversation:archive", {"conversation_id": "c", "archived": False})

    assert put_away["archived_at"]
    assert listed["conversations"] == []
    assert [each["conversation_id"] for each in archive["conversations"]] == ["c"]
    assert "archived_at" not in back


async def test_a_conversation_gets_another_title(client: AsyncClient) -> None:
    await client.request("conversation:create", {"conversation_id": "c", "title": "old"})

    renamed = await client.request(
        "conversation:rename", {"conversation_id": "c", "title": "new\0"}
    )

    assert renamed["title"] == "new"


async def test_deleting_takes_all_of_it(client: AsyncClient, database_logins: Logins) -> None:
    await say(database_logins, "c", ("user", "hello"), ("assistant", "hi"))
    await open_turn(database_logins, "c", 1, "succeeded")

    gone = await client.request("conversation:delete", {"conversation_id": "c"})

    assert gone == {"conversation_id": "c", "messages": 2}
    for table in ("conversation", "message", "turn"):
        assert not await run_sql(database_logins, f"SELECT FROM ksi_completion.{table}")


@pytest.mark.parametrize("status", ["waiting", "running", "paused"])
async def test_a_conversation_at_work_can_t_be_deleted(
    client: AsyncClient, database_logins: Logins, status: str
) -> None:
    await say(database_logins, "c", ("user", "hello"))
    await open_turn(database_logins, "c", 1, status)

    with pytest.raises(Conflict, match="completion:cancel"):
        await client.request("conversation:delete", {"conversation_id": "c"})

    told = await client.request("conversation:get", {"conversation_id": "c"})
    assert told.get("waiting_turns", 0) == (status == "waiting")
    assert ("running_run_id" in told) == (status != "waiting")


async def test_a_locked_conversation_can_t_be_deleted(client: AsyncClient) -> None:
    await client.request("conversation:create", {"conversation_id": "c"})
    await client.request("conversation:lock", {"conversation_id": "c", "owner": "me"})

    with pytest.raises(Conflict, match="locked"):
        await client.request("conversation:delete", {"conversation_id": "c"})


# -- read ----------------------------------------------------------------------------------------


async def test_history_is_read_in_both_directions(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", *(("user", f"message {n}") for n in range(1, 8)))

    async def read(**more: Any) -> tuple[list[int], Any, Any]:
        page = await client.request(
            "conversation:history", {"conversation_id": "c", "limit": 3, **more}
        )
        return [each["number"] for each in page["messages"]], page["before"], page["after"]

    assert await read() == ([5, 6, 7], 5, None)
    assert await read(before=5) == ([2, 3, 4], 2, 4)
    assert await read(before=2) == ([1], None, 1)
    assert await read(after=0) == ([1, 2, 3], None, 3)
    assert await read(after=6) == ([7], 7, None)
    assert await read(after=7) == ([], None, None)
    assert await read(after=2, before=4) == ([3], 3, 3)
    assert await read(after=2**70) == ([], None, None)
    assert await read(before=2**70) == ([5, 6, 7], 5, None)


async def test_a_page_of_large_messages_is_short(
    client: AsyncClient, database_logins: Logins
) -> None:
    large = "x" * 700_000
    await say(database_logins, "c", ("user", large), ("user", large), ("user", large))

    page = await client.request("conversation:history", {"conversation_id": "c"})

    assert [each["number"] for each in page["messages"]] == [2, 3]
    assert page["before"] == 2


async def test_every_kind_of_part_comes_back_as_it_was(
    client: AsyncClient, database_logins: Logins
) -> None:
    parts = (ThinkingPart("hm", "sig"), TextPart("ok \0"), ToolCallPart("1", "look", "{broken"))
    await say(database_logins, "c", ("assistant", parts))

    page = await client.request("conversation:history", {"conversation_id": "c"})

    assert page["messages"][0]["parts"] == [
        {"kind": "thinking", "text": "hm", "signature": "sig"},
        {"kind": "text", "text": "ok \0"},
        {"kind": "tool_call", "id": "1", "name": "look", "arguments": "{broken"},
    ]


async def test_messages_are_fetched_by_range_and_checked_by_hash(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", ("user", "one"), ("assistant", "two"), ("user", "three"))
    wanted = {"conversation_id": "c", "first": 1, "last": 2}

    fetched = await client.request("conversation:messages", wanted)
    again = await client.request("conversation:messages", {**wanted, "sha256": fetched["sha256"]})

    assert again == fetched
    assert [each["role"] for each in fetched["messages"]] == ["user", "assistant"]
    await run_sql(
        database_logins, "UPDATE ksi_completion.message SET role = 'user' WHERE number = 2"
    )
    with pytest.raises(Conflict, match="not those any more"):
        await client.request("conversation:messages", {**wanted, "sha256": fetched["sha256"]})


async def test_a_range_that_is_none_is_told(client: AsyncClient, database_logins: Logins) -> None:
    await say(database_logins, "c", ("user", "one"))

    with pytest.raises(NotFound, match="its last is 1"):
        await client.request(
            "conversation:messages", {"conversation_id": "c", "first": 1, "last": 2}
        )
    with pytest.raises(InvalidData, match="range"):
        await client.request(
            "conversation:messages", {"conversation_id": "c", "first": 2, "last": 1}
        )


# -- found ---------------------------------------------------------------------------------------


async def test_messages_are_found_by_their_words_the_best_first(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", ("user", "The whale is large"), ("assistant", "whale, whale!"))
    await say(database_logins, "d", ("user", "nothing of the kind"))

    found = (await client.request("conversation:search", {"text": "whale"}))["found"]

    assert [(each["conversation_id"], each["number"]) for each in found] == [("c", 2), ("c", 1)]
    assert found[1]["snippet"] == "The **whale** is large"


SEARCHED = [
    ("müller", 1),
    ("MULLER", 1),
    ("Größe", 1),
    ("mül*", 1),
    ("mül", 0),
    ('"herr müller"', 1),
    ('"müller herr"', 0),
    ("müller -herr", 0),
    ("москва", 1),
    ("東京", 1),
    ("nothing or müller", 1),
    ("müller it's* x'y*", 0),
    ("' OR 1=1 --", 0),
    ("' & müller:*", 1),
]
NO_WORDS = ("& | ! ( ) : <-> \\ '", "-müller", "*", "\0")


async def test_any_text_may_be_searched_for(client: AsyncClient, database_logins: Logins) -> None:
    said = "Sehr geehrter Herr Müller, die Größe stimmt. МОСКВА 東京"
    await say(database_logins, "c", ("user", said))

    for words, hits in SEARCHED:
        found = await client.request("conversation:search", {"text": words})
        assert len(found["found"]) == hits, words
    for words in NO_WORDS:
        with pytest.raises(InvalidData, match="needs a word"):
            await client.request("conversation:search", {"text": words})


async def test_a_message_of_any_size_can_be_kept_and_found(
    client: AsyncClient, database_logins: Logins
) -> None:
    said = " ".join(f"word{n}" for n in range(300_000)) + "\U0001d538" * 3000
    await say(database_logins, "c", ("user", said))

    found = await client.request("conversation:search", {"text": "word77"})

    assert "**word77**" in found["found"][0]["snippet"]


SCANS = """
    SELECT (SELECT idx_scan FROM pg_stat_all_indexes
             WHERE indexrelid = 'ksi_completion.message_words'::regclass) AS by_index,
           (SELECT seq_scan FROM pg_stat_all_tables
             WHERE relid = 'ksi_completion.message'::regclass) AS whole
"""
# A backend tells what it did a second after that, or when it ends.
FLUSH = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'ksi' AND pid <> pg_backend_pid()
"""


async def test_search_uses_its_index(client: AsyncClient, database_logins: Logins) -> None:
    await say(database_logins, "c", *(("user", f"word{n} and more") for n in range(2000)))

    await run_sql(database_logins, "ANALYZE ksi_completion.message")
    (before,) = await run_sql(database_logins, SCANS)

    for _ in range(10):  # plans of their own, then one for all
        found = await client.request("conversation:search", {"text": "word7"})
        assert len(found["found"]) == 1

    await run_sql(database_logins, FLUSH)
    (after,) = await run_sql(database_logins, SCANS)
    assert after["by_index"] - before["by_index"] == 10
    assert after["whole"] == before["whole"]


# -- forked --------------------------------------------------------------------------------------


async def test_a_fork_has_the_messages_up_to_a_place_and_goes_its_own_way(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", ("user", "a"), ("assistant", "b"), ("user", "c"))

    fork = await client.request(
        "conversation:fork", {"conversation_id": "c", "at": 2, "new_id": "d", "title": "Other"}
    )
    await say(database_logins, "d", ("user", "another"))

    assert (fork["messages"], fork["turns"]) == (2, 1)
    assert (fork["forked_from"], fork["forked_at"], fork["title"]) == ("c", 2, "Other")
    read = await client.request("conversation:history", {"conversation_id": "d"})
    told = [(m["number"], m["turn"], m["parts"][0]["text"]) for m in read["messages"]]
    assert told == [(1, 1, "a"), (2, 1, "b"), (3, 2, "another")]
    original = await client.request("conversation:get", {"conversation_id": "c"})
    assert original["messages"] == 3


@pytest.mark.parametrize(
    ("at", "kept"),
    [(None, 7), (7, 7), (6, 6), (5, 2), (4, 2), (3, 2), (2, 2)],
)
async def test_a_fork_in_the_middle_of_tool_calls_keeps_whole_pairs(
    client: AsyncClient, database_logins: Logins, at: int | None, kept: int
) -> None:
    await say(
        database_logins,
        "c",
        ("user", "a"),
        ("assistant", "b"),
        ("assistant", calls("1", "2", "3")),
        ("tool", results("1")),
        ("tool", results("2")),
        ("tool", results("3")),
        ("assistant", "c"),
    )

    fork = await client.request("conversation:fork", {"conversation_id": "c", "at": at})

    assert (fork["messages"], fork["forked_at"]) == (kept, kept)


async def test_a_fork_past_the_end_or_onto_another_is_refused(
    client: AsyncClient, database_logins: Logins
) -> None:
    await say(database_logins, "c", ("user", "a"))

    with pytest.raises(InvalidData, match="last message of 'c' is 1"):
        await client.request("conversation:fork", {"conversation_id": "c", "at": 2})
    with pytest.raises(Conflict, match="'c' already"):
        await client.request("conversation:fork", {"conversation_id": "c", "new_id": "c"})


# -- whose ---------------------------------------------------------------------------------------


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("conversation:get", {}),
    ("conversation:history", {}),
    ("conversation:messages", {"first": 1, "last": 1}),
    ("conversation:rename", {"title": "mine"}),
    ("conversation:archive", {}),
    ("conversation:delete", {}),
    ("conversation:fork", {}),
    ("conversation:lock", {"owner": "x"}),
    ("conversation:unlock", {"force": True}),
]


async def test_a_user_finds_his_own_conversations_and_no_others(
    client: AsyncClient, client_of: As, database_logins: Logins
) -> None:
    ann, bob = await client_of(user="ann"), await client_of(user="bob")
    await ann.request("conversation:create", {"conversation_id": "hers"})
    await say(database_logins, "hers", ("user", "a secret"))
    await client.request("conversation:create", {"conversation_id": "owners"})

    for theirs in (bob, ann):
        whose = "hers" if theirs is bob else "owners"
        for event, more in WAYS:
            with pytest.raises(NotFound):
                await theirs.request(event, {"conversation_id": whose, **more})
        with pytest.raises(NotFound):
            await anext(theirs.stream("conversation:export", {"conversation_id": whose}))
    assert (await bob.request("conversation:search", {"text": "secret"}))["found"] == []
    assert (await bob.request("conversation:list"))["conversations"] == []
    assert len((await ann.request("conversation:search", {"text": "secret"}))["found"]) == 1
    assert len((await ann.request("conversation:list"))["conversations"]) == 1
    assert len((await client.request("conversation:list"))["conversations"]) == 2
    with pytest.raises(NotFound):
        await bob.request("conversation:create", {"conversation_id": "hers"})


async def test_tenants_have_conversations_of_their_own_under_one_id(
    client: AsyncClient, client_of: As, database_logins: Logins
) -> None:
    other = await client_of(tenant="other")
    await client.request("conversation:create", {"conversation_id": "c", "title": "ours"})
    await say(database_logins, "c", ("user", "secret"))

    await other.request("conversation:create", {"conversation_id": "c", "title": "theirs"})

    mine = await client.request("conversation:get", {"conversation_id": "c"})
    theirs = await other.request("conversation:get", {"conversation_id": "c"})
    assert (mine["title"], theirs["title"]) == ("ours", "theirs")
    assert (await other.request("conversation:search", {"text": "secret"}))["found"] == []
    assert theirs["messages"] == 0


async def test_an_agent_sees_the_conversation_it_is_in_or_those_it_leads(
    client: AsyncClient, client_of: As
) -> None:
    for name, agent in [("a", "guide"), ("b", "guide"), ("c", "other")]:
        await client.request("conversation:create", {"conversation_id": name, "agent": agent})
    leading = await client_of(agent="guide")
    inside = await client_of(agent="guide", conversation="a")

    async def seen(who: AsyncClient) -> set[str]:
        listed = await who.request("conversation:list")
        return {each["conversation_id"] for each in listed["conversations"]}

    assert await seen(leading) == {"a", "b"}
    assert await seen(inside) == {"a"}
    with pytest.raises(NotFound):
        await inside.request("conversation:get", {"conversation_id": "b"})
    with pytest.raises(Denied, match="'guide'"):
        await leading.request("conversation:create", {"agent": "other"})
    made = await inside.request("conversation:create", {"conversation_id": "d"})
    assert made["agent"] == "guide"

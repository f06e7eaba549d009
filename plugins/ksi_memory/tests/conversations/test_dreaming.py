"""Dreams of a daemon: what they write, that twice is once, and what they do not bring back."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ksi_client import AsyncClient, InvalidData
from ksi_completion.tests.doubles import Script
from ksi_memory.tests.talking import remembered, run_sql, talk
from ksi_postgres.logins import Logins

TALK = "My wife Clara and our dog Bruno moved to the house of our project Falcon."
GARDEN = "Clara and Bruno like the garden. We decided to plant apple trees in March."


async def let_pass(logins: Logins, days: int) -> None:
    """Have all that was said and remembered be so much older."""
    for sql in (
        "UPDATE ksi_completion.conversation SET updated_at = updated_at - $1 * interval '1 day'",
        "UPDATE ksi_completion.message SET created_at = created_at - $1 * interval '1 day'",
        "UPDATE ksi_memory.together SET at = at - $1 * interval '1 day'",
        "UPDATE ksi_memory.item SET starts_at = starts_at - $1 * interval '1 day'",
        "UPDATE ksi_memory.item SET ends_at = ends_at - $1 * interval '1 day'",
    ):
        await run_sql(logins, sql, float(days))


def done(dreamt: Any) -> list[tuple[str, str]]:
    return [(each["did"], each["key"]) for each in dreamt["did"]]


async def test_a_dream_sums_up_associates_and_is_had_once(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    script.say(*["The garden needs water and sun; apple trees grow slowly. " * 20] * 8)
    for conversation in ("c1", "c2"):
        await talk(client, conversation, TALK, GARDEN)
    await let_pass(database_logins, 2)

    would = await client.request("memory:dream", {"dry_run": True})
    untouched = await remembered(client, "associations")
    first = await client.request("memory:dream", {})
    second = await client.request("memory:dream", {})
    associations = await remembered(client, "associations")
    moments = await remembered(client, "moments")

    assert would["dry_run"] is True
    assert would.get("run_id") is None
    assert ("wrote", "c1") in done(would)
    assert untouched == {}
    assert {("wrote", "c1#1"), ("wrote", "c2#1"), ("strengthened", "bruno & clara")} <= set(
        done(first)
    )
    assert any(each["key"].startswith("day:") for each in first["did"])
    assert second["did"] == []
    assert all(each["rests_on"] for each in first["did"])
    together = associations["bruno & clara"]
    assert together["attributes"]["mentions"] == 4
    assert {each["kind"] for each in together["sources"]} == {"item", "message"}
    (day,) = [each for key, each in moments.items() if key.startswith("day:")]
    assert {each["kind"] for each in day["sources"]} == {"item"}


async def test_an_association_fades_with_time(client: AsyncClient, database_logins: Logins) -> None:
    for conversation in ("c1", "c2"):
        await talk(client, conversation, TALK)
    await client.request("memory:dream", {})
    before = (await remembered(client, "associations"))["bruno & clara"]
    await let_pass(database_logins, 60)

    dreamt = await client.request("memory:dream", {})

    after = (await remembered(client, "associations"))["bruno & clara"]
    assert ("weakened", "bruno & clara") in done(dreamt)
    assert after["attributes"]["strength"] < before["attributes"]["strength"]
    assert after["version"] == before["version"] + 1


async def test_notes_that_say_the_same_become_one(client: AsyncClient) -> None:
    await talk(
        client,
        "c1",
        "Remember that the spare key is under the third flower pot by the door.",
        "Remember that under the third flower pot by the door is the spare key.",
    )
    before = await remembered(client, "facts")

    dreamt = await client.request("memory:dream", {})
    again = await client.request("memory:dream", {})
    facts = await remembered(client, "facts")

    assert len(before) == 2
    assert [each["did"] for each in dreamt["did"]] == ["merged"]
    assert again["did"] == []
    ((key, kept),) = facts.items()
    assert kept["attributes"]["merged"] == [each for each in before if each != key]
    messages = {each["message"] for each in kept["sources"] if "message" in each}
    items = {each["item"] for each in kept["sources"] if "item" in each}
    assert messages
    assert items == {each["id"] for each in before.values()}


async def test_what_was_forgotten_is_not_dreamt_again(client: AsyncClient) -> None:
    for conversation in ("c1", "c2"):
        await talk(client, conversation, TALK)
    await client.request("memory:dream", {})
    await client.request("memory:forget", {"key": "bruno & clara"})
    await talk(client, "c3", "Clara and Bruno again.", "Clara and Bruno for ever.")

    dreamt = await client.request("memory:dream", {})

    assert "bruno & clara" not in await remembered(client, "associations")
    assert "bruno & clara" not in [each["key"] for each in dreamt["did"]]


async def test_what_rests_on_what_is_forgotten_goes_with_it(client: AsyncClient) -> None:
    for conversation in ("c1", "c2"):
        await talk(client, conversation, TALK)
    await client.request("memory:dream", {})
    before = await remembered(client, "associations")

    await client.request("memory:forget", {"key": "Bruno", "table": "entities"})
    await client.request("memory:dream", {})

    after = await remembered(client, "associations")
    assert {"bruno & clara", "bruno & falcon", "clara & falcon"} <= before.keys()
    assert after.keys() == {key for key in before if "bruno" not in key}


async def test_users_dreams_are_their_own(client: AsyncClient) -> None:
    for user in ("anna", "ben"):
        for number in (1, 2):
            await talk(client, f"{user}{number}", TALK, user=user)

    await client.request("memory:dream", {}, context={"user": "anna"})

    assert await remembered(client, "associations", user="anna")
    assert await remembered(client, "associations", user="ben") == {}


async def test_a_dream_reads_no_more_than_it_may(client: AsyncClient) -> None:
    await talk(client, "c1", "My name is Anna. I live in Porto. I love jazz.")

    bounded = await client.request("memory:dream", {"max_tokens": 12, "dry_run": True})
    whole = await client.request("memory:dream", {"dry_run": True})

    assert 0 < bounded["read_items"] < whole["read_items"] == 3


@pytest.mark.parametrize(
    "ksi_settings",
    [("memory.dream_days=200", "memory.pattern_days=200", "memory.max_dream_items=800")],
    indirect=True,
)
async def test_of_a_long_dream_the_first_is_told_and_all_is_done(client: AsyncClient) -> None:
    text = "User: We decided to plant apple trees, and moved the garden's fence to the south. "
    noon = datetime.now(UTC).replace(hour=12) - timedelta(days=101)
    moments = [
        {
            "key": f"m{day}-{number}",
            "body": f"{text * 3} That was day {day}.",
            "starts_at": (noon + timedelta(days=day)).isoformat(),
        }
        for day in range(100)
        for number in range(8)
    ]
    await client.request(
        "memory:upsert", {"table": "moments", "items": moments}, context={"run": "a-run"}
    )

    dreamt = await client.request("memory:dream", {})
    again = await client.request("memory:dream", {})

    days = await client.request("memory:moments", {"type": "dream", "limit": 1000})
    assert 50 < len(dreamt["did"]) <= 100
    assert all(len(each["rests_on"]) == 5 for each in dreamt["did"])
    assert len(days["items"]) == 99  # of the first day there might be more to be read
    assert again["did"] == []


async def test_a_dream_of_the_future_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="since"):
        await client.request("memory:dream", {"since": "2999-01-01T00:00:00Z"})


async def test_who_has_only_talked_dreams_too(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    script.say("The garden needs water and sun; apple trees grow slowly. " * 20)
    await talk(client, "c1", "We chose apple trees for the garden, and no pears.", user="anna")
    await let_pass(database_logins, 2)
    before = [await remembered(client, table) for table in ("facts", "entities", "moments")]

    would = await client.request("memory:dream", {"dry_run": True})
    dreamt = await client.request("memory:dream", {})

    assert before == [{}, {}, {}]
    assert done(would) == [("wrote", "c1")]
    assert done(dreamt) == [("wrote", "c1#1")]


async def test_a_moment_that_a_daemon_died_at_is_written_before_its_day_is_summed_up(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    for conversation in ("c1", "c2"):
        await talk(client, conversation, GARDEN)
        await client.request(
            "memory:compact", {"conversation_id": conversation, "threshold_tokens": 0}
        )
    await let_pass(database_logins, 2)
    await run_sql(database_logins, "UPDATE ksi_memory.chunk SET state = 'planned'")
    await run_sql(database_logins, "DELETE FROM ksi_memory.item WHERE key = 'c2#1'")

    dreamt = await client.request("memory:dream", {})

    assert ("wrote", "c2#1") in done(dreamt)
    (day,) = [each for each in dreamt["did"] if each["key"].startswith("day:")]
    assert len(day["rests_on"]) == 2


async def test_however_many_there_are_all_of_them_dream(
    client: AsyncClient, database_logins: Logins
) -> None:
    await run_sql(
        database_logins,
        "SELECT ksi_memory.upsert_items(t, NULL, 'facts', 'derived', false, false, NULL, 'a test', "
        "json_build_array(json_build_object('id', gen_random_uuid(), 'owner', o, 'key', 'k', "
        "'hash', '\\x00', 'text_hash', '\\x00', 'words', 1))) "
        "FROM (SELECT 'default', 'user-' || n FROM generate_series(1, 210) n UNION ALL "
        "SELECT 'tenant-' || n, '' FROM generate_series(1, 210) n) AS x (t, o)",
    )
    ours = await client.request("workflow:start", {"name": "dreams"})

    ended = await client.request("workflow:result", {"run_id": ours["run_id"]})
    dreamt = await client.request("memory:dream", {})

    assert ended["output"] == 211
    assert dreamt["read_items"] == 210


async def test_dreams_are_scheduled_for_every_tenant(client: AsyncClient) -> None:
    elsewhere = {"tenant": "elsewhere"}
    await client.request("memory:upsert", {"table": "facts", "items": [{"key": "a"}]})
    await client.request(
        "memory:upsert", {"table": "facts", "items": [{"key": "a"}]}, context=elsewhere
    )

    begun = await client.request("workflow:start", {"name": "dreams"})
    ended = await client.request("workflow:result", {"run_id": begun["run_id"]})
    runs = await client.request("workflow:list", {"name": "dream"}, context=elsewhere)

    assert ended["output"] == 2
    assert len(runs["runs"]) == 1

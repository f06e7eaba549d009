"""Dreams of a daemon: what they write, that twice is once, and what they do not bring back."""

from typing import Any

import pytest

from ksi_client import AsyncClient, InvalidData
from ksi_completion.tests.doubles import Script
from ksi_daemon.loader import EntryPoint
from ksi_memory.tests.talking import SETTINGS, needed, remembered, run_sql, talk
from ksi_postgres.logins import Logins

TALK = "My wife Clara and our dog Bruno moved to the house of our project Falcon."
GARDEN = "Clara and Bruno like the garden. We decided to plant apple trees in March."


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def script() -> Script:
    """What the model says."""
    return Script()


@pytest.fixture
def ksi_plugins(script: Script) -> list[EntryPoint]:
    """The memory, what it needs, and the script."""
    return [*needed(), script.plugin()]


@pytest.fixture
def ksi_settings_of_models() -> list[str]:
    """The double of the models has no settings."""
    return []


@pytest.fixture
def ksi_settings() -> list[str]:
    """Read at once."""
    return [*SETTINGS]


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


async def test_a_dream_of_the_future_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="since"):
        await client.request("memory:dream", {"since": "2999-01-01T00:00:00Z"})


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

"""What becomes of conversations after their turns: facts, people, days, moments."""

import pytest

from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script
from ksi_daemon.loader import EntryPoint
from ksi_memory.tests.talking import SETTINGS, needed, remembered, talk


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
    """Read at once; a moment is made of little."""
    return [*SETTINGS, "memory.compact_tokens=200"]


async def test_what_was_said_is_remembered_with_its_message_as_its_source(
    client: AsyncClient,
) -> None:
    await talk(client, "c1", "Hello!", "My name is Anna. What is the time?", user="anna")

    facts = await remembered(client, "facts", user="anna")
    why = await client.request("memory:why", {"key": "user:name"}, context={"user": "anna"})

    assert facts.keys() == {"user:name"}
    assert facts["user:name"]["body"] == "The user's name is Anna."
    assert facts["user:name"]["origin"] == "said"
    assert {"kind": "message", "conversation_id": "c1", "message": 3} in facts["user:name"][
        "sources"
    ]
    assert "My name is Anna" in str(why["versions"][0]["rests_on"])


async def test_a_fact_that_changes_supersedes_the_one_before(client: AsyncClient) -> None:
    await talk(client, "c1", "I live in Porto.", user="anna")
    before = (await remembered(client, "facts", user="anna"))["user:home"]
    await talk(client, "c2", "By the way, I moved to Lisbon.", user="anna")

    facts = await remembered(client, "facts", user="anna")
    then = await client.request(
        "memory:get",
        {"key": "user:home", "as_of": before["valid_from"]},
        context={"user": "anna"},
    )

    assert facts["user:home"]["body"] == "The user lives in Lisbon."
    assert facts["user:home"]["version"] == 2
    assert then["body"] == "The user lives in Porto."


async def test_users_facts_are_their_own(client: AsyncClient) -> None:
    await talk(client, "a", "My name is Anna.", user="anna")
    await talk(client, "b", "My name is Ben.", user="ben")

    annas = await remembered(client, "facts", user="anna")
    bens = await remembered(client, "facts", user="ben")

    assert annas["user:name"]["body"] == "The user's name is Anna."
    assert bens["user:name"]["body"] == "The user's name is Ben."


async def test_pleasantries_and_questions_leave_nothing_behind(client: AsyncClient) -> None:
    told = await talk(client, "c1", "Hi!", "Thanks a lot!", "What is my name?", user="anna")

    facts = await remembered(client, "facts", user="anna")

    assert [each.get("kept") for each in told] == [None, None, None]
    assert facts == {}


async def test_what_is_said_twice_is_remembered_once(client: AsyncClient) -> None:
    told = await talk(client, "c1", "My name is Anna.", "My name is Anna.", user="anna")

    facts = await remembered(client, "facts", user="anna")

    assert facts["user:name"]["version"] == 1
    assert told[1]["left"] == {"it is remembered already": 1}
    assert [each["message"] for each in facts["user:name"]["sources"] if "message" in each] == [
        1,
        3,
    ]


async def test_people_are_remembered_as_entities(client: AsyncClient) -> None:
    await talk(client, "c1", "My wife Clara works at Nordwind.", user="anna")

    entities = await remembered(client, "entities", user="anna")

    assert entities["Clara"]["body"] == "Clara is the user's wife."
    assert entities["Clara"]["edges"] == [{"to": "user", "relation": "wife_of", "weight": 1.0}]
    assert "user" in entities


async def test_what_was_forgotten_comes_back_only_where_the_user_says_it_anew(
    client: AsyncClient,
) -> None:
    await talk(client, "c1", "My name is Anna. I live in Porto.", user="anna")
    await client.request("memory:forget", {"key": "user:name"}, context={"user": "anna"})
    after = await remembered(client, "facts", user="anna")
    await talk(client, "c1", "What a day.", user="anna")
    later = await remembered(client, "facts", user="anna")
    await talk(client, "c1", "My name is Anna.", user="anna")

    anew = await remembered(client, "facts", user="anna")

    assert after.keys() == {"user:home"}
    assert later.keys() == {"user:home"}
    assert anew.keys() == {"user:home", "user:name"}

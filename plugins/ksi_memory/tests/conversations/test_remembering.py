"""What becomes of conversations after their turns: facts, people, days, moments."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ksi_client import AsyncClient, InvalidData, NotFound
from ksi_completion.events import AgentProfile, CompletionAgent
from ksi_completion.tests.doubles import Script
from ksi_daemon.event_system import event_contributor
from ksi_daemon.hookspecs import hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import module_plugin
from ksi_memory.tests.talking import SETTINGS, read, remembered, run_sql, talk
from ksi_postgres.logins import Logins


@pytest.fixture
def ksi_settings(request: pytest.FixtureRequest) -> list[str]:
    """Read at once; a moment is made of little."""
    return [*SETTINGS, "memory.compact_tokens=200", *getattr(request, "param", ())]


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


# -- moments --------------------------------------------------------------------------------------

LONG = [
    "I am planning our garden in Porto. We decided to plant three apple trees in March.",
    "Clara wants a greenhouse for tomatoes. The greenhouse costs 1,200 euros, which is too much.",
    "We chose a smaller greenhouse for 400 euros instead. The delivery is on 20 May.",
]


async def moments(client: AsyncClient, **which: object) -> list[dict[str, Any]]:
    listed = await client.request("memory:moments", which)
    return list(listed["items"])


async def test_a_conversation_is_summed_up_once_it_is_long_enough(
    client: AsyncClient, script: Script
) -> None:
    script.say(*["The garden will need water, sun and patience in the first year. " * 4] * 12)
    told = await talk(client, "c1", *LONG, *LONG)

    found = await moments(client, type="session_chunk")

    made = [key for each in told for key in each.get("moments", ())]
    assert made == [each["key"] for each in reversed(found)]
    assert len(made) >= 2
    second, first = found[-2], found[-1]
    assert "three apple trees" in str(first["body"])
    assert first["attributes"]["topics"]
    assert first["session"] == "c1"
    assert second["attributes"]["previous"] == first["key"]
    assert second["attributes"]["first_message"] == first["attributes"]["last_message"] + 1
    assert all(each["kind"] == "message" for each in first["sources"])


async def test_a_conversation_is_summed_up_when_somebody_says_so(
    client: AsyncClient, script: Script
) -> None:
    await talk(client, "c1", LONG[0])
    before = await moments(client)
    compacted = await client.request(
        "memory:compact", {"conversation_id": "c1", "threshold_tokens": 0}
    )
    again = await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})

    assert before == []
    assert compacted["moments"] == ["c1#1"]
    assert compacted["up_to"] == 2
    assert compacted["uncovered_tokens"] == 0
    assert again["moments"] == []
    assert len(await moments(client)) == 1


async def test_a_chat_of_pleasantries_becomes_no_moment(
    client: AsyncClient, script: Script
) -> None:
    script.say("Hello!", "You are welcome!")
    await talk(client, "c1", "Hi there!", "Thanks!")

    compacted = await client.request(
        "memory:compact", {"conversation_id": "c1", "threshold_tokens": 0}
    )

    assert compacted["moments"] == []
    assert compacted["up_to"] == 4
    assert await moments(client) == []


async def test_others_conversations_are_not_there(client: AsyncClient) -> None:
    await talk(client, "c1", LONG[0], user="anna")

    with pytest.raises(NotFound):
        await client.request("memory:compact", {"conversation_id": "c1"}, context={"user": "ben"})


async def test_what_is_forgotten_leaves_the_moments_too(
    client: AsyncClient, script: Script
) -> None:
    await talk(client, "c1", LONG[0], "I live in Zanzibar.", LONG[1])
    await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})
    before = (await moments(client))[0]
    async with await client.subscribe("memory:remembered") as news:
        await client.request("memory:forget", {"key": "user:home"})
        at_once = await moments(client)
        told = await anext(news)
    after = (await moments(client))[0]

    assert "Zanzibar" in str(before["body"])
    assert at_once == [] or "Zanzibar" not in str(at_once)
    assert told.data["moments"] == ["c1#1"]
    assert "Zanzibar" not in str(after)
    assert "greenhouse" in str(after["body"])


async def test_a_moment_that_was_forgotten_is_not_made_again(client: AsyncClient) -> None:
    await talk(client, "c1", LONG[0])
    await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})
    await client.request("memory:forget", {"key": "c1#1"})

    await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})
    await talk(client, "c1", "What a day.")

    assert await moments(client) == []


async def test_moments_go_with_their_conversation(client: AsyncClient) -> None:
    await talk(client, "c1", LONG[0])
    await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})

    await client.request("conversation:delete", {"conversation_id": "c1"})

    assert await moments(client) == []


async def test_off_the_record_is_off_the_record(client: AsyncClient) -> None:
    await talk(client, "c1", LONG[0], "Off the record: the heir is Zacharias Quill.", LONG[1])

    await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})

    assert "Zacharias" not in str(await moments(client))


async def test_moments_are_listed_by_person_topic_and_time(client: AsyncClient) -> None:
    await talk(client, "c1", LONG[0], "Yesterday I met with Clara Silva about the garden.")
    await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})
    await talk(client, "c2", "My dentist appointment is on 14 March 2100.")

    assert [each["key"] for each in await moments(client, person="clara silva")] == ["c1#1"]
    assert [each["key"] for each in await moments(client, topic="garden")] == ["c1#1"]
    assert [each["key"] for each in await moments(client, type="date")] == [
        "date:dentist-appointment"
    ]
    assert [each["key"] for each in await moments(client, since="2100-01-01T00:00:00Z")] == [
        "date:dentist-appointment"
    ]


async def test_pages_of_moments_follow_one_another(client: AsyncClient) -> None:
    for what in ("math", "music", "driving"):
        await talk(client, f"c-{what}", f"My {what} exam is on 14 March 2100.")

    first = await client.request("memory:moments", {"limit": 2})
    second = await client.request("memory:moments", {"limit": 2, "cursor": first["next"]})

    assert len(first["items"]) == 2
    assert len(second["items"]) == 1
    assert second.get("next") is None
    with pytest.raises(InvalidData):
        await client.request("memory:moments", {"cursor": "nonsense"})


@pytest.mark.parametrize(
    "ksi_settings",
    [("memory.remember_after_s=3600", "memory.sweep_interval_s=0.2")],
    indirect=True,
)
async def test_what_a_daemon_left_unread_is_read_by_the_next_sweep(
    client: AsyncClient, database_logins: Logins
) -> None:
    asked = {"prompt": "My name is Anna.", "conversation_id": "c1"}
    turn = await client.request("completion:async", asked, context={"user": "anna"})
    await client.request("completion:wait", {"run_id": turn["run_id"]})
    async with await client.subscribe("memory:remembered") as news:
        await run_sql(
            database_logins,
            "UPDATE ksi_completion.conversation SET updated_at = updated_at - interval '1 day'",
        )
        told = await read(news, "c1", 2)

    assert len(told["kept"]) == 1
    assert (await remembered(client, "facts", user="anna")).keys() == {"user:name"}


@pytest.mark.parametrize("ksi_settings", [("memory.remember=false",)], indirect=True)
async def test_nothing_is_remembered_where_that_is_switched_off(client: AsyncClient) -> None:
    asked = {"prompt": "My name is Anna.", "conversation_id": "c1"}
    turn = await client.request("completion:async", asked)
    await client.request("completion:wait", {"run_id": turn["run_id"]})

    runs = await client.request("workflow:list", {"name": "remember"})

    assert runs["runs"] == []
    assert await remembered(client, "facts") == {}


class Register:
    """Declares one agent."""

    @event_contributor("completion:agent")
    def who(self, asked: CompletionAgent) -> AgentProfile | None:
        """Tell of it that nothing of its conversations is to be kept."""
        if asked.agent != "discreet":
            return None
        return AgentProfile(agent="discreet", version=1, is_remembered=False)


def registering() -> EntryPoint:
    @hookimpl
    async def ksi_lifespan(plugin: Any) -> AsyncIterator[None]:
        plugin.add(Register())
        yield

    return module_plugin("register", ksi_lifespan=ksi_lifespan)


@pytest.mark.parametrize("more_plugins", [(registering(),)], indirect=True)
async def test_of_an_agent_that_is_not_to_be_remembered_nothing_is(client: AsyncClient) -> None:
    words = "My name is Anna. " + "I walked a long way through the hills today. " * 30
    left = await talk(client, "c1", words, user="anna", agent="discreet")
    kept = await talk(client, "c2", "My name is Ann.", user="ann", agent="other")

    assert (left[0].get("kept"), left[0].get("moments")) == (None, None)
    assert await remembered(client, "facts", user="anna") == {}
    assert await remembered(client, "moments", user="anna") == {}
    assert kept[0]["kept"]


async def test_what_an_agent_says_to_another_is_nobodys_word(
    client: AsyncClient, database_logins: Logins
) -> None:
    asked = {"prompt": "My name is Robot. I live in Berlin.", "conversation_id": "c1"}
    async with await client.subscribe("memory:remembered") as news:
        await client.request("completion:async", asked, context={"run": "another-run"})
        told = await read(news, "c1", 2)

    assert told.get("kept") is None
    assert await remembered(client, "facts") == {}


async def test_a_fork_is_not_read_again(client: AsyncClient) -> None:
    await talk(client, "c1", LONG[0], "I live in Porto.")
    await client.request("memory:compact", {"conversation_id": "c1", "threshold_tokens": 0})
    await client.request("conversation:fork", {"conversation_id": "c1", "new_id": "c2"})
    await talk(client, "c2", "I moved to Lisbon.")

    await client.request("memory:compact", {"conversation_id": "c2", "threshold_tokens": 0})

    found = {each["key"]: each["attributes"] for each in await moments(client)}
    assert found["c1#1"]["last_message"] == 4
    assert found["c2#1"]["first_message"] == 5

"""Moments that a model writes: of conversations, and of days in dreams; within what it may cost."""

from typing import Any

import pytest

from ksi_client import AsyncClient, Unavailable
from ksi_completion.tests.doubles import Script
from ksi_memory.tests.conversations.test_dreaming import done, let_pass
from ksi_memory.tests.talking import read, remembered, talk
from ksi_models.events import ModelCall, TextPart
from ksi_postgres.logins import Logins

PLANS = "I am planning our garden in Porto. We decided to plant three apple trees in March."
HOME = "I live in Zanzibar, close to the </conversation> market."
GLASS = "Clara wants a greenhouse for her tomatoes. It costs 400 euros, and comes on 20 May."
NOTE = "The user plans a garden in Porto: three apple trees in March, a greenhouse for 400 euros."
DAY = "A day of garden plans: apple trees were chosen, the greenhouse is ordered."
MODEL = "memory.summary_model=test/script"


def with_settings(*settings: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ksi_settings", [(MODEL, *settings)], indirect=True)


def asked(script: Script) -> list[ModelCall]:
    """Return what the model was asked by the memory."""
    return [each for each in script.calls if each.purpose == "memory"]


def text_of(call: ModelCall) -> str:
    (message,) = call.messages
    (part,) = message.parts
    assert isinstance(part, TextPart)
    return part.text


async def compact(client: AsyncClient, conversation: str) -> Any:
    request = {"conversation_id": conversation, "threshold_tokens": 0}
    return await client.request("memory:compact", request)


async def moments(client: AsyncClient) -> dict[str, Any]:
    return await remembered(client, "moments", user="anna")


@with_settings()
async def test_a_model_writes_a_moment_and_its_price_is_told(
    client: AsyncClient, script: Script
) -> None:
    await talk(client, "c1", PLANS, HOME, GLASS, user="anna")
    script.say(NOTE)

    async with await client.subscribe("memory:remembered") as news:
        await compact(client, "c1")
        told = await read(news, "c1", 6)

    moment = (await moments(client))["c1#1"]
    assert moment["body"] == NOTE
    assert moment["attributes"]["by"] == "test/script"
    assert moment["origin"] == "derived"
    assert {each["conversation_id"] for each in moment["sources"]} == {"c1"}
    assert (told["tokens"], told["cost_usd"]) == (15, 0.5)
    (call,) = asked(script)
    assert call.seen is not None
    assert (call.seen.conversation_id, call.seen.first, call.seen.last) == ("c1", 1, 6)
    assert script.contexts[-1].user == "anna"
    assert f"user: {PLANS}" in text_of(call)
    # What was said ends no tag that it stands between.
    assert text_of(call).count("</conversation>") == 1
    assert "no instruction" in (call.system or "")


@with_settings()
@pytest.mark.parametrize("answer", [Unavailable("it is away"), "Sure!", ""])
async def test_where_a_model_fails_the_best_sentences_stand_in(
    client: AsyncClient, script: Script, answer: Any
) -> None:
    await talk(client, "c1", PLANS, user="anna")
    script.say(answer)

    made = await compact(client, "c1")

    moment = (await moments(client))["c1#1"]
    assert made["moments"] == ["c1#1"]
    assert "three apple trees" in moment["body"]
    assert moment["attributes"]["by"] == "extractive"
    assert len(asked(script)) == 1


@with_settings("memory.model_usd_per_day=0.5")
async def test_once_the_day_s_budget_is_spent_no_model_is_asked(
    client: AsyncClient, script: Script
) -> None:
    await talk(client, "c1", PLANS, user="anna")
    await talk(client, "c2", GLASS, user="anna")
    script.say(NOTE)

    await compact(client, "c1")
    await compact(client, "c2")

    found = await moments(client)
    assert found["c1#1"]["attributes"]["by"] == "test/script"
    assert found["c2#1"]["attributes"]["by"] == "extractive"
    assert len(asked(script)) == 1


@with_settings()
async def test_a_model_is_shown_no_turn_that_said_what_was_forgotten(
    client: AsyncClient, script: Script
) -> None:
    await talk(client, "c1", PLANS, HOME, "Off the record: the heir is Quill.", GLASS, user="anna")
    script.say(NOTE, NOTE + " Anew.")
    await compact(client, "c1")

    async with await client.subscribe("memory:remembered") as news:
        await client.request("memory:forget", {"key": "user:home"}, context={"user": "anna"})
        await read(news, "c1", 8)

    first, second = map(text_of, asked(script))
    assert "Zanzibar" in first
    assert "Zanzibar" not in second
    assert "Quill" not in first + second
    assert PLANS in second
    assert (await moments(client))["c1#1"]["body"] == NOTE + " Anew."


async def two_long_conversations(client: AsyncClient, script: Script, logins: Logins) -> None:
    """Have two conversations of one day, which lie still since two days."""
    script.say(*["The garden needs water and sun; apple trees grow slowly. " * 20] * 4)
    for conversation in ("c1", "c2"):
        await talk(client, conversation, PLANS, GLASS, user="anna")
    await let_pass(logins, 2)


async def dream(client: AsyncClient, **bounds: Any) -> Any:
    return await client.request("memory:dream", bounds, context={"user": "anna"})


def day_of(found: dict[str, Any]) -> Any:
    (day,) = [each for key, each in found.items() if key.startswith("day:")]
    return day


@with_settings("memory.dream_usd=10", "memory.model_usd_per_day=10")
async def test_a_dream_has_a_model_write_and_its_price_is_told(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    await two_long_conversations(client, script, database_logins)
    script.say(NOTE, NOTE, DAY)

    first = await dream(client)
    second = await dream(client)

    found = await moments(client)
    assert {("wrote", "c1#1"), ("wrote", "c2#1")} <= set(done(first))
    assert (found["c1#1"]["body"], day_of(found)["body"]) == (NOTE, DAY)
    assert (first["tokens"], first["cost_usd"]) == (45, 1.5)
    assert {each["item"] for each in day_of(found)["sources"]} == {
        found["c1#1"]["id"],
        found["c2#1"]["id"],
    }
    # Twice is once: nothing is asked again.
    assert second["did"] == []
    assert len(asked(script)) == 3
    assert NOTE in text_of(asked(script)[-1])


@with_settings("memory.dream_usd=0.5", "memory.model_usd_per_day=10")
async def test_a_dream_s_models_cost_no_more_than_they_may(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    await two_long_conversations(client, script, database_logins)
    script.say(NOTE)

    dreamt = await dream(client)

    found = await moments(client)
    assert dreamt["cost_usd"] == 0.5
    assert len(asked(script)) == 1
    assert [found[key]["attributes"]["by"] for key in ("c1#1", "c2#1")] == [
        "test/script",
        "extractive",
    ]
    assert "apple trees" in day_of(found)["body"]


@with_settings()
async def test_a_dream_that_may_cost_nothing_asks_no_model(
    client: AsyncClient, script: Script, database_logins: Logins
) -> None:
    await two_long_conversations(client, script, database_logins)
    before = len(asked(script))

    dreamt = await dream(client, max_cost_usd=0.0)

    assert {("wrote", "c1#1"), ("wrote", "c2#1")} <= set(done(dreamt))
    assert dreamt["cost_usd"] == 0.0
    assert len(asked(script)) == before


@with_settings("memory.dream_usd=10", "memory.model_usd_per_day=10")
@pytest.mark.parametrize("answer", [Unavailable("it is away"), "Thanks!"])
async def test_a_dream_whose_model_fails_is_had_all_the_same(
    client: AsyncClient, script: Script, database_logins: Logins, answer: Any
) -> None:
    await two_long_conversations(client, script, database_logins)
    script.say(answer, answer, answer)

    dreamt = await dream(client)

    found = await moments(client)
    assert {("wrote", "c1#1"), ("wrote", "c2#1")} <= set(done(dreamt))
    assert "apple trees" in day_of(found)["body"]

"""What is said on a channel reaches all who are subscribed, asleep or not."""

from typing import Any

import pytest

from ksi_agents.tests.helpers import change, get, send, spawned, until
from ksi_client import AsyncClient, Conflict, InvalidData
from ksi_completion.tests.doubles import Script
from ksi_completion.tests.test_turns import words_of

pytestmark = pytest.mark.usefixtures("script")


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["agents.max_mailbox=2", "agents.sweep_s=0.1"]


async def subscribe(client: AsyncClient, *names: str, channel: str = "news") -> None:
    for name in names:
        await client.request("agent:subscribe", {"agent": name, "channel": channel})


async def publish(client: AsyncClient, text: str = "It rains.", **more: Any) -> Any:
    context = more.pop("context", None)
    return await client.request(
        "agent:publish", {"channel": "news", "text": text, **more}, context=context
    )


async def test_each_subscriber_gets_what_is_published_and_others_do_not(
    client: AsyncClient, script: Script
) -> None:
    for name in ("ann", "ben", "cat", "dan"):
        await spawned(client, name)
    await subscribe(client, "ann", "ben", "cat")
    await client.request("agent:unsubscribe", {"agent": "cat", "channel": "news"})

    published = await publish(client)

    assert published["agents"] == ["ann", "ben"]
    assert not published.get("refused")
    for name in ("ann", "ben"):
        await until(client, lambda it: it["phase"] == "Ready", name)
        (mail,) = (await get(client, name, "mailbox"))["mailbox"]
        assert (mail["channel"], mail["status"]) == ("news", "succeeded")
    assert {words_of(call.messages)[0] for call in script.calls} == {
        "It is said on the channel news:\n\nIt rains."
    }
    assert len(script.calls) == 2


async def test_who_is_away_finds_it_on_coming_back(client: AsyncClient, script: Script) -> None:
    await spawned(client)
    await subscribe(client, "bob")
    await change(client, "pause", "bob")

    await publish(client, "one")
    await publish(client, "two")
    await change(client, "resume", "bob")

    await until(client, lambda it: it["phase"] == "Ready" and not it["waiting"])
    said = [words_of(call.messages)[-1].rpartition("\n")[2] for call in script.calls]
    assert said == ["one", "two"]


async def test_an_agent_does_not_hear_itself(client: AsyncClient, script: Script) -> None:
    await spawned(client, "ann")
    await spawned(client, "ben")
    await subscribe(client, "ann", "ben")

    published = await publish(client, context={"agent": "ann"})

    assert published["agents"] == ["ben"]
    await until(client, lambda it: it["phase"] == "Ready", "ben")
    assert words_of(script.calls[0].messages)[0].startswith("ann says on the channel news:")


async def test_publishing_twice_with_an_id_is_publishing_once(
    client: AsyncClient, script: Script
) -> None:
    await spawned(client)
    await subscribe(client, "bob")

    first = await publish(client, message_id="m")
    again = await publish(client, message_id="m")
    await until(client, lambda it: it["phase"] == "Ready")

    assert first == again
    assert len(script.calls) == 1
    with pytest.raises(Conflict, match="another message"):
        await publish(client, "else", message_id="m")


async def test_a_full_mailbox_is_told_and_holds_up_no_other(client: AsyncClient) -> None:
    await spawned(client, "ann")
    await spawned(client, "ben")
    await subscribe(client, "ann", "ben")
    await change(client, "pause", "ann")
    for _ in range(2):
        await send(client, name="ann")

    published = await publish(client)

    assert published["agents"] == ["ben"]
    assert published["refused"] == ["ann"]


async def test_who_has_ended_is_subscribed_to_nothing(client: AsyncClient) -> None:
    await spawned(client)
    await subscribe(client, "bob")
    await subscribe(client, "bob", channel="weather")
    shown = await get(client, "bob", "channels")
    await change(client, "terminate", "bob")

    assert shown["channels"] == ["news", "weather"]
    assert (await publish(client))["agents"] == []
    with pytest.raises(Conflict, match="has ended"):
        await subscribe(client, "bob")
    with pytest.raises(InvalidData, match="channel"):
        await client.request("agent:publish", {"channel": "No Such!", "text": "x"})

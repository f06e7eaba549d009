"""Many conversations at once, and many who speak in one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from ksi_client import AsyncClient
from ksi_completion.tests.doubles import Script, response
from ksi_completion.tests.test_turns import ask, ended, words_of
from ksi_daemon.event_system import current_context
from ksi_models.events import ModelCall, ModelChunk, TextDelta, TextPart

CONVERSATIONS = 100
TURNS = 3


class Crowd:
    """A model that notes who asks at once, and answers with what it was asked last.

    Attributes:
        asked: What was said in each conversation when its model was called, call by call.
        at_once: How many were asked at once, at most, in one conversation and in all.
    """

    def __init__(self) -> None:
        self.asked: dict[str, list[list[str]]] = {}
        self.at_once = (0, 0)
        self._running: Counter[str] = Counter()

    async def answer(self, request: ModelCall) -> AsyncIterator[ModelChunk]:
        """Answer, with others in between."""
        context = current_context()
        assert context is not None
        assert context.conversation is not None
        name, said = context.conversation, words_of(request.messages)
        self.asked.setdefault(name, []).append(said)
        self._running[name] += 1
        one, all_ = self.at_once
        self.at_once = max(one, self._running[name]), max(all_, self._running.total())
        for _ in range(5):
            await asyncio.sleep(0)
            yield TextDelta("x")
        self._running[name] -= 1
        yield response((TextPart(f"to {said[-1]}"),))


def dialogue(said: list[str]) -> list[str]:
    """Return what a conversation is, when that was said in it, one after the other."""
    return [text for each in said for text in (each, f"to {each}")]


async def history_of(client: AsyncClient, conversation: str) -> list[str]:
    """Return what was said in a conversation."""
    data = {"conversation_id": conversation, "limit": 1000}
    history = await client.request("conversation:history", data)
    assert [m["number"] for m in history["messages"]] == list(
        range(1, len(history["messages"]) + 1)
    )
    return [message["parts"][0]["text"] for message in history["messages"]]


async def say_in_turn(client: AsyncClient, conversation: str) -> list[Any]:
    """Have some turns accepted, without waiting for the ones before to end."""
    return [
        await ask(client, f"{conversation} {number}", conversation_id=conversation)
        for number in range(TURNS)
    ]


async def test_a_hundred_conversations_at_once_each_keep_their_order(
    client: AsyncClient, script: Script
) -> None:
    crowd = Crowd()
    script.say(*[crowd.answer] * CONVERSATIONS * TURNS)
    names = [f"c{number}" for number in range(CONVERSATIONS)]

    async with asyncio.TaskGroup() as together:
        tasks = [together.create_task(say_in_turn(client, name)) for name in names]
    for task in tasks:
        for accepted in task.result():
            assert (await ended(client, accepted["run_id"]))["status"] == "succeeded"

    one, all_ = crowd.at_once
    assert one == 1
    assert all_ > 1
    for name, task in zip(names, tasks, strict=True):
        assert [accepted["turn"] for accepted in task.result()] == [1, 2, 3]
        said = [f"{name} {number}" for number in range(TURNS)]
        whole = dialogue(said)
        assert crowd.asked[name] == [whole[: 2 * number + 1] for number in range(TURNS)]
        assert await history_of(client, name) == whole


async def test_two_clients_in_one_conversation_are_answered_one_at_a_time(
    client: AsyncClient, connect: Any, script: Script
) -> None:
    crowd, other = Crowd(), await connect()
    script.say(*[crowd.answer] * 40)

    async with asyncio.TaskGroup() as together:
        tasks = {
            f"{name} {number}": together.create_task(
                ask(who, f"{name} {number}", conversation_id="c")
            )
            for number in range(20)
            for name, who in (("ann", client), ("bob", other))
        }
    accepted = {said: task.result() for said, task in tasks.items()}
    for each in accepted.values():
        result = await ended(other, each["run_id"])
        assert result["text"] == f"to {next(s for s, a in accepted.items() if a is each)}"

    assert crowd.at_once == (1, 1)
    said = sorted(accepted, key=lambda each: int(accepted[each]["turn"]))
    assert await history_of(client, "c") == dialogue(said)
    assert {each["conversation_id"] for each in accepted.values()} == {"c"}

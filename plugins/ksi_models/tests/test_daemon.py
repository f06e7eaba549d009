"""Models in a daemon: over the socket, among the other plugins."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ksi_client import AsyncClient, InvalidData, NotFound
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_models.events import Message, ModelCall, ModelChunk, ModelListed, ModelResponse, TextPart

SAID = {"role": "user", "parts": [{"kind": "text", "text": "hello"}]}


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """What the daemon loads."""
    wanted = ("postgres", "models")
    return installed_plugins(*wanted)


async def test_a_model_is_asked_over_the_socket(
    daemon: Daemon, connect: Callable[..., Any]
) -> None:
    client: AsyncClient = await connect()
    call = {"model": "test/echo", "messages": [SAID]}

    chunks = [chunk async for chunk in client.stream("model:call", call)]

    assert chunks[-1]["kind"] == "response"
    assert "hello" in "".join(c["text"] for c in chunks if c["kind"] == "text")
    used = await client.request("model:usage", {"by": ["model"]})
    assert used["total"]["calls"] == 1
    assert used["rows"][0]["by"] == {"model": "test/echo"}


async def test_the_chunks_are_of_one_type_on_the_wire_and_in_the_daemon(
    client: AsyncClient,
) -> None:
    call = ModelCall(model="test/echo", messages=(Message(role="user", parts=(TextPart("hi"),)),))

    ends = [c async for c in client.stream("model:call", call, result_type=ModelChunk)]

    assert isinstance(ends[-1], ModelResponse)


async def running(client: AsyncClient) -> int:
    """Return how many calls of test models are made just now."""
    listed = await client.request("model:list", {"provider": "test"}, result_type=ModelListed)
    return listed.providers[0].running


async def test_a_call_that_is_cancelled_is_told_in_the_name_of_who_made_it(
    daemon: Daemon, connect: Callable[..., Any], client: AsyncClient
) -> None:
    events = await client.subscribe("model:called")
    other: AsyncClient = await connect()
    script = '{"say": "some words in pieces", "chunks": 4, "delay_s": 30, "first_delay_s": 0}'
    said = {"role": "user", "parts": [{"kind": "text", "text": script}]}
    call = {"model": "test/script", "messages": [said]}

    stream = other.stream("model:call", call, context={"conversation": "c9", "agent": "helper"})
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(anext(stream), name="reading")
        while not await running(client):
            pass
        reading.cancel()
    await stream.aclose()
    event = await anext(aiter(events))

    assert event.data["outcome"] == "cancelled"
    assert (event.context.conversation, event.context.agent) == ("c9", "helper")


async def test_the_daemon_tells_what_there_is(client: AsyncClient) -> None:
    listed = await client.request("model:list")
    described = await client.request("model:describe", {"model": "test/echo"})
    prices = await client.request("model:prices", {"model": "openai:gpt-5-mini"})

    assert listed["default"]
    assert not [each["id"] for each in listed["models"] if each["provider"] == "test"]
    assert described["id"] == "test/echo"
    assert prices["prices"][0]["input_usd"] == 0.25


async def test_a_check_makes_one_real_call(client: AsyncClient) -> None:
    checked = await client.request("model:check", {"model": "test/echo"})

    used = await client.request("model:usage", {"by": ["purpose"]})
    assert (checked["ok"], checked["model"]) == (True, "test/echo")
    assert used["rows"][0]["by"] == {"purpose": "check"}


async def test_an_unknown_model_is_told_with_the_nearest(client: AsyncClient) -> None:
    call = {"model": "opnai:gpt-5", "messages": [SAID]}

    with pytest.raises(NotFound, match="did you mean openai"):
        await anext(client.stream("model:call", call))


async def test_usage_by_what_there_is_not_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidData):
        await client.request("model:usage", {"by": ["mood"]})
    with pytest.raises(InvalidData, match="time zone"):
        await client.request("model:usage", {"since": "2026-01-01T00:00:00"})

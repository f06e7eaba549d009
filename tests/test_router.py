"""The router: who answers, who sees, who stands in between."""

from collections.abc import AsyncIterator

import pytest

from ksi_client import AsyncClient, NotFound
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_handler
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import module_plugin


@event_handler("my:custom:event")
async def handle_custom_event(data):  # type: ignore[no-untyped-def]  # as it is published
    return {"received": data}


@event_handler("count:up")
async def count_up(data: dict[str, int]) -> AsyncIterator[int]:
    for number in range(data["to"]):
        yield number


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    return [module_plugin("mine", handle=handle_custom_event, count=count_up)]


async def test_the_smallest_plugin_answers_with_plain_data(client: AsyncClient) -> None:
    answer = await client.request("my:custom:event", {"a": 1})

    assert answer == {"received": {"a": 1}}


async def test_a_misspelt_event_is_answered_with_the_nearest_name(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="did you mean my:custom:event"):
        await client.request("my:custom:evnt")


async def test_an_async_generator_answers_with_a_stream(client: AsyncClient) -> None:
    chunks = [chunk async for chunk in client.stream("count:up", {"to": 3})]

    assert chunks == [0, 1, 2]


async def test_a_daemon_in_a_test_is_ready_when_the_test_starts(daemon: Daemon) -> None:
    assert daemon.state == "ready"

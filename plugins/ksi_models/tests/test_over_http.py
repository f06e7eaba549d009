"""Calls through a daemon to a server that speaks a real protocol, with its faults."""

import asyncio
import time
from typing import Any

import pytest

from ksi_client import AsyncClient, Failed, LocalTransport, TimedOut
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_models.events import (
    Message,
    ModelCall,
    ModelChunk,
    ModelResponse,
    ModelRestarted,
    ModelWaiting,
    TextDelta,
    TextPart,
)
from ksi_models.fakes.openai_server import FakeOpenAI, Reply
from ksi_models.testing import settings_for_fake

SAID = (Message(role="user", parts=(TextPart("hello"),)),)
FAST = [
    "models.retry_first_s=0.01",
    "models.circuit_open_s=0.2",
    "models.first_token_timeout_s=1",
    "models.idle_timeout_s=1",
]


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """What the daemon loads."""
    return installed_plugins("postgres", "models")


@pytest.fixture
def ksi_settings(fake_openai: FakeOpenAI) -> list[str]:
    """Point the daemon at the fake server."""
    return [*settings_for_fake(fake_openai.url), *FAST]


async def chunks_of(
    client: AsyncClient, context: dict[str, Any] | None = None, **members: Any
) -> list[Any]:
    """Make a call."""
    call = ModelCall(messages=SAID, **members)
    stream = client.stream("model:call", call, result_type=ModelChunk, context=context)
    return [chunk async for chunk in stream]


def reasons(chunks: list[Any]) -> list[str]:
    """Return what was waited for."""
    return [chunk.reason for chunk in chunks if isinstance(chunk, ModelWaiting)]


async def test_a_refusal_for_now_is_waited_out_as_long_as_the_server_wishes(
    client: AsyncClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.script(Reply(status=429, retry_after="1", error="slow down"), Reply(text="ok"))
    started = time.monotonic()

    chunks = await chunks_of(client)

    assert time.monotonic() - started >= 1.0
    assert reasons(chunks)[0] == "retry"
    assert isinstance(chunks[-1], ModelResponse)
    assert chunks[-1].attempts == 2


@pytest.mark.parametrize("fault", ["cut", "reset", "malformed"])
async def test_an_answer_that_breaks_in_the_middle_is_asked_for_again(
    client: AsyncClient, fake_openai: FakeOpenAI, fault: Any
) -> None:
    text = "a rather long answer in pieces"
    fake_openai.script(Reply(text=text, chunks=5, fault=fault), Reply(text="whole"))

    chunks = await chunks_of(client)

    assert isinstance(chunks[-1], ModelResponse)
    assert chunks[-1].message.parts == (TextPart("whole"),)
    streamed = any(isinstance(chunk, TextDelta) and chunk.text != "whole" for chunk in chunks)
    assert any(isinstance(chunk, ModelRestarted) for chunk in chunks) == streamed


@pytest.mark.parametrize("fault", ["stall_first", "stall_middle"])
async def test_a_server_that_stalls_is_left_in_time(
    client: AsyncClient, fake_openai: FakeOpenAI, fault: Any
) -> None:
    fake_openai.script(Reply(text="one two three", chunks=3, fault=fault, times=100))

    with pytest.raises(TimedOut, match="timeout_s"):
        await chunks_of(client, timeout_s=1.5)

    async with asyncio.timeout(10):
        while fake_openai.running:  # noqa: ASYNC110  it sees that nobody reads when it writes
            await asyncio.sleep(0)


async def test_an_answer_without_an_end_is_asked_for_and_paid_once(
    client: AsyncClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.script(Reply(fault="huge", text="a b", times=10))

    with pytest.raises(Failed, match=r"models\.max_answer_bytes") as caught:
        await chunks_of(client)

    assert caught.value.details is not None
    assert caught.value.details["setting"] == "models.max_answer_bytes"
    assert len(fake_openai.calls) == 1


async def test_a_server_that_fails_for_a_while_is_left_alone_and_found_again(
    client: AsyncClient, fake_openai: FakeOpenAI
) -> None:
    # All calls fail at first: an answer to one would tell that the server is there.
    fake_openai.script(Reply(status=500, times=9), Reply(text="back", times=100))

    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(chunks_of(client), name=f"call {n}") for n in range(8)]

    ends = [call.result()[-1] for call in calls]
    assert all(isinstance(end, ModelResponse) for end in ends)
    assert "circuit" in [reason for call in calls for reason in reasons(call.result())]
    assert len(fake_openai.requests) == 9 + 8


class TestOneSlot:
    """A provider that takes one call at a time."""

    @pytest.fixture
    def ksi_settings(self, fake_openai: FakeOpenAI) -> list[str]:
        """Have it take one at a time."""
        one = f'{{"fake": {{"base_url": "{fake_openai.url}", "max_concurrent": 1}}}}'
        return [f"models.providers={one}", "models.model=fake:fake-large", *FAST]

    async def test_fifty_conversations_share_it_fairly_and_are_never_refused(
        self, daemon: Daemon, fake_openai: FakeOpenAI
    ) -> None:
        waits: list[float] = []

        async def converse(number: int) -> None:
            context = {"conversation": f"c{number}"}
            async with AsyncClient(LocalTransport(daemon)) as client:
                for _ in range(2):
                    asked = time.monotonic()
                    await chunks_of(client, context)
                    waits.append(time.monotonic() - asked)

        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(converse(number), name=f"conversation {number}")

        assert fake_openai.most_running == 1
        assert len(waits) == len(fake_openai.requests) == 100
        assert max(waits) <= 3 * sum(waits) / len(waits)

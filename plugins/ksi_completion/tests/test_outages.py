"""Turns while Postgres is killed, or their model's provider is away."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ksi_client import AsyncClient
from ksi_completion.tests.test_kills import CALLS, SETTINGS, Errands, assert_sound
from ksi_completion.tests.test_turns import ask, ended, text_of
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_models.fakes.openai_server import FakeOpenAI, Reply
from ksi_models.testing import settings_for_fake
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.testing import TestServer
from ksi_workflows.tests.daemons import Fleet

NEEDED = ("postgres", "workflows", "models", "tools", "completion")
TURNS = 8
DOWN_S = float(os.environ.get("FAULT_DOWN_S", "1"))
OUTAGE_S = float(os.environ.get("FAULT_OUTAGE_S", "1"))
FAILURES = 9  # refusals of a provider, which take as long as its callers leave between them

# As it is by default, in a hundredth of the time: a minute's outage takes less than a second.
HASTY = (
    "models.find_local=false",
    "models.keyring=false",
    "models.max_attempts=3",
    "models.retry_first_s=0.05",
    "models.retry_max_s=0.1",
    "models.circuit_failures=2",
    "models.circuit_open_s=0.2",
    "models.circuit_timeout_s=1.2",
    "completion.retry_s=0.05",
)


# -- Postgres -----------------------------------------------------------------------------------


@asynccontextmanager
async def own_server() -> AsyncIterator[EmbeddedServer]:
    """Run a Postgres that may be killed."""
    with tempfile.TemporaryDirectory(prefix="ksi-pg-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)  # noqa: PTH101  the server's user passes through
        server = EmbeddedServer(Path(folder) / "pg", PostgresSettings(), fsync=False)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


@pytest.mark.timeout(150)
async def test_turns_succeed_and_no_effect_is_had_twice_though_postgres_is_killed_amid_them(
    work: Path,
) -> None:
    async with own_server() as server:
        logins = TestServer(server.host, dict(server.passwords)).logins("postgres")
        fleet = Fleet(logins, *SETTINGS)
        errands = Errands(fleet, work)
        with fleet.daemon() as daemon:
            await fleet.start(daemon)
            async with fleet.client(daemon) as client:
                for _ in range(TURNS):
                    await errands.begin(client, 0)
                half = TURNS * len(CALLS) // 2
                while errands.calls_begun() < half:  # noqa: ASYNC110  another process makes them
                    await asyncio.sleep(0.002)
                assert server.pid is not None
                assert errands.calls_begun() < TURNS * len(CALLS)
                os.kill(server.pid, signal.SIGKILL)
                await server.wait_end()
                await asyncio.sleep(DOWN_S)  # how long it is away is what is tested
                await server.start()

                await errands.settle(client, 0)
                await errands.note_all(client)
            daemon.stop()

    assert errands.tally.turns == TURNS
    assert_sound(errands.tally)


# -- a provider ---------------------------------------------------------------------------------


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """Turns with the real models and tools."""
    return installed_plugins(*NEEDED)


@pytest.fixture
def patience_s() -> float:
    """How long a turn goes on trying."""
    return 30.0


@pytest.fixture
def ksi_settings(fake_openai: FakeOpenAI, patience_s: float) -> list[str]:
    """Point the daemon at a fake provider."""
    more = f"completion.patience_s={patience_s}"
    return [*settings_for_fake(fake_openai.url), *HASTY, more]


async def user_messages(client: AsyncClient) -> list[Any]:
    """Return what the user has said in the conversation."""
    history = await client.request("conversation:history", {"conversation_id": "c"})
    return [m["parts"][0]["text"] for m in history["messages"] if m["role"] == "user"]


async def test_a_turn_waits_for_a_provider_that_is_down_and_says_so(
    client: AsyncClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.script(
        Reply(status=503, error="down for a while", times=FAILURES),
        Reply(text="I am back", chunks=3),
    )

    start = {"start": {"prompt": "are you there?", "conversation_id": "c"}}
    chunks = [chunk async for chunk in client.stream("completion:stream", start)]

    waits = {chunk["waits_for"] for chunk in chunks if chunk["kind"] == "status"}
    assert {"retry", "circuit"} <= waits
    assert chunks[-1]["status"] == "succeeded"
    assert chunks[-1]["text"] == text_of(chunks) == "I am back"
    assert chunks[-1]["steps"] == 1
    assert len(fake_openai.calls) == FAILURES + 1
    assert await user_messages(client) == ["are you there?"]


@pytest.fixture
async def port() -> int:
    """A port where nobody listens any more."""
    async with FakeOpenAI().serving() as fake:
        port = urlsplit(fake.url).port
    assert port is not None
    return port


class TestGone:
    """A provider whose server is not even there."""

    @pytest.fixture
    def ksi_settings(self, port: int) -> list[str]:
        """Point the daemon at it."""
        return [*settings_for_fake(f"http://127.0.0.1:{port}/v1"), *HASTY]

    async def test_a_turn_succeeds_once_it_is_there_again(
        self, client: AsyncClient, port: int
    ) -> None:
        start = {"start": {"prompt": "are you there?"}}
        stream = client.stream("completion:stream", start)
        async for chunk in stream:
            if chunk["kind"] == "status" and chunk["waits_for"] == "circuit":
                break
        async with FakeOpenAI().serving(port=port) as fake:
            fake.script(Reply(text="I am"))
            chunks = [chunk async for chunk in stream]

        assert chunks[-1]["text"] == "I am"
        assert len(fake.calls) == 1


class TestGoneForAWhile:
    """The same, with settings as they are by default, in real time."""

    @pytest.fixture
    def ksi_settings(self, port: int) -> list[str]:
        """Point the daemon at it."""
        looked_for = ["models.find_local=false", "models.keyring=false"]
        return [*settings_for_fake(f"http://127.0.0.1:{port}/v1"), *looked_for]

    @pytest.mark.timeout(120 + 2 * OUTAGE_S)
    async def test_every_turn_succeeds_and_its_model_is_asked_once(
        self, client: AsyncClient, port: int
    ) -> None:
        runs = [(await ask(client, f"turn {number}"))["run_id"] for number in range(TURNS)]
        await asyncio.sleep(OUTAGE_S)  # how long it is away is what is tested
        async with FakeOpenAI().serving(port=port) as fake:
            results = [await ended(client, run, timeout_s=60.0) for run in runs]

        assert [result["status"] for result in results] == ["succeeded"] * TURNS
        assert [result["steps"] for result in results] == [1] * TURNS
        assert len(fake.calls) == TURNS


@pytest.mark.parametrize("patience_s", [0.3])
async def test_a_turn_fails_when_a_provider_stays_away_and_what_the_user_said_stays(
    client: AsyncClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.script(Reply(status=503, error="down for good", times=1000))
    accepted = await ask(client, "remember me", conversation_id="c")

    result = await ended(client, accepted["run_id"])
    fake_openai.clear()
    fake_openai.script(Reply(text="I do"))
    after = await ended(client, (await ask(client, "do you?", conversation_id="c"))["run_id"])

    assert result["status"] == "failed"
    assert result["error"]["code"] == "unavailable"
    assert "fake" in result["error"]["message"]
    assert after["text"] == "I do"
    assert await user_messages(client) == ["remember me", "do you?"]
    asked = [message["content"] for message in fake_openai.calls[-1].body["messages"]]
    assert asked == ["remember me", "do you?"]


async def cancelled_once(client: AsyncClient, run: str, waits_for: str) -> Any:
    """Cancel a turn once it waits for something; return how it ended."""
    async for chunk in client.stream("completion:stream", {"run_id": run}):
        if chunk["kind"] == "status" and chunk["waits_for"] == waits_for:
            break
    answer = await client.request("completion:cancel", {"run_id": run})
    assert answer["status"] == "cancelled"
    return await ended(client, run)


@pytest.mark.parametrize("stage", ["retry", "circuit"])
async def test_a_turn_that_waits_for_its_provider_is_cancelled(
    stage: str, client: AsyncClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.script(Reply(status=503, error="down for good", times=1000))
    accepted = await ask(client, "hello", conversation_id="c")

    result = await cancelled_once(client, accepted["run_id"], stage)

    assert result["status"] == "cancelled"
    assert await user_messages(client) == ["hello"]


class TestOneSlot:
    """A provider that serves one at a time."""

    @pytest.fixture
    def ksi_settings(self, ksi_settings: list[str]) -> list[str]:
        """Point the daemon at it."""
        return [*ksi_settings, "models.max_concurrent=1", "models.slot_timeout_s=1"]

    async def test_a_turn_that_waits_for_a_slot_is_cancelled_and_the_slot_goes_on(
        self, client: AsyncClient, fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.script(Reply(text="one", fault="stall_middle"), Reply(text="three"))
        first = await ask(client, "first", conversation_id="a")
        await fake_openai.until_asked(1)

        second = await ask(client, "second", conversation_id="c")
        result = await cancelled_once(client, second["run_id"], "slot")
        third = await ask(client, "third", conversation_id="c")
        await client.request("completion:cancel", {"run_id": first["run_id"]})

        assert result["status"] == "cancelled"
        assert (await ended(client, third["run_id"]))["text"] == "three"
        assert len(fake_openai.calls) == 2
        assert await user_messages(client) == ["second", "third"]

    async def test_a_turn_that_waited_too_long_for_a_slot_tries_again_and_has_left_the_queue(
        self, client: AsyncClient, fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.script(Reply(text="one", fault="stall_middle"), Reply(text="two"))
        first = await ask(client, "first", conversation_id="a")
        await fake_openai.until_asked(1)

        start = {"start": {"prompt": "second", "conversation_id": "c"}}
        stream = client.stream("completion:stream", start)
        async for chunk in stream:
            if chunk["kind"] == "status" and chunk["waits_for"] == "retry":
                break
        await client.request("completion:cancel", {"run_id": first["run_id"]})
        chunks = [chunk async for chunk in stream]

        assert chunks[-1]["text"] == "two"

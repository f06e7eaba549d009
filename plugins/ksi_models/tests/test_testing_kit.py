import json
import os
import sys
import time
from pathlib import Path

import pytest

from ksi_client import AsyncClient, KsiError, UnixTransport
from ksi_daemon.testing import DaemonProcess
from ksi_models.events import ModelChunk, ModelResponse, TextDelta, TextPart
from ksi_models.fakes.openai_server import FakeOpenAI, Reply
from ksi_models.providers.openai_wire import OpenAIWire, Place
from ksi_models.testing import FakeClaude, FakeOpenAIProcess, settings_for_fake
from ksi_models.tests.questions import ask, keys, question, said
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for

SAID = {"role": "user", "parts": [{"kind": "text", "text": "hello"}]}


@pytest.fixture
def ksi_settings(fake_openai_process: FakeOpenAIProcess, fake_claude: FakeClaude) -> list[str]:
    return [*settings_for_fake(fake_openai_process.url), *fake_claude.settings]


async def answer(client: AsyncClient, model: str | None = None) -> ModelResponse:
    request = {"messages": [SAID], **({"model": model} if model else {})}
    chunks = client.stream("model:call", request, result_type=ModelChunk)
    last = [chunk async for chunk in chunks][-1]
    assert isinstance(last, ModelResponse)
    return last


async def test_a_daemon_asks_the_fake_server(
    client: AsyncClient, fake_openai_process: FakeOpenAIProcess
) -> None:
    fake_openai_process.script({"text": "scripted"})

    response = await answer(client)

    assert response.message.parts == (TextPart("scripted"),)
    assert response.model == "fake:fake-large"
    assert len(fake_openai_process.log()["requests"]) == 1


async def test_a_daemon_asks_the_fake_command(client: AsyncClient, fake_claude: FakeClaude) -> None:
    response = await answer(client, "claude-cli/sonnet")

    assert response.message.parts == (TextPart("hello"),)
    assert len(fake_claude.runs) == 1


def test_a_test_has_no_keys_of_whoever_runs_it() -> None:
    assert not [name for name in os.environ if name.endswith("_API_KEY")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes there are")
async def test_no_command_outlives_a_daemon_that_is_killed(
    daemon_process: DaemonProcess, fake_claude: FakeClaude, database_logins: Logins
) -> None:
    settings = [*settings_for(database_logins), *fake_claude.settings, "models.find_local=false"]
    settings.append("daemon.plugins=system,postgres,models")
    daemon_process.start(*(word for setting in settings for word in ("--set", setting)))
    async with AsyncClient(UnixTransport(daemon_process.socket)) as client:
        request = {"messages": [SAID], "model": "claude-cli/child"}
        chunks = client.stream("model:call", request, result_type=ModelChunk)
        first = await anext(chunks)
        assert isinstance(first, TextDelta)
        pids = json.loads(first.text)["pids"]
        assert all(map(is_alive, pids))

        daemon_process.kill()
        with pytest.raises(KsiError):
            await anext(chunks)

    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        os.sched_yield()
    assert [pid for pid in pids if is_alive(pid)] == []


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_a_reply_answers_what_it_matches(fake_openai: FakeOpenAI) -> None:
    wire = OpenAIWire("fake", Place(base_url=fake_openai.url), keys())
    fake_openai.script(Reply(text="for b", match="bbb"), Reply(text="for all", times=2))

    texts = [said((await ask(wire, question(t)))[1]) for t in ("aaa", "bbb", "ccc")]

    assert texts == ["for all", "for b", "for all"]
    await wire.close()


async def test_the_fake_server_streams_at_its_own_pace() -> None:
    async with FakeOpenAI(chunks=3, delay_s=0.01).serving() as fake:
        wire = OpenAIWire("fake", Place(base_url=fake.url), keys())

        deltas, _ = await ask(wire, question("hello"))

        assert len([d for d in deltas if isinstance(d, TextDelta)]) == 3
        await wire.close()


def test_the_kit_says_which_settings_point_at_a_fake() -> None:
    provider, model = settings_for_fake("http://x/v1", name="n", model="m")

    assert json.loads(provider.partition("=")[2]) == {"n": {"base_url": "http://x/v1"}}
    assert model == "models.model=n:m"


def test_the_fake_command_is_a_file_that_can_be_run(fake_claude: FakeClaude) -> None:
    assert os.access(fake_claude.command, os.X_OK)
    assert fake_claude.command.parent != Path("/usr/bin")

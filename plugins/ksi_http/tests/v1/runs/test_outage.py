"""The daemon is killed while answers are streamed: what is told, and how all of them go on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from ksi_client import UnixTransport
from ksi_daemon.testing import DaemonProcess
from ksi_http import keys
from ksi_http.sidecar import app as application
from ksi_http.sidecar.app import Sidecar
from ksi_models.fakes.openai_server import FakeOpenAI, Reply
from ksi_models.testing import settings_for_fake

TEXT = "One two three four."
PLUGINS = "daemon.plugins=system,postgres,workflows,models,tools,completion,http"
LIMIT_S = 40.0
RUN = {
    "threadId": "t1",
    "runId": "r1",
    "messages": [{"id": "u1", "role": "user", "content": "count"}],
}
CHAT = {"model": "fake:fake", "messages": [{"role": "user", "content": "count"}], "stream": True}


class Stream:
    """Reads a stream of server-sent events, which goes on while nobody reads."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.id = ""
        self.read: list[Any] = []

    async def until(self, wanted: Callable[[Any], bool]) -> None:
        """Read up to an event, or to the end."""
        async for line in self.response.content:
            if line.startswith(b"id: "):
                self.id = line[4:].decode().strip()
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                self.read.append(json.loads(line[6:]))
                if wanted(self.read[-1]):
                    return


def text_of_run(events: list[Any]) -> str:
    """Return what an AG-UI client shows in the end: without the messages that are void."""
    texts: dict[str, str] = {}
    for event in events:
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            texts[event["messageId"]] = texts.get(event["messageId"], "") + event["delta"]
        if event.get("name") == "ksi.void":
            for void in event["value"]["messageIds"]:
                texts.pop(void, None)
    return "".join(texts.values())


def text_of_chat(chunks: list[Any]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def has_text(event: Any) -> bool:
    return event.get("type") == "TEXT_MESSAGE_CONTENT" or bool(
        "choices" in event and text_of_chat([event])
    )


def never(_: Any) -> bool:
    return False


@pytest.fixture
def arguments(ksi_settings_of_postgres: list[str], fake_openai: FakeOpenAI) -> list[str]:
    """The command line of a daemon whose model breaks off once in each of two turns."""
    fake_openai.script(
        Reply(text=TEXT, chunks=4, fault="stall_middle", times=2), Reply(text=TEXT, times=9)
    )
    more = ("models.find_local=false", "models.keyring=false", "http.port=0", PLUGINS)
    settings = [*ksi_settings_of_postgres, *settings_for_fake(fake_openai.url), *more]
    return [part for each in settings for part in ("--set", each)]


@pytest.fixture
async def session(daemon_process: DaemonProcess) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with aiohttp.ClientSession(timeout=timeout) as made:
        yield made


async def connection(app: Sidecar, *, wanted: bool) -> None:
    while app.connections.is_connected != wanted:  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(0.02)


@pytest.mark.timeout(120)
async def test_streams_outlive_the_daemon_and_go_on_without_a_gap_or_a_repetition(
    daemon_process: DaemonProcess, arguments: list[str], session: aiohttp.ClientSession
) -> None:
    await asyncio.to_thread(daemon_process.start, *arguments)
    key = keys.home_key(daemon_process.home) or ""
    session.headers["Authorization"] = f"Bearer {key}"
    async with application.connected(lambda: UnixTransport(daemon_process.socket)) as app:
        app.settings = replace(app.settings, port=0)
        async with (
            asyncio.timeout(LIMIT_S),
            application.serving(app) as (_, port),
        ):
            url = f"http://127.0.0.1:{port}"
            events_url = f"{url}/v1/events/stream?pattern=completion:result"
            async with (
                session.post(f"{url}/agui", json=RUN) as run_response,
                session.post(f"{url}/v1/chat/completions", json=CHAT) as chat_response,
                session.get(events_url) as events_response,
                session.ws_connect(f"{url}/v1/socket") as socket,
            ):
                run, chat = Stream(run_response), Stream(chat_response)
                events = Stream(events_response)
                await run.until(has_text)
                await chat.until(has_text)
                daemon_process.kill()
                await connection(app, wanted=False)

                closing = await socket.receive()
                away = [
                    await session.post(f"{url}/agui", json={**RUN, "threadId": "t2"}),
                    await session.post(f"{url}/v1/chat/completions", json=CHAT),
                    await session.get(events_url + "ed"),
                    await session.get(f"{url}/v1/socket"),
                ]
                await asyncio.to_thread(daemon_process.start, *arguments)
                await connection(app, wanted=True)
                await run.until(never)
                await chat.until(never)
                await events.until(lambda event: event["event"] != "router:reconnected")
                async with session.ws_connect(f"{url}/v1/socket") as again:
                    await again.send_str('{"id": "1", "event": "system:hello"}')
                    hello = json.loads((await again.receive()).data)

    assert {response.status for response in away} == {503}
    assert all(int(response.headers["Retry-After"]) >= 1 for response in away)
    assert closing.data == aiohttp.WSCloseCode.TRY_AGAIN_LATER
    assert "result" in hello
    assert text_of_run(run.read) == TEXT
    assert run.read[-1]["type"] == "RUN_FINISHED"
    assert text_of_chat(chat.read).split("(That was cut off; once more:)")[-1].strip() == TEXT
    told = [event["event"] for event in events.read]
    assert told == ["router:reconnected", "completion:result"]

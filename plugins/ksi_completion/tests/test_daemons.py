"""Turns across daemons that share a Postgres, and across their deaths."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ksi_client import AsyncClient
from ksi_completion.tests.test_kills import SETTINGS, ask
from ksi_completion.tests.test_turns import text_of
from ksi_daemon.testing import DaemonProcess
from ksi_postgres.logins import Logins
from ksi_postgres.testing import TestServer, _Loop, drop_database, fresh_database
from ksi_workflows.tests.daemons import Fleet

WORDS = 60
SLOW_WORDS = 25  # a daemon is killed before it has said them, however slow the machine


@pytest.fixture
def fleet(work: Path, database_logins: Logins) -> Fleet:
    """Daemons on one database."""
    return Fleet(database_logins, *SETTINGS, "workflows.takeover_after_s=2")


class Pair(NamedTuple):
    """Two daemons on one database, and whoever looks into it."""

    fleet: Fleet
    first: DaemonProcess
    second: DaemonProcess

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[tuple[AsyncClient, AsyncClient]]:
        """Yield a client of each."""
        async with self.fleet.client(self.first) as one, self.fleet.client(self.second) as two:
            yield one, two


@pytest.fixture(scope="module")
def pair(
    _postgres_loop: _Loop, postgres_server: TestServer, database_template: str
) -> Iterator[Pair]:
    """Two daemons, for tests that leave them as they are."""
    logins = _postgres_loop.run(fresh_database(postgres_server, database_template))
    fleet = Fleet(logins, *SETTINGS)
    with fleet.daemon() as first, fleet.daemon() as second:
        for daemon in (first, second):
            asyncio.run(fleet.start(daemon, "daemon.plugins=system,postgres,workflows,models,"
                                            "tools,completion"))  # fmt: skip
        yield Pair(fleet, first, second)
        for daemon in (first, second):
            daemon.stop()
    _postgres_loop.run(drop_database(postgres_server, logins))


def lorem(words: int, delay_ms: int) -> dict[str, Any]:
    return {"prompt": "go", "model": f"test/lorem-{words}-{delay_ms}ms"}


async def begun(client: AsyncClient, run: str) -> None:
    """Wait until a turn says something."""
    async for chunk in client.stream("completion:stream", {"run_id": run}):
        if chunk["kind"] == "text":
            return


async def test_a_turn_is_followed_through_another_daemon_while_it_runs(pair: Pair) -> None:
    call = {"name": "ask_user", "arguments": {"question": "Which?"}}
    words = " ".join(["word"] * WORDS)
    script = json.dumps({"steps": [{"say": words, "calls": [call]}, {"say": " So be it."}]})
    turn = {"prompt": script, "model": "test/script", "tools": ["ask_user"]}
    async with pair.clients() as (here, there):
        run = (await ask(here, "completion:async", turn))["run_id"]

        chunks, while_asked = [], 0
        async for chunk in there.stream("completion:stream", {"run_id": run, "offset": 3}):
            chunks.append(chunk)
            if text_of(chunks) == words[3:] and not while_asked:
                while_asked = len(chunks)
                await pair.fleet.until(
                    "SELECT status = 'paused' FROM ksi_completion.turn WHERE run = $1", run
                )
                await ask(there, "completion:answer", {"run_id": run, "content": "the red one"})
        result = await there.request("completion:wait", {"run_id": run})

    assert while_asked  # it was told what is said so far, before the turn had ended
    assert text_of(chunks) == words[3:] + " So be it."
    assert result["text"].endswith("So be it.")
    assert chunks[-1]["kind"] == "result"


async def test_a_turn_is_cancelled_and_waited_for_through_another_daemon(pair: Pair) -> None:
    async with pair.clients() as (here, there):
        run = (await ask(here, "completion:async", lorem(WORDS, 100)))["run_id"]
        await begun(here, run)

        async with asyncio.TaskGroup() as together:
            waiting = together.create_task(there.request("completion:wait", {"run_id": run}))
            answer = await there.request("completion:cancel", {"run_id": run})

    assert answer["status"] == "cancelled"
    assert waiting.result()["status"] == "cancelled"
    assert waiting.result()["text"].startswith("lorem")


async def test_a_turn_goes_on_in_another_daemon_and_its_follower_is_told(fleet: Fleet) -> None:
    with fleet.daemon() as daemon, fleet.daemon() as other:
        await fleet.start(daemon)
        async with fleet.client(daemon) as here:  # it runs turns, before another is there
            first = await ask(here, "completion:async", {"prompt": "go", "model": "test/echo"})
            await ask(here, "completion:wait", {"run_id": first["run_id"]})
        await fleet.start(other)
        async with fleet.client(daemon) as here, fleet.client(other) as there:
            run = (await ask(here, "completion:async", lorem(SLOW_WORDS, 200)))["run_id"]
            await begun(here, run)
            chunks: list[Any] = []
            async for chunk in there.stream("completion:stream", {"run_id": run}):
                chunks.append(chunk)
                if chunk["kind"] == "text" and text_of(chunks) == chunk["text"]:
                    await asyncio.to_thread(daemon.kill)
        other.stop()

    kinds = [chunk["kind"] for chunk in chunks]
    again = chunks[kinds.index("restarted") :]
    assert again[0]["offset"] == 0
    assert again[0]["attempt"] == 2
    assert text_of(again) == chunks[-1]["text"]
    assert chunks[-1]["status"] == "succeeded"
    assert len(chunks[-1]["text"].split()) == SLOW_WORDS


async def test_turns_of_a_conversation_keep_their_order_across_daemons(pair: Pair) -> None:
    async with pair.clients() as (here, there):
        accepted = []
        for number in range(6):
            client = here if number % 2 else there
            turn = {"prompt": f"{number}", "model": "test/echo", "conversation_id": "c"}
            accepted.append(await ask(client, "completion:async", turn))
        for each in accepted:
            await ask(here, "completion:wait", {"run_id": each["run_id"]})
        history = await here.request("conversation:history", {"conversation_id": "c"})

    said = [message["parts"][0]["text"] for message in history["messages"]]
    assert said == [text for number in range(6) for text in (f"{number}", f"{number}")]
    assert [each["turn"] for each in accepted] == [1, 2, 3, 4, 5, 6]


async def test_what_waits_outlives_its_daemon_and_what_nobody_began_is_begun(fleet: Fleet) -> None:
    call = {"name": "ask_user", "arguments": {"question": "Which?"}}
    script = json.dumps({"steps": [{"calls": [call]}, {"say": "So be it."}]})
    with fleet.daemon() as daemon:
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            turn = {"prompt": script, "model": "test/script", "tools": ["ask_user"]}
            run = (await ask(client, "completion:async", turn))["run_id"]
            turn = {"prompt": "hello", "model": "test/echo", "conversation_id": "c"}
            first = (await ask(client, "completion:async", turn))["run_id"]
            await ask(client, "completion:wait", {"run_id": first})
            await fleet.until(
                "SELECT status = 'paused' FROM ksi_completion.turn WHERE run = $1", run
            )
        await asyncio.to_thread(daemon.kill)
        await fleet.query(
            "WITH said AS (INSERT INTO ksi_completion.turn (tenant, conversation, number, run, "
            "request_id, digest, options, context, model) SELECT tenant, conversation, 2, 'left', "
            "'r2', 'd', options, context, model FROM ksi_completion.turn WHERE run = $1) "
            "INSERT INTO ksi_completion.injection (tenant, conversation, turn, parts, body, "
            "tokens, run) SELECT tenant, conversation, 2, parts, body, tokens, 'left' "
            "FROM ksi_completion.message WHERE run = $1 AND role = 'user'",
            first,
        )
        await fleet.start(daemon)
        async with fleet.client(daemon) as client:
            left = await ask(client, "completion:wait", {"run_id": "left"})
            status = await ask(client, "completion:status", {"run_id": run})
            await ask(client, "completion:answer", {"run_id": run, "content": "the red one"})
            result = await ask(client, "completion:wait", {"run_id": run})
            history = await client.request(
                "conversation:history", {"conversation_id": result["conversation_id"]}
            )
        daemon.stop()

    assert (left["status"], left["text"]) == ("succeeded", "hello")
    assert status["status"] == "paused"
    assert "Which?" in status["waits_for"]
    assert result["text"] == "So be it."
    assert "the red one" in history["messages"][2]["parts"][0]["content"]

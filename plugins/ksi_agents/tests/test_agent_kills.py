"""kill -9 of the daemon while agents work: each is back, and no message is lost or had twice."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_agents.tests.helpers import document
from ksi_client import AsyncClient, Busy, Unavailable
from ksi_daemon.testing import DaemonProcess, write_entry_points
from ksi_postgres.logins import Logins
from ksi_workflows.tests.daemons import Fleet

KILLS = int(os.environ.get("FAULT_KILLS", "4"))
AGENTS = 4
MESSAGES = 3  # to each agent, before each kill
WORK_S = 0.25  # about what one message takes
BACK_S = 2.0
PLUGINS = "daemon.plugins=system,postgres,workflows,models,tools,completion,agents"
SETTINGS = (
    PLUGINS,
    "models.find_local=false",
    "models.keyring=false",
    "workflows.max_recovery_attempts=100",
)
NAMES = [f"worker-{number}" for number in range(AGENTS)]


@pytest.fixture
def fleet(database_logins: Logins) -> Fleet:
    """Daemons on one database."""
    return Fleet(database_logins, *SETTINGS)


@pytest.fixture
def daemon(fleet: Fleet) -> Iterator[DaemonProcess]:
    """A daemon that is not started yet."""
    with fleet.daemon() as made:
        yield made
        made.stop()


def worker(model: str = "test/lorem-6-20ms", **fields: Any) -> dict[str, Any]:
    return document(name="worker", model=model, limits={"requests": 5}, **fields)


async def request(client: AsyncClient, event: str, data: Any) -> Any:
    """Send an event until a daemon is there that can answer it."""
    while True:
        try:
            return await client.request(event, data)
        except (Unavailable, Busy) as error:
            await asyncio.sleep(error.retry_after_s or 0.05)


async def spawn(client: AsyncClient, name: str, **fields: Any) -> Any:
    data = {"document": worker(**fields), "name": name, "wait_s": 10, "request_id": name}
    return await request(client, "agent:spawn", data)


async def work_off(client: AsyncClient, name: str) -> Any:
    """Wait until an agent has nothing to do."""
    while True:
        shown = await request(client, "agent:get", {"name": name, "sections": ["mailbox"]})
        if shown["agent"]["phase"] == "Ready" and not shown["agent"].get("waiting"):
            return shown
        await asyncio.sleep(0.05)


async def said_in(fleet: Fleet, conversation: str, role: str) -> list[str]:
    rows = await fleet.query(
        "SELECT body FROM ksi_completion.message WHERE conversation = $1 AND role = $2 "
        "ORDER BY number",
        conversation,
        role,
    )
    return [row[0] for row in rows]


async def test_agents_that_are_killed_lose_no_message_and_have_none_twice(
    fleet: Fleet, daemon: DaemonProcess
) -> None:
    sent: dict[str, list[str]] = {name: [] for name in NAMES}
    await fleet.start(daemon)
    async with fleet.client(daemon) as client:
        made = {name: await spawn(client, name) for name in NAMES}
        for kill in range(KILLS):
            for name in NAMES:
                for number in range(MESSAGES):
                    prompt = f"{kill}.{number}"
                    data = {"agent": name, "prompt": prompt, "message_id": prompt}
                    await request(client, "agent:send", data)
                    sent[name].append(prompt)
            await asyncio.sleep(random.uniform(0.0, WORK_S * MESSAGES))  # the moment is tested
            await asyncio.to_thread(daemon.kill)
            await fleet.start(daemon)
        shown = {name: await work_off(client, name) for name in NAMES}
    for name in NAMES:
        agent, mails = shown[name]["agent"], shown[name]["mailbox"]
        assert {mail["status"] for mail in mails} == {"succeeded"}
        assert [mail["prompt"] for mail in mails] == sent[name]
        assert agent["conversation_id"] == made[name]["conversation_id"]
        assert agent.get("restarts", 0) == 0
        assert await said_in(fleet, agent["conversation_id"], "user") == sent[name]
        assert len(await said_in(fleet, agent["conversation_id"], "assistant")) == len(sent[name])


async def test_every_agent_is_back_in_two_seconds_with_all_that_it_had(
    fleet: Fleet, daemon: DaemonProcess
) -> None:
    await fleet.start(daemon)
    async with fleet.client(daemon) as client:
        idle = await spawn(client, "idle", model="test/echo")
        busy = await spawn(client, "busy", model="test/lorem-20-50ms")
        paused = await spawn(client, "paused", model="test/echo")
        await request(client, "agent:pause", {"which": {"names": ["paused"]}})
        for name, prompt in (("busy", "one"), ("busy", "two"), ("paused", "later")):
            data = {"agent": name, "prompt": prompt, "message_id": prompt}
            await request(client, "agent:send", data)
        await fleet.until("SELECT count(*) = 1 FROM ksi_agents.agent WHERE run IS NOT NULL")

        await asyncio.to_thread(daemon.kill)
        await fleet.start(daemon)
        since = time.monotonic()
        ask = {"agent": "idle", "prompt": "Are you there?", "message_id": "there"}
        answer = await request(client, "agent:ask", ask)
        shown = {
            name: await request(
                client,
                "agent:get",
                {"name": name, "sections": ["conditions", "definition", "mailbox", "usage"]},
            )
            for name in ("idle", "busy", "paused")
        }
        took_s = time.monotonic() - since
        after = await work_off(client, "busy")

    assert (answer["status"], answer["text"]) == ("succeeded", "Are you there?")
    assert took_s < BACK_S
    for name, made in (("idle", idle), ("busy", busy), ("paused", paused)):
        agent = shown[name]["agent"]
        assert agent["conversation_id"] == made["conversation_id"]
        assert (agent["definition"], agent["version"]) == ("worker", 1)
        assert shown[name]["definition"]["limits"] == {"requests": 5}
        assert shown[name]["usage"]["limits"] == {"requests": 5}
    assert shown["busy"]["definition"]["model"] == "test/lorem-20-50ms"
    assert (shown["busy"]["agent"]["phase"], shown["busy"]["agent"]["waiting"]) == ("Busy", 1)
    assert [mail["prompt"] for mail in shown["paused"]["mailbox"]] == ["later"]
    assert (shown["paused"]["agent"]["desired"], shown["paused"]["agent"]["waiting"]) == (
        "paused",
        1,
    )
    assert [mail["status"] for mail in after["mailbox"]] == ["succeeded", "succeeded"]


async def test_an_agent_killed_while_it_starts_is_started(
    fleet: Fleet, daemon: DaemonProcess
) -> None:
    probe = {"kind": "custom", "prompt": "HEALTHY", "expect": "HEALTHY"}
    await fleet.start(daemon)
    async with fleet.client(daemon) as client:
        data = {
            "document": worker("test/echo", probes=[probe] * 8),
            "name": "slow",
            "prompt": "hello",
        }
        made = await request(client, "agent:spawn", data)
        await asyncio.to_thread(daemon.kill)
        await fleet.start(daemon)
        shown = await work_off(client, "slow")

    assert made["phase"] == "Starting"
    assert [mail["status"] for mail in shown["mailbox"]] == ["succeeded"]
    assert shown["agent"].get("restarts", 0) == 0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install the plugin ``stage`` for daemons in other processes; the plugins to load."""
    write_entry_points(tmp_path, stage="ksi_agents.tests.stage_plugin")
    folders = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    return f"{PLUGINS},stage"


async def test_what_a_run_may_take_it_may_after_a_kill_and_no_more(
    fleet: Fleet, daemon: DaemonProcess, stage: str
) -> None:
    await fleet.start(daemon, stage)
    async with fleet.client(daemon) as client:
        await spawn(client, "bob", model="test/lorem-20-50ms")
        lines = [("bob", "1"), ("bob", "2"), ("model", "3"), ("bob", "4")]
        args = {"lines": lines, "limits": {"requests": 3}}
        run = (await request(client, "workflow:start", {"name": "play", "args": args}))["run_id"]
        at_work = "SELECT requests = 2 FROM ksi_agents.account WHERE id = $1"
        await fleet.until(at_work, f"run:{run}")

        await asyncio.to_thread(daemon.kill)  # within the second call, which is made again
        await fleet.start(daemon, stage)
        outcome = await request(client, "workflow:result", {"run_id": run, "timeout_s": 30})
        spent = await request(client, "agent:spent", {"run_id": run})

    refused = [text.endswith("may make 3 (limits.requests)") for text in outcome["output"]]
    assert refused == [False, False, True, True]
    assert (spent["requests"], spent["limits"]) == (3, {"requests": 3})


async def test_another_daemon_goes_on_where_one_died(fleet: Fleet, daemon: DaemonProcess) -> None:
    with fleet.daemon() as other:
        await fleet.start(daemon, "workflows.takeover_after_s=1")
        await fleet.start(other, "workflows.takeover_after_s=1")
        async with fleet.client(daemon) as here, fleet.client(other) as there:
            await spawn(here, "bob")
            prompts = [f"m{number}" for number in range(6)]
            for prompt in prompts:
                data = {"agent": "bob", "prompt": prompt, "message_id": prompt}
                await request(here, "agent:send", data)

            async with asyncio.TaskGroup() as together:
                ask = {"agent": "bob", "prompt": "m5", "message_id": "m5", "timeout_s": 60}
                asking = together.create_task(request(there, "agent:ask", ask))
                await asyncio.to_thread(daemon.kill)
            shown = await work_off(there, "bob")
        other.stop()

    assert asking.result()["status"] == "succeeded"
    assert [mail["status"] for mail in shown["mailbox"]] == ["succeeded"] * 6
    conversation = shown["agent"]["conversation_id"]
    assert await said_in(fleet, conversation, "user") == prompts


async def test_who_asks_through_another_daemon_is_told_at_once(
    fleet: Fleet, daemon: DaemonProcess
) -> None:
    with fleet.daemon() as other:
        await fleet.start(daemon)
        await fleet.start(other)
        async with fleet.client(daemon) as here, fleet.client(other) as there:
            await spawn(here, "bob", model="test/lorem-10-50ms")
            send = {"agent": "bob", "prompt": "one", "message_id": "one"}
            await request(here, "agent:send", send)
            since = time.monotonic()
            first = await request(there, "agent:ask", send)
            second = await request(there, "agent:ask", {"agent": "bob", "prompt": "two"})
            took_s = time.monotonic() - since
        other.stop()

    assert (first["status"], second["status"]) == ("succeeded", "succeeded")
    assert took_s < 4.0  # it is told, and has not to look again for it

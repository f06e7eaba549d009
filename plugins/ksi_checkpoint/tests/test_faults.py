"""Tests of checkpoints whose Postgres is gone, stands still, or comes back: each really done."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_checkpoint.tests.conftest import Run, plugin_of
from ksi_checkpoint.tests.notes_plugin import Notes
from ksi_client import AsyncClient, LocalTransport, Unavailable, UnixTransport
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.loader import EntryPoint
from ksi_daemon.plugin import Plugin
from ksi_daemon.testing import module_plugin, read_log, running_daemon
from ksi_postgres import leftovers, store
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.place import Place

WAIT_S = 30.0
NOT_TAKEN = "no checkpoint was taken at the drain"


@pytest.fixture
async def server(ksi_home: Path) -> AsyncIterator[EmbeddedServer]:
    """A Postgres that the test may stop."""
    await asyncio.to_thread(
        ksi_home.chmod, 0o711
    )  # its user passes through, where the tests run as root
    made = EmbeddedServer(ksi_home / "elsewhere", fsync=False)
    await made.start()
    await store.create_database(made)
    yield made
    await made.stop()


@pytest.fixture
def home(ksi_home: Path) -> Path:
    """A home for a daemon beside that."""
    return ksi_home / "home"


def settings_of(server: EmbeddedServer) -> list[str]:
    return [f"postgres.url={store.embedded_logins(server).admin}"]


async def until_healthy(client: AsyncClient, wanted: str) -> dict[str, Any]:
    """Ask for the plugin's health, after each thing that may have changed it, until it is so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            report = await client.request("system:health")
            (found,) = [each for each in report["plugins"] if each["plugin"] == "checkpoint"]
            if found["health"] == wanted:
                return dict(found)


async def test_with_postgres_gone_the_daemon_stops_in_its_time_and_says_what_is_lost(
    server: EmbeddedServer, home: Path, installed: list[EntryPoint]
) -> None:
    points = [*installed, plugin_of("notes", Notes())]
    async with (
        running_daemon(home, *points, settings=settings_of(server)) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        await client.request("notes:add", {"text": "lost"})
        lost = await client.subscribe("postgres:lost")
        await server.stop()
        await anext(lost)
        with pytest.raises(Unavailable):
            await client.request("checkpoint:create")
        degraded = await until_healthy(client, "degraded")
        began = time.monotonic()

    assert time.monotonic() - began < 15
    assert "no checkpoint could be taken" in degraded["why"]
    (line,) = [line for line in read_log(home) if line["message"] == NOT_TAKEN]
    assert "can't be reached" in line["why"]
    assert line["level"] == "error"


async def test_with_postgres_standing_still_the_daemon_stops_in_its_time_all_the_same(
    server: EmbeddedServer, home: Path, ksi_home: Path, installed: list[EntryPoint]
) -> None:
    points = [*installed, plugin_of("notes", Notes())]
    place = Place(ksi_home / "elsewhere")
    async with (
        running_daemon(home, *points, settings=settings_of(server)) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        await client.request("checkpoint:create")
        frozen = await asyncio.to_thread(leftovers.processes_on, place)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
    stopped_after = time.monotonic() - began
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)

    assert stopped_after < 25
    assert [line["message"] for line in read_log(home)].count(NOT_TAKEN) == 1


async def test_when_postgres_is_back_a_checkpoint_is_taken_and_health_is_good_again(
    server: EmbeddedServer, home: Path, installed: list[EntryPoint]
) -> None:
    points = [*installed, plugin_of("notes", Notes())]
    often = [*settings_of(server), "checkpoint.interval_s=0.05"]
    async with (
        running_daemon(home, *points, settings=often) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        await client.request("notes:add", {"text": "before"})
        await server.stop()
        await client.request("notes:add", {"text": "meanwhile"})
        await until_healthy(client, "degraded")
        created = await client.subscribe("checkpoint:created")
        await server.start()
        async with asyncio.timeout(WAIT_S):
            await anext(created)
        await until_healthy(client, "ok")
        newest = (await client.request("checkpoint:list"))["checkpoints"][0]
        shown = await client.request("checkpoint:show", {"id": newest["id"], "plugin": "notes"})

    assert shown["state"] == ["before", "meanwhile"]


async def test_until_the_old_state_is_given_back_no_empty_one_takes_its_place(
    run: Run, ksi_home: Path
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    late = Notes()

    @hookimpl
    def needs_checkpoints() -> PluginInfo:
        return PluginInfo(requires=("checkpoint",))

    @hookimpl
    async def start_late(plugin: Plugin) -> AsyncIterator[None]:
        plugin.add(late)
        begun.set()
        await go_on.wait()
        yield

    async def try_early() -> None:
        """Ask for a checkpoint before the last plugin is ready; the socket answers already."""
        await begun.wait()
        async with AsyncClient(UnixTransport(ksi_home / "run" / "ksi.sock")) as early:
            with pytest.raises(Unavailable, match="not given back yet"):
                await early.request("checkpoint:create")
        go_on.set()

    async with run(notes=Notes()) as client:
        await client.request("notes:add", {"text": "old"})
    notes = module_plugin("notes", ksi_plugin=needs_checkpoints, ksi_lifespan=start_late)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(try_early())
        async with run(notes=notes) as client:
            restored = await client.subscribe("checkpoint:restored")
            while not late.notes:
                await anext(restored)
            listed = (await client.request("checkpoint:list"))["checkpoints"]

    assert late.notes == ["old"]
    assert [each["reason"] for each in listed] == ["drain"]

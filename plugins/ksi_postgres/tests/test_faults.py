"""Tests of what goes wrong under a store: each really done to a real Postgres."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import ksi_postgres.plugin
from ksi_client import AsyncClient, Client, LocalTransport
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import event_handler
from ksi_daemon.home import Home
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Failed, InvalidData, KsiError, TimedOut, Unavailable
from ksi_daemon.testing import DaemonProcess, ModuleEntryPoint, module_plugin, running_daemon
from ksi_postgres import cluster, leftovers
from ksi_postgres.database import Database
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.place import Place

WAIT_S = 30.0
WRITERS = 8
SMALL_DISK_BYTES = 300 * 1024 * 1024


@pytest.fixture
def small_disk(ksi_home: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = ksi_home / "disk"
    folder.mkdir()
    ksi_home.chmod(0o711)
    options = f"size={SMALL_DISK_BYTES},mode=0711"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Take all the room that there is."""
    file = folder / "ballast"
    with file.open("ab", buffering=0) as stream:
        try:
            for size in (1 << 20, 1 << 12):
                with_room = True
                while with_room:
                    try:
                        stream.write(bytes(size))
                    except OSError:
                        with_room = False
        finally:
            os.fsync(stream)
    return file


async def query(server: EmbeddedServer, statement: str) -> object:
    connection = await asyncpg.connect(
        host=server.host,
        user=server.superuser,
        password=server.passwords[server.superuser],
        database="postgres",
    )
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_room_again(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedServer(small_disk / "pg")
    await server.start()
    try:
        await query(server, "CREATE TABLE kept AS SELECT 7 AS x")
        ballast = await asyncio.to_thread(fill_up, small_disk)

        with pytest.raises((asyncpg.DiskFullError, asyncpg.PostgresIOError, ConnectionError)):
            await query(server, "CREATE TABLE big AS SELECT repeat(md5(x::text), 99) "
                                "FROM generate_series(1, 100000) x")  # fmt: skip
        if server.pid is not None:
            os.kill(server.pid, signal.SIGKILL)
        await server.wait_end()
        with monkeypatch.context() as patched:
            # What was not committed is gone again, as is what the dead one has left.
            patched.setattr(cluster, "remove_half_made", lambda place: fill_up(small_disk))
            with pytest.raises(Failed, match=r"(?s)No space left.*make room on that disk"):
                await server.start()

        ballast.unlink()
        await server.start()
        assert await query(server, "SELECT x FROM kept") == 7
    finally:
        await server.stop()


async def test_a_cluster_is_not_begun_where_it_has_no_room(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(SMALL_DISK_BYTES // 2))

    with pytest.raises(InvalidData, match=r"has 1\d\d MB free; make room, or set postgres\.data"):
        await EmbeddedServer(small_disk / "pg").start()
    assert not (small_disk / "pg" / "data").exists()


async def test_a_disk_that_fills_while_the_cluster_is_made_leaves_no_half_of_it(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "ballast").write_bytes(bytes(SMALL_DISK_BYTES - (20 << 20)))
    monkeypatch.setattr("ksi_postgres.cluster.MIN_FREE_BYTES", 0)

    with pytest.raises(Failed, match=r"(?s)initdb failed.*make room on that disk"):
        await EmbeddedServer(small_disk / "pg").start()

    (small_disk / "ballast").unlink()
    assert shutil.disk_usage(small_disk).used < 1 << 20, "it left something"
    again = EmbeddedServer(small_disk / "pg")
    await again.start()
    await again.stop()


# -- under a daemon -----------------------------------------------------------------------------


@hookimpl
def describe_notes() -> PluginInfo:
    return PluginInfo(requires=("postgres",))


@hookimpl
async def run_notes(plugin: Plugin) -> AsyncIterator[None]:
    """A plugin that keeps numbers, as any plugin keeps what must last."""
    database = plugin.service(Database)
    async with database.transaction(tenant=None) as connection:
        await connection.execute("CREATE TEMP TABLE unused (x int)")

    class Notes:
        @event_handler("notes:add")
        async def add(self, data: Any) -> Any:
            await database.execute("INSERT INTO notes (x) VALUES ($1)", data["x"])
            return {}

        @event_handler("notes:list")
        async def list(self, data: Any) -> Any:
            return [row["x"] for row in await database.fetch("SELECT x FROM notes")]

    plugin.add(Notes())
    yield


STORE = ModuleEntryPoint("postgres", lambda: ksi_postgres.plugin)
NOTES = module_plugin("notes", ksi_plugin=describe_notes, ksi_lifespan=run_notes)
TABLE = "CREATE TABLE notes (x int); GRANT SELECT, INSERT ON notes TO ksi_app"


@asynccontextmanager
async def noting_daemon(home: Path, *settings: str) -> AsyncIterator[Daemon]:
    async with running_daemon(home, STORE, NOTES, settings=settings) as daemon:
        connection = await asyncpg.connect(superusers_url(daemon))
        await connection.execute(TABLE)
        await connection.close()
        yield daemon


def superusers_url(daemon: Daemon) -> str:
    found: Database = daemon._services[Database]  # type: ignore[assignment]  # found by its class
    return found.logins.admin


async def server_pid(client: AsyncClient) -> int:
    status = await client.request("postgres:status", {})
    pid: int = status["pid"]
    return pid


async def until_it_answers(client: AsyncClient, event: str, data: Any) -> Any:
    """Do as a client should: try again when the error says so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await client.request(event, data)
            except (Unavailable, TimedOut) as error:
                await asyncio.sleep(error.retry_after_s or 0)


async def test_a_kill_of_postgres_under_load_loses_nothing_that_was_answered(
    ksi_home: Path,
) -> None:
    async with noting_daemon(ksi_home) as daemon, AsyncClient(LocalTransport(daemon)) as client:
        answered: list[int] = []
        refused: list[KsiError] = []
        recovered = asyncio.Event()

        async def write(number: int) -> None:
            while not recovered.is_set():
                number += WRITERS
                try:
                    await client.request("notes:add", {"x": number})
                    answered.append(number)
                except KsiError as error:
                    refused.append(error)
                    await asyncio.sleep(0)

        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(write(number))
            await until_so(lambda: len(answered) > 200)
            os.kill(await server_pid(client), signal.SIGKILL)
            await until_so(lambda: refused)
            told = await postgres_health(client)
            while told["health"] == "ok":  # that one connection broke is no proof yet
                told = await postgres_health(client)
            before = len(answered)
            await until_so(lambda: len(answered) > before + 200)
            recovered.set()
        kept = await client.request("notes:list", {})

        assert set(answered) <= set(kept)
        assert len(kept) == len(set(kept)), "something was written twice"
        assert not [error for error in refused if error.code != "unavailable"]
        assert all(error.retry_after_s for error in refused)
        assert told["health"] == "degraded"
        assert "Postgres can't be reached" in told["why"]
        assert (await client.request("system:health", {}))["health"] == "ok"


async def postgres_health(client: AsyncClient) -> dict[str, Any]:
    health = await client.request("system:health", {})
    plugins: list[dict[str, Any]] = health["plugins"]
    return next(plugin for plugin in plugins if plugin["plugin"] == "postgres")


async def until_so(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  what changes it tells nobody
        await asyncio.sleep(0)


async def test_a_postgres_that_somebody_stops_is_started_again(ksi_home: Path) -> None:
    async with noting_daemon(ksi_home) as daemon, AsyncClient(LocalTransport(daemon)) as client:
        await client.request("notes:add", {"x": 1})
        pid = await server_pid(client)

        os.kill(pid, signal.SIGINT)  # pg_ctl stop -m fast
        async with asyncio.timeout(WAIT_S):
            while await server_pid(client) in (pid, None):
                pass

        assert await until_it_answers(client, "notes:list", {}) == [1]


async def test_a_postgres_that_stands_still_costs_a_request_its_time_and_no_more(
    ksi_home: Path,
) -> None:
    async with (
        noting_daemon(ksi_home, "postgres.query_timeout_s=0.5") as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        await client.request("notes:add", {"x": 1})
        frozen = await asyncio.to_thread(leftovers.processes_on, Place(ksi_home / "pg"))
        signal_all(frozen, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises((TimedOut, Unavailable)):
                await client.request("notes:list", {})
            assert time.monotonic() - began < 5
            # The daemon itself goes on.
            assert (await client.request("system:health", {}))["state"] == "ready"
        finally:
            signal_all(frozen, signal.SIGCONT)

        assert await until_it_answers(client, "notes:list", {}) == [1]


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def test_a_disk_that_was_full_is_no_end_of_the_daemon(small_disk: Path) -> None:
    home = small_disk / "home"
    async with noting_daemon(home) as daemon, AsyncClient(LocalTransport(daemon)) as client:
        await client.request("notes:add", {"x": 1})
        ballast = await asyncio.to_thread(fill_up, small_disk)
        with pytest.raises(KsiError) as refused:
            await write_until_refused(client)
        assert refused.value.code == "unavailable"
        assert refused.value.retry_after_s

        ballast.unlink()
        await until_it_answers(client, "notes:add", {"x": 0})

        assert {0, 1} <= set(await until_it_answers(client, "notes:list", {}))


async def write_until_refused(client: AsyncClient) -> None:
    for number in range(2, 2_000_000):
        await client.request("notes:add", {"x": number})


async def test_a_second_daemon_on_the_same_data_is_refused_with_who_has_them(
    ksi_home: Path,
) -> None:
    Home(ksi_home).prepare()
    shared = f"postgres.data_folder={ksi_home / 'shared'}"
    async with noting_daemon(ksi_home / "one", shared) as daemon:
        second = Daemon(ksi_home / "two", [shared], entry_points=[STORE])

        with pytest.raises(Failed, match=rf"process {os.getpid()} runs a Postgres on"):
            await second.run()

        async with AsyncClient(LocalTransport(daemon)) as client:
            assert await client.request("notes:list", {}) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="waits for no child of its own")
def test_after_a_kill_of_the_daemon_the_next_start_has_everything_within_seconds(
    ksi_home: Path, daemon_process: DaemonProcess
) -> None:
    daemon_process.start()
    with Client(daemon_process.socket) as client:
        pid = client.request("postgres:status", {})["pid"]
    postmaster = os.pidfd_open(pid)

    daemon_process.kill(signal.SIGKILL)
    ended = select.select([postmaster], [], [], WAIT_S)[0]
    os.close(postmaster)
    began = time.monotonic()
    daemon_process.start()
    took_s = time.monotonic() - began

    assert ended, "its Postgres outlived it"
    assert took_s < 5
    with Client(daemon_process.socket) as client:
        assert client.request("postgres:status", {})["up"] is True

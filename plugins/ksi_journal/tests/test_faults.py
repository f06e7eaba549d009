"""Tests of what becomes of records when Postgres or the daemon dies: each really does."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ksi_client import AsyncClient, Denied, KsiError, LocalTransport, UnixTransport
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import DaemonProcess, running_daemon
from ksi_journal.spool import Spool
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.testing import settings_for

WAIT_S = 40.0


@asynccontextmanager
async def superuser(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def until_it_answers(client: AsyncClient, event: str, data: Any = None) -> Any:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await client.request(event, data or {})
            except KsiError as error:
                await asyncio.sleep(error.retry_after_s or 0.05)


async def health_of_journal(client: AsyncClient) -> str:
    report = await client.request("system:health")
    told = next(each for each in report["plugins"] if each["plugin"] == "journal")
    return str(told.get("why", ""))


@pytest.mark.timeout(120)
async def test_when_postgres_is_killed_every_event_is_written_or_counted_as_dropped(
    ksi_home: Path, ksi_plugins: list[EntryPoint]
) -> None:
    few = ["journal.queue_events=300", "journal.batch_events=40", "journal.flush_interval_s=0.02"]
    async with (
        running_daemon(ksi_home, *ksi_plugins, settings=few) as daemon,
        AsyncClient(LocalTransport(daemon)) as client,
    ):
        sent = await send_while_postgres_dies(client)
        await until_it_answers(client, "journal:stats")
        report = await until_nothing_waits(client)
        database: Any = daemon._services[Database]
        async with superuser(database.logins.admin) as connection:
            kept = await connection.fetchval(
                "SELECT count(*) FROM ksi_journal.event WHERE NOT is_security"
            )
            ids = await connection.fetchval("SELECT count(DISTINCT id) FROM ksi_journal.event "
                                            "WHERE NOT is_security")  # fmt: skip
            told = await connection.fetchval(
                "SELECT sum((payload->>'count')::int) FROM ksi_journal.event "
                "WHERE name = 'journal:dropped'"
            )

        assert report["dropped"] > 0
        assert report["accepted"] == report["written"] + report["dropped"]
        assert report["written"] == kept == ids
        assert told == report["dropped"]
        assert report["accepted"] >= sent


async def send_while_postgres_dies(client: AsyncClient) -> int:
    """Send events without a pause; return how many."""
    sent, killed = 0, False
    pid = (await client.request("postgres:status"))["pid"]
    async with asyncio.timeout(WAIT_S):
        while True:
            await client.request("tool:call", {"args": sent})
            sent += 1
            if sent == 500:
                os.kill(pid, signal.SIGKILL)
                killed = True
            if killed and "were not recorded" in await health_of_journal(client):
                return sent


async def until_nothing_waits(client: AsyncClient) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        while True:
            await until_it_answers(client, "journal:history")  # writes what waits
            report: dict[str, Any] = await client.request("journal:stats")
            told = [each for each in report["events"] if each["event"] == "journal:dropped"]
            if not report["queued"] and told:
                return report


# -- the daemon ----------------------------------------------------------------------------------


def arguments(logins: Logins, *settings: str) -> list[str]:
    plugins = "daemon.plugins=system,postgres,journal"
    everything = (*settings_for(logins), plugins, *settings)
    return [part for each in everything for part in ("--set", each)]


async def be_denied(guest: AsyncClient, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Denied):
            await guest.request("system:shutdown")


async def count(logins: Logins, name: str) -> tuple[int, int]:
    async with superuser(logins.admin) as connection:
        row = await connection.fetchrow(
            "SELECT count(*), count(DISTINCT id) FROM ksi_journal.event WHERE name = $1", name
        )
    return row[0], row[1]


async def test_a_kill_of_the_daemon_loses_no_security_record_and_few_others(
    daemon_process: DaemonProcess, database_logins: Logins
) -> None:
    slow = "journal.flush_interval_s=30"  # nothing is written that is not waited for
    started = arguments(database_logins, slow)
    await asyncio.to_thread(daemon_process.start, *started)
    async with AsyncClient(UnixTransport(daemon_process.socket)) as client:
        made = await client.request("token:create", {"name": "guest", "ttl_s": 60})
        for number in range(50):
            await client.publish("agent:said", {"n": number})
        await client.request("journal:history")  # writes what waits
        await client.publish("agent:said", {"n": 50})
        guest = AsyncClient(UnixTransport(daemon_process.socket), token=made["token"])
        async with guest:
            await be_denied(guest, 20)
            await asyncio.to_thread(daemon_process.kill)

    await asyncio.to_thread(daemon_process.start, *started)
    async with AsyncClient(UnixTransport(daemon_process.socket)) as client:
        await client.request("journal:history")

    assert await count(database_logins, "router:denied") == (20, 20)
    assert await count(database_logins, "token:create") == (2, 1)
    assert await count(database_logins, "agent:said") == (50, 50)


async def test_security_records_outlast_the_daemon_while_postgres_is_away(
    daemon_process: DaemonProcess, database_logins: Logins
) -> None:
    started = arguments(database_logins)
    await asyncio.to_thread(daemon_process.start, *started)
    async with AsyncClient(UnixTransport(daemon_process.socket)) as client:
        made = await client.request("token:create", {"name": "guest", "ttl_s": 60})
        await client.request("journal:history")  # writes what waits
        async with client_sees(client, "postgres:lost"):
            await shut_out(database_logins, allowed=False)
        guest = AsyncClient(UnixTransport(daemon_process.socket), token=made["token"])
        async with guest:
            await be_denied(guest, 20)
        await client.request("token:create", {"name": "another", "ttl_s": 60})
        await asyncio.to_thread(daemon_process.kill)
    spool = daemon_process.home / "journal" / "security.jsonl"
    assert spool.stat().st_mode & 0o777 == 0o600
    assert len(spool.read_bytes().splitlines()) == 1 + 20 + 2

    await shut_out(database_logins, allowed=True)
    await asyncio.to_thread(daemon_process.start, *started)
    async with AsyncClient(UnixTransport(daemon_process.socket)) as client:
        await client.request("journal:history")
        report = await client.request("journal:stats")

    assert report["spooled_bytes"] == 0
    assert await count(database_logins, "router:denied") == (20, 20)
    assert await count(database_logins, "token:create") == (4, 2)


@asynccontextmanager
async def client_sees(client: AsyncClient, event: str) -> AsyncIterator[None]:
    """Wait at the end for an event."""
    async with await client.subscribe(event) as subscription:
        yield
        async with asyncio.timeout(WAIT_S):
            await anext(aiter(subscription))


async def shut_out(logins: Logins, *, allowed: bool) -> None:
    """Let nobody into a database, and end who is in it; or let them in again."""
    server, _, rest = logins.admin.rpartition("/t_")
    name, _, options = ("t_" + rest).partition("?")
    async with superuser(f"{server}/postgres?{options}") as connection:
        await connection.execute(
            await connection.fetchval(
                "SELECT format('ALTER DATABASE %I ALLOW_CONNECTIONS %s', $1::text, $2::text)",
                name,
                str(allowed).lower(),
            )
        )
        if not allowed:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
            )


# -- the file ------------------------------------------------------------------------------------


def test_a_record_that_was_half_written_is_cut_off_and_the_rest_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "journal" / "security.jsonl"
    before = Spool(file, 1000)
    before.open()
    before.append(b"one")
    before.close()
    with file.open("ab") as stream:
        stream.write(b"tw")

    after = Spool(file, 1000)
    after.open()
    after.append(b"three")

    assert after.name == before.name
    assert after.unmoved()[0] == [b"one", b"three"]
    after.close()


def test_a_file_of_which_all_was_moved_begins_anew_under_another_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1000)
    spool.open()
    name = spool.name
    spool.append(b"one")
    _, end = spool.unmoved()
    spool.append(b"two")

    spool.set_moved(end)
    assert (spool.name, spool.unmoved()[0]) == (name, [b"two"])
    spool.set_moved(spool.unmoved()[1])

    assert spool.name != name
    assert spool.unmoved()[0] == []
    assert spool.waiting_bytes == 0
    spool.close()


def test_what_finds_no_room_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 60)
    spool.open()
    spool.append(b"fits")
    size = spool.size

    with pytest.raises(KsiError, match=r"journal\.spool_bytes"):
        spool.append(b"x" * 60)

    assert (spool.size, spool.refused) == (size, 1)
    assert spool.unmoved()[0] == [b"fits"]
    spool.close()

"""Tests of what is recorded, and what is not."""

import asyncio
import contextlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ksi_client import AsyncClient, Denied, KsiError, Unavailable
from ksi_daemon.daemon import Daemon
from ksi_daemon.loader import EntryPoint
from ksi_daemon.protocol import Context
from ksi_daemon.testing import running_daemon
from ksi_journal.journal import Journal
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins


async def history(client: AsyncClient, *patterns: str, **filters: Any) -> list[dict[str, Any]]:
    request = {"patterns": patterns, "limit": 1000, "payloads": True, **filters}
    answer = await client.request("journal:history", request)
    records: list[dict[str, Any]] = answer["records"]
    return records


async def test_an_event_is_recorded_with_how_it_ended_and_what_it_came_with(
    client: AsyncClient,
) -> None:
    await client.request("agent:say", {"text": "hello"})

    [record] = await history(client, "agent:say")

    assert record["outcome"] == "ok"
    assert record["origin"] == "owner"
    assert 0 < record["duration_s"] < 10
    assert record["payload"]["text"] == "hello"


async def test_a_failure_is_recorded_with_its_code_and_sentence(client: AsyncClient) -> None:
    with pytest.raises(KsiError):
        await client.request("agent:say", {"fail": "failed"})

    [record] = await history(client, "agent:say", outcome="failed")

    assert (record["outcome"], record["message"]) == ("failed", "it can't")


async def test_what_is_published_is_recorded_once_without_an_outcome(client: AsyncClient) -> None:
    await client.request("agent:say", {"text": "hello"})

    [record] = await history(client, "agent:said")

    assert "outcome" not in record
    assert record["payload"] == {"text": "hello"}


async def test_what_no_pattern_matches_is_not_recorded_and_costs_nothing(
    client: AsyncClient, daemon: Daemon
) -> None:
    await client.request("notes:add", {})
    await client.request("notes:add", {})

    assert await history(client, "notes:*") == []
    assert daemon.router.heard("notes:add") == ([], [])
    assert daemon.router.routes["notes:add"].on_the_spot


async def test_secrets_are_masked_by_their_mark_and_by_their_name(client: AsyncClient) -> None:
    args = {"api_key": "hidden", "nested": [{"accessToken": "hidden"}], "max_tokens": 7}
    await client.request("tool:call", {"args": args})
    await client.request("agent:say", {"text": "shown", "pin": "hidden"})

    records = await history(client, "tool:call", "agent:say")

    assert "hidden" not in str(records)
    assert records[0]["payload"]["text"] == "shown"
    shown = next(r["payload"]["args"] for r in records if "api_key" in str(r))
    assert shown["max_tokens"] == 7
    assert shown["nested"] == [{"accessToken": "********"}]


async def test_a_large_payload_is_kept_once_and_shown_with_its_event(
    client: AsyncClient, database_logins: Logins
) -> None:
    large = {"args": "x" * 100_000}
    for _ in range(3):
        await client.request("tool:call", large)
    listed = await history(client, "tool:call")
    shown = await client.request("journal:get", {"id": listed[0]["id"]})

    assert [record.get("payload") for record in listed] == [None] * 3
    assert {record["payload_bytes"] for record in listed} == {100_011}
    assert shown["records"][0]["payload"] == large
    assert await ask(database_logins, "SELECT count(*) FROM ksi_journal.payload") == 1


async def test_of_a_huge_payload_the_beginning_is_kept_and_said_to_be_that(
    client: AsyncClient,
) -> None:
    await client.request("tool:call", {"args": "x" * 2_000_000})

    [record] = await history(client, "tool:call")

    assert record["payload"]["truncated"] is True
    assert record["payload"]["bytes"] == 2_000_011
    assert record["payload"]["beginning"].startswith('{"args":"xxx')


async def test_no_text_of_a_peers_keeps_others_events_from_being_recorded(
    client: AsyncClient, daemon: Daemon
) -> None:
    for user in ("ann", "nul \x00", "bob"):
        context = Context(daemon.router.new_id(), None, "test", "default", user)
        daemon.router.notify(_published("agent:said", {"text": "\x00 \ud800"}, context))

    records = await history(client, "agent:said")
    report = await client.request("journal:stats")

    assert [record["user"] for record in records] == ["bob", "nul \ufffd", "ann"]
    assert report["dropped"] == 0
    assert report["accepted"] == report["written"] + report["queued"]


def _published(name: str, data: Any, context: Context) -> Any:
    from ksi_daemon.protocol import Event  # noqa: PLC0415  beside its only use

    return Event(name, data, context)


async def test_the_start_and_the_end_of_a_daemon_are_recorded(
    ksi_home: Path, ksi_plugins: list[EntryPoint], ksi_settings_of_plugins: list[str]
) -> None:
    for _ in range(2):
        async with running_daemon(ksi_home, *ksi_plugins, settings=ksi_settings_of_plugins):
            pass
    async with (
        running_daemon(ksi_home, *ksi_plugins, settings=ksi_settings_of_plugins) as daemon,
        local(daemon) as client,
    ):
        records = await history(client, "system:st*", until=None)

    names = [record["event"] for record in records[::-1]]
    assert names[:4] == ["system:started", "system:stopping"] * 2
    assert records[-1]["payload"]["plugins"]["agents"] == "ready"


def local(daemon: Daemon) -> AsyncClient:
    from ksi_client import LocalTransport  # noqa: PLC0415  beside its only use

    return AsyncClient(LocalTransport(daemon))


# -- what must not be lost -----------------------------------------------------------------------


async def with_token(
    client: AsyncClient, connect: Callable[..., Any], **fields: Any
) -> AsyncClient:
    made = await client.request("token:create", {"name": "guest", "ttl_s": 60, **fields})
    connected: AsyncClient = await connect(token=made["token"])
    return connected


async def test_a_denial_is_recorded_with_who_was_denied_what(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    guest = await with_token(client, connect, user="ann")
    with pytest.raises(Denied):
        await guest.request("system:shutdown")
    with pytest.raises(Denied):
        await client.request("agent:say", {"fail": "denied"})

    [record] = await history(client, "router:denied")
    [refused] = await history(client, outcome="denied")

    assert (record["origin"], record["user"]) == ("token:guest", "ann")
    assert record["payload"]["event"] == "system:shutdown"
    assert refused["event"] == "agent:say"


async def test_a_token_is_recorded_before_it_is_made_and_when_it_was(client: AsyncClient) -> None:
    made = await client.request("token:create", {"name": "guest", "ttl_s": 60})

    records = await history(client, "token:*")

    assert [record["outcome"] for record in records] == ["ok", "begun"]
    assert records[0]["id"] == records[1]["id"]
    assert made["token"] not in str(records)


class TestWithAFullFile:
    @pytest.fixture
    def ksi_settings(self) -> list[str]:
        return ["journal.spool_bytes=10"]

    async def test_what_has_to_be_recorded_first_is_refused(self, client: AsyncClient) -> None:
        with pytest.raises(Unavailable, match=r"journal\.spool_bytes"):
            await client.request("token:create", {"name": "guest", "ttl_s": 60})

        assert (await client.request("token:list"))["tokens"] == []
        health = await client.request("system:health")
        told = next(each for each in health["plugins"] if each["plugin"] == "journal")
        assert told["health"] == "degraded"
        assert "could not be made" in told["why"]


async def test_what_is_recorded_in_a_transaction_shares_its_fate(
    client: AsyncClient, daemon: Daemon, journal: Journal
) -> None:
    database: Any = daemon._services[Database]
    context = Context("cause-1", None, "test", "default", "ann")
    async with database.transaction() as connection:
        await journal.record(connection, "spend:made", {"usd": 1}, context=context)
    with contextlib.suppress(RuntimeError):
        async with database.transaction() as connection:
            await journal.record(connection, "spend:made", {"usd": 2}, context=context)
            raise RuntimeError

    await until_recorded(journal, 1, "spend:*")
    [record] = await history(client, "spend:*")

    assert record["payload"] == {"usd": 1}
    assert (record["parent"], record["user"], record["outcome"]) == ("cause-1", "ann", "ok")


async def until_recorded(journal: Journal, count: int, *patterns: str) -> None:
    position = 0
    async with asyncio.timeout(10):
        while len((page := await journal.read_after("default", patterns, 0)).records) < count:
            position = page.through
            await journal.wait_after(position)


async def test_settings_that_changed_between_two_starts_are_recorded(
    ksi_home: Path, ksi_plugins: list[EntryPoint], ksi_settings_of_plugins: list[str]
) -> None:
    async def start(*settings: str) -> list[dict[str, Any]]:
        everything = [*ksi_settings_of_plugins, *settings]
        async with (
            running_daemon(ksi_home, *ksi_plugins, settings=everything) as daemon,
            local(daemon) as client,
        ):
            return await history(client, "system:configured")

    await start()
    same = await start()
    changed = await start("journal.batch_events=7")

    assert len(same) == 1, same
    [change] = changed[0]["payload"]["changes"]
    assert change == {
        "setting": "journal.batch_events", "before": 2000, "now": 7, "origin": "--set",
    }  # fmt: skip
    assert "postgresql://" not in str(changed)
    kept = ksi_home / "journal" / "settings.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "postgresql://" not in kept.read_text()


# -- walls ---------------------------------------------------------------------------------------


async def ask(logins: Logins, sql: str, *arguments: Any) -> Any:
    connection = await asyncpg.connect(logins.admin)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


async def test_a_tenant_sees_its_own_records_alone(
    client: AsyncClient, connect: Callable[..., Any]
) -> None:
    await client.request("agent:say", {"text": "ours"})
    ours = await history(client)
    grants = {"call": ["journal:*", "tool:*"]}
    other = await with_token(client, connect, grants=grants, tenant="other")
    await other.request("tool:call", {"args": "theirs"})

    theirs = await history(other)
    report = await other.request("journal:stats")

    assert [record["payload"] for record in theirs] == [{"args": "theirs"}]
    assert report["events"] == [{"event": "tool:call", "count": 1}]
    for record in ours:
        for event in ("journal:get", "journal:trace"):
            with pytest.raises(KsiError, match="nothing is recorded"):
                await other.request(event, {"id": record["id"]})
    async with asyncio.timeout(10):
        async for record in other.stream("journal:tail", {"after": 0}):
            assert record["id"] == theirs[0]["id"]
            break
    assert "theirs" not in str(await history(client))


@pytest.mark.parametrize("table", ["event", "payload", "waiting"])
async def test_the_daemons_own_login_can_change_no_record(database: Database, table: str) -> None:
    for statement in ("DELETE FROM ksi_journal.", "TRUNCATE ksi_journal."):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute(statement + table)
    assert await database.fetch("SELECT FROM ksi_journal." + table) == []


async def test_no_partition_can_be_reached_past_its_parent(
    client: AsyncClient, daemon: Daemon
) -> None:
    database: Any = daemon._services[Database]
    partitions = (await client.request("journal:stats"))["partitions"]

    assert len(partitions) >= 4
    for each in partitions:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.fetch("SELECT FROM ksi_journal." + each["partition"])


async def test_people_read_the_events_of_their_tenant_in_sql(
    client: AsyncClient, daemon: Daemon
) -> None:
    from ksi_postgres.reader import Reader  # noqa: PLC0415  beside its only use

    reader: Any = daemon._services[Reader]
    await client.request("tool:call", {"args": {"x": 1}})
    await history(client)
    statement = "SELECT payload->'args'->>'x' AS x FROM events WHERE name = 'tool:call'"

    ours, theirs = await reader.read("default", statement), await reader.read("other", statement)

    assert "1" in str(ours.rows)
    assert len(theirs.rows) == 0

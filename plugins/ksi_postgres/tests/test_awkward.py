"""Tests of keyed requests where the store can't do what it is asked for."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from msgspec import Raw

from ksi_client import AsyncClient
from ksi_daemon.home import Home
from ksi_daemon.protocol import Busy, Conflict, InvalidData, KsiError, TimedOut, Unavailable
from ksi_postgres import dumps
from ksi_postgres.access import Store, connected, opened
from ksi_postgres.database import Database
from ksi_postgres.keys import Keys
from ksi_postgres.logins import Logins
from ksi_postgres.settings import PostgresSettings

KEY = ("t", "p", None, "k")
IMPATIENT = PostgresSettings(query_timeout_s=0.3)
SOON_S = 20.0


@pytest.fixture
async def impatient(database_logins: Logins) -> AsyncIterator[Database]:
    """A store that gives a query up soon."""
    database = Database(database_logins, IMPATIENT)
    await database.open()
    yield database
    await database.close()


def keys_of(database: Database, boot: str) -> Keys:
    return Keys(database, boot, is_alone=False, in_doubt_after_s=60.0)


@asynccontextmanager
async def locked(logins: Logins) -> AsyncIterator[asyncpg.Connection]:
    """Let every query of keys wait for the length of the block."""
    admin = await asyncpg.connect(logins.admin)
    try:
        async with admin.transaction():
            await admin.execute("LOCK TABLE ksi_postgres.idempotency_key")
            yield admin
    finally:
        await admin.close()


async def test_a_key_that_the_store_cannot_hold_ends_its_request_alone(client: AsyncClient) -> None:
    with pytest.raises(InvalidData, match="NUL"):
        await client.request("system:hello", idempotency_key="a\0b")

    assert await client.request("system:hello", idempotency_key="ab")


async def test_a_store_that_refuses_a_key_ends_its_request_alone(
    client: AsyncClient, database_logins: Logins
) -> None:
    admin = await asyncpg.connect(database_logins.admin)
    await admin.execute("REVOKE EXECUTE ON FUNCTION ksi_postgres.claim_key FROM ksi_app")
    with pytest.raises(KsiError, match="could not be claimed"):
        await client.request("system:hello", idempotency_key="k")
    await admin.execute("GRANT EXECUTE ON FUNCTION ksi_postgres.claim_key TO ksi_app")
    await admin.execute("REVOKE EXECUTE ON FUNCTION ksi_postgres.keep_key FROM ksi_app")
    await admin.close()

    assert await client.request("system:hello", idempotency_key="k")


async def test_a_claim_whose_answer_was_lost_leaves_the_key_free(
    impatient: Database, database_logins: Logins
) -> None:
    keys = keys_of(impatient, "mine")
    await keys.claim(KEY, b"d")  # this one is noted, and the word of it is lost
    async with locked(database_logins):
        with pytest.raises(TimedOut):
            await keys.claim(KEY, b"d")

    assert await keys.claim(KEY, b"d") is None


async def test_a_claim_that_is_cancelled_leaves_the_key_free(
    impatient: Database, database_logins: Logins
) -> None:
    keys = keys_of(impatient, "mine")
    await keys.claim(KEY, b"d")
    async with locked(database_logins) as admin, asyncio.TaskGroup() as tasks:
        claim = tasks.create_task(keys.claim(KEY, b"d"))
        await _until_somebody_waits(admin)
        claim.cancel()

    assert claim.cancelled()
    assert await keys.claim(KEY, b"d") is None


async def test_a_claim_whose_answer_was_lost_does_not_give_back_the_key_of_another(
    impatient: Database, database_logins: Logins
) -> None:
    await keys_of(impatient, "theirs").claim(KEY, b"d")
    mine = keys_of(impatient, "mine")
    async with locked(database_logins):
        with pytest.raises(TimedOut):
            await mine.claim(KEY, b"d")

    with pytest.raises(Busy):
        await mine.claim(KEY, b"d")


async def test_an_answer_that_could_not_be_kept_is_kept_later(
    impatient: Database, database_logins: Logins
) -> None:
    keys = keys_of(impatient, "mine")
    await keys.claim(KEY, b"d")
    async with asyncio.TaskGroup() as tasks:
        paying = tasks.create_task(keys.pay())
        async with locked(database_logins):
            with pytest.raises(TimedOut):
                await keys.keep(KEY, Raw(b"1"))
        found = await _first_answer(keys_of(impatient, "theirs"))
        paying.cancel()

    assert bytes(found) == b"1"


async def _first_answer(keys: Keys) -> Raw:
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                answer = await keys.claim(KEY, b"d")
            except Busy:
                continue
            assert isinstance(answer, Raw)
            return answer


async def _until_somebody_waits(admin: asyncpg.Connection) -> None:
    async with asyncio.timeout(SOON_S):
        while not await admin.fetchval(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE NOT l.granted AND a.datname = current_database()"
        ):
            pass


async def test_a_parameter_that_is_wrong_is_told_in_a_sentence() -> None:
    store = Store(
        url="postgresql://u:secret@127.0.0.1:1/db?sslmode=nope",
        folder=None,
        daemon_pid=None,
        settings=PostgresSettings(),
    )

    with pytest.raises(Unavailable, match="`sslmode` parameter must be one of") as caught:
        await connected(store).__aenter__()

    assert "secret" not in caught.value.message


@pytest.mark.parametrize("trap", ["owner", "link"])
async def test_a_backup_is_not_written_into_a_file_of_somebody_else_s(
    trap: str, database_logins: Logins, ksi_home: Path
) -> None:
    part, other = ksi_home / "backup.part", ksi_home / "other"
    other.touch(mode=0o600)
    part.hardlink_to(other) if trap == "link" else part.touch()
    if trap == "owner":
        if os.getuid() != 0:
            pytest.skip("only root can make a file somebody else's")
        os.chown(part, 65534, -1)

    with pytest.raises(Conflict, match="somebody else"):
        await dumps.dump(database_logins.admin, ksi_home / "backup", force=False, as_owner=False)

    assert not other.read_bytes()
    assert not (ksi_home / "backup").exists()


async def test_a_command_without_the_url_of_its_daemon_is_told_to_set_it(
    client: AsyncClient, ksi_home: Path
) -> None:
    with pytest.raises(Unavailable, match="KSI_DATABASE_URL: set it here"):
        await opened(Home(ksi_home)).__aenter__()

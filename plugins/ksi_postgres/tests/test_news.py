"""Words between daemons that share a Postgres."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from ksi_daemon.protocol import Unavailable
from ksi_postgres.database import Database
from ksi_postgres.news import News, Waiters

SOON_S = 20.0


@asynccontextmanager
async def listening(database: Database, *many: News) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        tellers = [tasks.create_task(database.watch())]
        for news in many:
            await news.listen()
            tellers.append(tasks.create_task(news.run()))
        yield
        for teller in tellers:
            teller.cancel()
        for news in many:
            news.unlisten()


async def test_a_word_is_heard_by_all_who_share_the_channel_and_by_nobody_else(
    database: Database,
) -> None:
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    mine, theirs = News("ksi_weather", database), News("ksi_weather", database)
    other = News("ksi_other", database)
    mine.on("rain", lambda about: heard.put_nowait(("mine", about)))
    theirs.on("rain", lambda about: heard.put_nowait(("theirs", about)))
    other.on("rain", lambda about: heard.put_nowait(("other", about)))

    async with listening(database, mine, theirs, other), asyncio.timeout(SOON_S):
        mine.tell("snow", "nobody listens")
        mine.tell("rain", "in Turin at noon")
        mine.tell("rain", "in Turin at noon")
        first = {await heard.get(), await heard.get()}
        other.tell("rain")
        last = await heard.get()

    assert first == {("mine", "in Turin at noon"), ("theirs", "in Turin at noon")}
    assert last == ("other", "")
    assert heard.empty()


async def test_what_could_not_be_told_is_told_when_postgres_is_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    news, execute = News("ksi_weather", database), database.execute
    heard: asyncio.Queue[str] = asyncio.Queue()
    refusals = [Unavailable("away", retry_after_s=0.1)]

    async def fail_once(sql: str, *arguments: object) -> str:
        if refusals:
            raise refusals.pop()
        return await execute(sql, *arguments)

    monkeypatch.setattr(database, "execute", fail_once)
    news.on("rain", heard.put_nowait)

    async with listening(database, news), asyncio.timeout(SOON_S):
        news.tell("rain", "1")
        news.tell("rain", "2")
        told = [await heard.get(), await heard.get()]

    assert told == ["1", "2"]
    assert not refusals


async def test_who_waits_is_told_when_words_may_have_been_missed(database: Database) -> None:
    news, waiters, unheard = News("ksi_weather", database), Waiters(), asyncio.Event()
    news.on("rain", waiters.wake)
    news.on_missed(waiters.wake_all)
    news.on_missed(unheard.set)

    async with listening(database, news), asyncio.timeout(SOON_S):
        with waiters.watching("turin") as turin, waiters.watching("oslo") as oslo:
            news.tell("rain", "turin")
            await asyncio.wait({turin})
            is_oslo_quiet = not oslo.done()
            await _lose_the_connection(database)
            await unheard.wait()
            told = oslo.done()

    assert is_oslo_quiet
    assert told


async def _lose_the_connection(database: Database) -> None:
    connection = await asyncpg.connect(database.logins.admin)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'ksi watch' AND datname = current_database()"
        )
    finally:
        await connection.close()

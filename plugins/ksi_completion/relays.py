"""Hands what turns say to other daemons, while somebody follows them there."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

import msgspec

from ksi_completion.events import StreamChunk, StreamRestarted
from ksi_completion.settings import CompletionSettings
from ksi_completion.store import Store
from ksi_completion.streams import Hub, Live, Position
from ksi_completion.work import Work
from ksi_daemon.protocol import Busy, TimedOut, Unavailable
from ksi_postgres.news import News, Waiters

FOLLOW_S: Final = 2.0  # how often it is said that a turn is followed
WANTED_S: Final = 3 * FOLLOW_S
MAX_WANTED: Final = 10_000
MAX_ROWS: Final = 200

DECODER: Final = msgspec.json.Decoder(list[StreamChunk])
DIED: Final = "the daemon that was at it ended"


class Relays:
    """Both ends: turns at work here that are followed elsewhere, and the other way round.

    Args:
        settings: The plugin's.
        store: Carries what is said.
        hub: Has it.
        news: Tells who follows what.
    """

    def __init__(self, settings: CompletionSettings, store: Store, hub: Hub, news: News) -> None:
        self._settings = settings
        self._store = store
        self._hub = hub
        self._news = news
        self._waiters = Waiters()
        self._wanted: dict[str, float] = {}  # runs, and until when somebody follows them elsewhere
        self._asked: dict[str, float] = {}  # runs, and when we said last that we follow them
        self._works: dict[str, Work] = {}
        self._relaying: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        news.on("follow", self._followed)
        news.on("relayed", self._waiters.wake)
        news.on_missed(self._waiters.wake_all)

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        self._wanted.clear()
        for work in self._works.values():
            work.live.wake()
        await tasks.__aexit__(None, None, None)

    # -- where the turn is at work --------------------------------------------------------------

    @contextmanager
    def at_work(self, work: Work) -> Iterator[None]:
        """Hand on what a turn says for as long as it is at work here, if somebody wants it."""
        self._works[work.run] = work
        try:
            self._begin(work)
            yield
        finally:
            self._works.pop(work.run, None)

    def _followed(self, run: str) -> None:
        now = time.monotonic()
        if len(self._wanted) >= MAX_WANTED:
            self._wanted = {each: until for each, until in self._wanted.items() if until > now}
        if len(self._wanted) < MAX_WANTED:
            self._wanted[run] = now + WANTED_S
        work = self._works.get(run)
        if work is not None:
            self._begin(work)

    def _is_wanted(self, run: str) -> bool:
        return self._wanted.get(run, 0.0) > time.monotonic()

    def _begin(self, work: Work) -> None:
        if work.run not in self._relaying and self._is_wanted(work.run) and self._tasks is not None:
            self._relaying.add(work.run)
            self._tasks.create_task(self._relay(work), name=f"relay {work.run}")

    async def _relay(self, work: Work) -> None:
        try:
            await self._store.end_relay(work.tenant, work.run)  # what another daemon has left
            await self._hand_on(work)
            await self._store.end_relay(work.tenant, work.run)
        except (Unavailable, TimedOut, Busy):
            pass  # who follows asks again
        finally:
            self._relaying.discard(work.run)

    async def _hand_on(self, work: Work) -> None:
        live = work.live
        position = Position(live.base, live.attempt)
        chunks: list[StreamChunk] = []
        if live.attempt > 1:
            chunks.append(StreamRestarted(attempt=live.attempt, offset=live.base, why=DIED))
        while self._is_wanted(work.run) and self._is_there(live):
            chunks += live.read(position)
            if chunks:
                text = msgspec.json.encode(chunks).decode()
                await self._store.hand_on(work.tenant, work.run, text)
                chunks = []
            if not live.has_news(position):
                await live.news(at_most_s=FOLLOW_S)
            await asyncio.sleep(self._settings.relay_s)

    def _is_there(self, live: Live) -> bool:
        return live.result is None and self._hub.find(live.run) is live

    # -- where it is followed -------------------------------------------------------------------

    @contextmanager
    def following(self, run: str) -> Iterator["asyncio.Future[None]"]:
        """Say that a turn is followed here, and yield a future that is done when there is more."""
        now = time.monotonic()
        if now - self._asked.get(run, 0.0) >= FOLLOW_S:
            if len(self._asked) >= MAX_WANTED:
                self._asked.clear()
            self._asked[run] = now
            self._news.tell("follow", run)
        with self._waiters.watching(run) as news:
            yield news

    async def read(self, tenant: str, run: str, after: int) -> tuple[list[StreamChunk], int]:
        """Return what a turn has said, and where to read on."""
        rows = await self._store.handed_on(tenant, run, after, MAX_ROWS)
        chunks = [chunk for row in rows for chunk in DECODER.decode(row["chunks"])]
        return chunks, rows[-1]["id"] if rows else after

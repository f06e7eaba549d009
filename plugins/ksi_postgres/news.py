"""Carries words between daemons that share a Postgres, and wakes who waits in this one."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ksi_daemon.protocol import Busy, TimedOut, Unavailable
from ksi_postgres.database import Database
from ksi_postgres.queries import load_queries

SQL: Final = load_queries(__package__, "news.sql")
MAX_WORDS: Final = 10_000
TELL_AGAIN_S: Final = 0.5

Listener = Callable[[str], None]


class News:
    """Tells the other daemons, and hears them.

    Words are gathered and told together, apart from what they are about: a commit that notifies
    holds up every other one that does.

    Args:
        channel: The plugin's own, such as ``ksi_weather``.
        database: Where the daemons meet.
    """

    def __init__(self, channel: str, database: Database) -> None:
        self._channel = channel
        self._database = database
        self._listeners: dict[str, Listener] = {}
        self._missed: list[Callable[[], None]] = []
        self._words: dict[str, None] = {}
        self._has_words = asyncio.Event()

    def on(self, word: str, listener: Listener) -> None:
        """Have a function called with what a word is about."""
        self._listeners[word] = listener

    def on_missed(self, listener: Callable[[], None]) -> None:
        """Have a function called when words may have been missed."""
        self._missed.append(listener)

    def tell(self, word: str, about: str = "") -> None:
        """Have every daemon hear a word, this one included."""
        if len(self._words) < MAX_WORDS:  # who waits looks by himself from time to time
            self._words[f"{word} {about}"] = None
            self._has_words.set()

    async def run(self) -> None:
        """Tell what there is, for ever."""
        while True:
            await self._has_words.wait()
            self._has_words.clear()
            words, self._words = list(self._words), {}
            try:
                await self._database.execute(SQL["tell"], self._channel, words)
            except (Unavailable, TimedOut, Busy):
                await asyncio.sleep(TELL_AGAIN_S)
                self._words = dict.fromkeys([*words, *self._words][:MAX_WORDS])
                self._has_words.set()

    async def listen(self) -> None:
        """Hear what is told from now on."""
        await self._database.listen(self._channel, self._hear)

    def unlisten(self) -> None:
        """Hear no more."""
        self._database.unlisten(self._channel, self._hear)

    def _hear(self, payload: str | None) -> None:
        if payload is None:
            for missed in self._missed:
                missed()
            return
        word, _, about = payload.partition(" ")
        listener = self._listeners.get(word)
        if listener is not None:
            listener(about)


class Waiters:
    """Those in this process who wait for something to happen to a thing that has an id."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    @contextmanager
    def watching(self, about: str) -> Iterator["asyncio.Future[None]"]:
        """Yield a future that is done when there may be news of a thing; look after that."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[about].add(future)
        try:
            yield future
        finally:
            waiting = self._waiting[about]
            waiting.discard(future)
            if not waiting:
                del self._waiting[about]

    def wake(self, about: str) -> None:
        """Tell those who wait for news of a thing to look."""
        for future in self._waiting.get(about, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        """Tell all to look: something may have been missed."""
        for about in list(self._waiting):
            self.wake(about)

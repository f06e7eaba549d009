"""Carries word of runs between daemons, and wakes who waits for it."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from ksi_daemon.protocol import Busy, TimedOut, Unavailable
from ksi_postgres.database import Database
from ksi_workflows.store import Store

CHANNEL: Final = "ksi_workflows"
MAX_WORDS: Final = 10_000
TELL_AGAIN_S: Final = 0.5

Waiting = asyncio.Future[None]


class Waiters:
    """Those in this process who wait for runs to end."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[Waiting]] = defaultdict(set)

    def add(self, run_id: str) -> Waiting:
        """Return a future that is done when there may be news of the run."""
        future: Waiting = asyncio.get_running_loop().create_future()
        self._waiting[run_id].add(future)
        return future

    def remove(self, run_id: str, future: Waiting) -> None:
        """Forget a future; whoever called `add` does so in the end."""
        waiting = self._waiting.get(run_id, set())
        waiting.discard(future)
        if not waiting:
            self._waiting.pop(run_id, None)

    def wake(self, run_id: str) -> None:
        """Tell those who wait for a run to look."""
        for future in self._waiting.get(run_id, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        """Tell all to look: something may have been missed."""
        for run_id in list(self._waiting):
            self.wake(run_id)


class News:
    """Tells the other daemons, and hears them.

    Words are gathered and told together, away from what they are about: a commit that notifies
    holds up every other one that does.

    Args:
        store: Tells.
        heard: Called with each word and what it is about.
        missed: Called when words may have been missed.
    """

    def __init__(
        self,
        store: Store,
        heard: Callable[[str, str], None],
        missed: Callable[[], None],
    ) -> None:
        self._store = store
        self._heard = heard
        self._missed = missed
        self._words: dict[str, None] = {}
        self._has_words = asyncio.Event()

    def tell(self, word: str, about: str = "") -> None:
        """Have every daemon hear a word, this one included."""
        if len(self._words) < MAX_WORDS:  # who waits looks by himself from time to time
            self._words[f"{word} {about}"] = None
            self._has_words.set()

    async def run_teller(self) -> None:
        """Tell what there is, for ever."""
        while True:
            await self._has_words.wait()
            self._has_words.clear()
            words, self._words = list(self._words), {}
            try:
                await self._store.announce(words)
            except (Unavailable, TimedOut, Busy):
                await asyncio.sleep(TELL_AGAIN_S)
                self._words = dict.fromkeys([*words, *self._words][:MAX_WORDS])
                self._has_words.set()

    async def listen(self, database: Database) -> None:
        """Hear what is told from now on."""
        await database.listen(CHANNEL, self._hear)

    def unlisten(self, database: Database) -> None:
        """Hear no more."""
        database.unlisten(CHANNEL, self._hear)

    def _hear(self, payload: str | None) -> None:
        if payload is None:
            self._missed()
        else:
            word, _, about = payload.partition(" ")
            self._heard(word, about)

"""Locks conversations: no turn of a locked one starts, for others who need the same order."""

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from ksi_completion.conversations import Conversations, LockTaken, Viewer
from ksi_completion.events import ConversationLock, ConversationUnlock, Lock
from ksi_daemon.protocol import Busy, Conflict, KsiError
from ksi_postgres.database import Database
from ksi_postgres.patience import until_there

CHANNEL: Final = "ksi_completion_locks"
LOOK_AGAIN_S: Final = 15.0  # should a word be lost
MAX_EXPIRIES: Final = 10_000  # beyond them the sweep starts what a lock has held up

Place = tuple[str, str]  # a tenant and a conversation
StartNext = Callable[[str, str], Awaitable[object]]


class Locks:
    """Takes locks and gives them back.

    A lock is in the table at once, so that no further turn starts; then the turn that runs is
    waited for. Word of turns that end and locks that are given back comes from Postgres, whichever
    daemon they are of.

    Args:
        store: Keeps the locks.
        start_next: Starts the turn that waits in a conversation, if there is one.
    """

    def __init__(self, store: Conversations, start_next: StartNext) -> None:
        self._store = store
        self._start_next = start_next
        self._waiting: defaultdict[Place, set[asyncio.Event]] = defaultdict(set)
        self._expiries: dict[Place, float] = {}
        self._has_expiries = asyncio.Event()

    # -- asked ----------------------------------------------------------------------------------

    async def take(self, viewer: Viewer, request: ConversationLock) -> Lock:
        """Lock a conversation, and wait for the turn that runs, or for who has locked it.

        Raises:
            NotFound: There is no such conversation, or it is not the sender's.
            Busy: It was locked, or a turn ran, for longer than ``wait_s``.
            Conflict: ``lock_id`` is not that of the lock any more.
        """
        lock_id = request.lock_id or secrets.token_hex(16)
        place = (viewer.tenant, request.conversation_id)
        taking = _Taking(self._store, viewer, request, lock_id)
        is_taken = False
        with self._hearing(place) as news:
            try:
                await taking.wait(news)
                is_taken = True
            finally:
                if not is_taken and taking.may_be_held and request.lock_id is None:
                    with contextlib.suppress(KsiError):  # it expires; what is raised goes on
                        await self._release(viewer, request.conversation_id, lock_id, force=False)
        taken = taking.taken
        assert taken is not None
        assert taken.locked_at is not None
        assert taken.expires_at is not None
        self._expect(place, request.ttl_s)
        return Lock(
            conversation_id=request.conversation_id,
            owner=taken.owner or request.owner,
            locked_at=taken.locked_at,
            expires_at=taken.expires_at,
            lock_id=lock_id,
        )

    async def give_back(self, viewer: Viewer, request: ConversationUnlock) -> bool:
        """Give a lock back, start what has waited, and say whether there was one.

        Raises:
            NotFound: There is no such conversation, or it is not the sender's.
            Conflict: It is somebody else's, and not to be broken.
        """
        verdict = await self._release(
            viewer, request.conversation_id, request.lock_id, force=request.force
        )
        if verdict == "another":
            raise Conflict(
                f"the lock of {request.conversation_id!r} is not the one that lock_id names: name "
                "its own, or break it with force",
                details={"kind": "not_yours"},
            )
        return verdict == "ok"

    async def held(self, viewer: Viewer, limit: int) -> tuple[Lock, ...]:
        """Return the locks that hold, the oldest first."""
        return tuple(
            Lock(
                conversation_id=row["conversation"],
                owner=row["owner"],
                locked_at=row["locked_at"],
                expires_at=row["expires_at"],
            )
            for row in await self._store.locks(viewer, limit)
        )

    async def _release(
        self, viewer: Viewer, conversation: str, lock_id: str | None, *, force: bool
    ) -> str:
        verdict = await self._store.give_lock_back(viewer, conversation, lock_id, force=force)
        if verdict != "another":
            self._expiries.pop((viewer.tenant, conversation), None)
            await self._start_next(viewer.tenant, conversation)
        return verdict

    # -- news -----------------------------------------------------------------------------------

    async def listen(self, database: Database) -> None:
        """Hear of turns that end and locks that are given back."""
        await database.listen(CHANNEL, self._heard)

    def unlisten(self, database: Database) -> None:
        """Hear no more."""
        database.unlisten(CHANNEL, self._heard)

    def _heard(self, payload: str | None) -> None:
        if payload is None:  # words were missed: all look
            told = [news for each in self._waiting.values() for news in each]
        else:
            tenant, _, conversation = payload.rpartition(" ")
            told = list(self._waiting.get((tenant, conversation), ()))
        for news in told:
            news.set()

    @contextmanager
    def _hearing(self, place: Place) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        self._waiting[place].add(news)
        try:
            yield news
        finally:
            self._waiting[place].discard(news)
            if not self._waiting[place]:
                del self._waiting[place]

    # -- expiry ---------------------------------------------------------------------------------

    def _expect(self, place: Place, ttl_s: float) -> None:
        if len(self._expiries) < MAX_EXPIRIES:
            self._expiries[place] = asyncio.get_running_loop().time() + ttl_s
            self._has_expiries.set()

    async def run_expiry(self) -> None:
        """Start what waits behind locks that this daemon gave out once they expire, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            self._has_expiries.clear()
            due = [place for place, at in self._expiries.items() if at <= clock()]
            for place in due:
                del self._expiries[place]
                await self._start_next(*place)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(self._expiries.values(), default=None)):
                    await self._has_expiries.wait()


class _Taking:
    """One attempt to lock a conversation, as long as it may take."""

    def __init__(
        self, store: Conversations, viewer: Viewer, request: ConversationLock, lock_id: str
    ) -> None:
        self._store = store
        self._viewer = viewer
        self._request = request
        self._lock_id = lock_id
        self.taken: LockTaken | None = None
        self.is_held = False
        self.may_be_held = False  # also where nobody knows, since the answer was lost
        self.is_done = False

    async def wait(self, news: asyncio.Event) -> None:
        """Take the lock, again at each news, until no turn runs any more."""
        request = self._request
        await self._ask(request.wait_s)
        if not self.is_done and request.wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(request.wait_s):
                    while not self.is_done:
                        await self._sleep(news)
                        news.clear()
                        await until_there(lambda: self._ask(0.0))
        elif self.is_done and request.wait_s > 0:
            await self._ask(0.0)  # what it was given to wait is not part of its time
        if not self.is_done:
            raise self._refusal()

    async def _ask(self, more_s: float) -> None:
        request = self._request
        self.may_be_held = True
        taken = await self._store.take_lock(
            self._viewer,
            request.conversation_id,
            lock_id=self._lock_id,
            owner=request.owner,
            ttl_s=request.ttl_s + more_s,
            prolonged=self.is_held or request.lock_id is not None,
        )
        self.taken = taken
        self.is_held = self.may_be_held = taken.verdict in ("ok", "running")
        self.is_done = taken.verdict == "ok"
        if taken.verdict == "lost":
            raise Conflict(
                f"the lock of {request.conversation_id!r} does not hold any more: it expired, or "
                "was broken; take another without a lock_id",
                details={"kind": "lost"},
            )

    async def _sleep(self, news: asyncio.Event) -> None:
        """Wait for news, or for the end of the lock that stands in the way."""
        assert self.taken is not None
        until = None if self.is_held else self.taken.expires_at
        left_s = LOOK_AGAIN_S
        if until is not None:
            left_s = min(left_s, max((until - datetime.now(UTC)).total_seconds(), 0.0) + 0.01)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await news.wait()

    def _refusal(self) -> Busy:
        assert self.taken is not None
        conversation = self._request.conversation_id
        if self.is_held:
            return Busy(
                f"a turn of the conversation {conversation!r} runs: wait longer with wait_s",
                retry_after_s=1.0,
                details={"kind": "running"},
            )
        assert self.taken.expires_at is not None
        left_s = max((self.taken.expires_at - datetime.now(UTC)).total_seconds(), 0.01)
        return Busy(
            f"the conversation {conversation!r} is locked by {self.taken.owner!r} until "
            f"{self.taken.expires_at:%Y-%m-%d %H:%M:%S} UTC",
            retry_after_s=left_s,
            details={"kind": "locked", "owner": self.taken.owner},
        )

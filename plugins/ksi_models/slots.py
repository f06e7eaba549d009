"""Shares a provider's slots fairly among those who wait for one."""

import asyncio
import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final, Literal

from ksi_daemon.protocol import Busy

MINUTE_S: Final = 60.0
RETRY_S: Final = 5.0


class Ticket:
    """A place in the queue, then a slot; give it back with `release`, granted or not."""

    __slots__ = ("_granted", "_slots", "key")

    def __init__(self, slots: "Slots", key: Hashable) -> None:
        self.key = key
        self._slots = slots
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_granted(self) -> bool:
        """Whether it is its turn."""
        return self._granted.done() and not self._granted.cancelled()

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._granted.cancelled()

    def grant(self) -> None:
        """Say that it is its turn."""
        self._granted.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its turn; say whether it has come in time."""
        if not self._granted.done():
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(self._granted)
            except TimeoutError:
                return self.is_granted
        return True

    def release(self) -> None:
        """Give the slot back, or leave the queue; a second time does nothing."""
        self._slots.give_back(self)

    def forget(self) -> bool:
        """Take no part any more; say whether it held a slot."""
        held = self.is_granted
        if not held:
            self._granted.cancel()
        return held


class Slots:
    """At most so many calls at once, and so many begun in a minute.

    Who waits is served in turn: one call of each key, round and round; of one key's calls the one
    with the lowest priority number, then the oldest.

    Args:
        max_concurrent: Calls at once.
        per_minute: Calls begun in any minute; 0 is as many as come.
        max_waiting: Calls that may wait.
        name: The provider, for errors.
    """

    def __init__(
        self, max_concurrent: int, per_minute: int, max_waiting: int, name: str = "the provider"
    ) -> None:
        self.max_concurrent = max_concurrent
        self.running = 0
        self.waiting = 0
        self._per_minute = per_minute
        self._max_waiting = max_waiting
        self._name = name
        self._queues: OrderedDict[Hashable, list[tuple[int, int, Ticket]]] = OrderedDict()
        self._held: set[Ticket] = set()
        self._number = itertools.count()
        self._begun: deque[float] = deque()
        self._paused_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, key: Hashable, priority: int = 0) -> Ticket:
        """Queue up for a slot, which may be granted at once.

        Raises:
            Busy: Too many wait already.
        """
        ticket = Ticket(self, key)
        if not self.waiting and self._is_free():
            self._grant(ticket)
            return ticket
        if self.waiting >= self._max_waiting:
            raise Busy(
                f"{self.waiting} calls wait for {self._name} already (models.max_waiting)",
                retry_after_s=RETRY_S,
                details={"kind": "queue_full", "setting": "models.max_waiting"},
            )
        queue = self._queues.setdefault(key, [])
        heapq.heappush(queue, (priority, next(self._number), ticket))
        self.waiting += 1
        self._serve()
        return ticket

    def give_back(self, ticket: Ticket) -> None:
        """Take a slot back, or a place in the queue."""
        if ticket in self._held:
            self._held.remove(ticket)
            self.running -= 1
        elif not ticket.is_gone and not ticket.forget():
            self.waiting -= 1
            self._leave(ticket)
        self._serve()

    def _leave(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.key]
        queue[:] = [entry for entry in queue if entry[2] is not ticket]
        heapq.heapify(queue)
        if not queue:
            del self._queues[ticket.key]

    def pause(self, for_s: float) -> None:
        """Begin no call for a time, as the provider wishes."""
        self._paused_until = max(self._paused_until, self._now() + for_s)

    def delay(self) -> tuple[Literal["slot", "rate"], float | None]:
        """Say what a call that comes now has to wait for, and how long where that is known."""
        wait = self._rate_delay()
        return ("rate", wait) if wait > 0 else ("slot", None)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _rate_delay(self) -> float:
        now = self._now()
        delay = self._paused_until - now
        if self._per_minute:
            while self._begun and self._begun[0] <= now - MINUTE_S:
                self._begun.popleft()
            if len(self._begun) >= self._per_minute:
                delay = max(delay, self._begun[0] + MINUTE_S - now)
        return max(delay, 0.0)

    def _is_free(self) -> bool:
        return self.running < self.max_concurrent and self._rate_delay() <= 0

    def _grant(self, ticket: Ticket) -> None:
        self.running += 1
        self._held.add(ticket)
        if self._per_minute:
            self._begun.append(self._now())
        ticket.grant()

    def _serve(self) -> None:
        """Grant what can be granted, each key in its turn."""
        while self._queues and self.running < self.max_concurrent:
            delay = self._rate_delay()
            if delay > 0:
                self._serve_later(delay)
                return
            key, queue = self._queues.popitem(last=False)
            _, _, ticket = heapq.heappop(queue)
            if queue:
                self._queues[key] = queue  # to the end of the round
            self.waiting -= 1
            self._grant(ticket)

    def _serve_later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._serve)

    def close(self) -> None:
        """End its timer."""
        if self._timer is not None:
            self._timer.cancel()

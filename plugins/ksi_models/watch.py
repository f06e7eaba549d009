"""Bounds each wait for a stream's next piece, at next to no cost for a piece."""

import asyncio
from typing import Any


class Watch:
    """Ends a wait that takes too long, with one timer for all waits of a stream.

    Moving a timer for each piece would cost more than all else that is done with it. So the timer
    goes off when the first wait should have ended, sees that a later one is on, and is set anew.
    """

    __slots__ = ("_cancelling", "_deadline", "_expired", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._cancelling = 0
        self._expired = False

    def begin(self, limit_s: float, until: float) -> None:
        """Begin a wait of the current task, for so long and not past that time of the loop's."""
        task = self._task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        deadline = self._loop.time() + limit_s
        if deadline > until:
            deadline = until
        self._deadline = deadline
        timer = self._timer
        if timer is None or deadline < timer.when():
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(deadline, self._look)

    def end(self) -> bool:
        """End the wait; say whether it was ended because it took too long, and by nobody else."""
        task, self._task = self._task, None
        if not self._expired:
            return False
        assert task is not None
        self._expired = False
        return task.uncancel() <= self._cancelling

    def close(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._task is None:
            return  # nobody waits; the next wait sets it again
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self._expired = True
            self._task.cancel()

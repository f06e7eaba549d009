"""Keeps background tasks running, and says loudly when one can't be kept."""

import asyncio
import itertools
import logging
import random
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal

from msgspec import Struct

log = logging.getLogger(__name__)


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """How often a task may be restarted before it is given up.

    The delay doubles from ``first_delay_s`` to ``max_delay_s``, each with up to a quarter more by
    chance, so that what failed together does not return together. More than ``max_restarts`` in
    ``window_s`` is giving up.
    """

    first_delay_s: float = 0.1
    max_delay_s: float = 30.0
    max_restarts: int = 10
    window_s: float = 300.0


def is_cancelled(error: BaseException) -> bool:
    """Say whether an error is the cancellation of the task that runs here, not one made up."""
    return isinstance(error, asyncio.CancelledError) and is_stopping()


def told(error: BaseException) -> str:
    """Return an error's kind and message, also of one that can't be made a string."""
    return "".join(traceback.format_exception_only(error)).rstrip()


def is_stopping() -> bool:
    """Say whether the task that runs here is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Unit:
    """A supervised task and what became of it."""

    def __init__(
        self, name: str, run: Callable[[], Awaitable[None]], policy: RestartPolicy
    ) -> None:
        self.name = name
        self.run = run
        self.policy = policy
        self.state: Literal["running", "backing_off", "finished", "failed"] = "running"
        self.restarts = 0
        self.last_error: str | None = None
        self.task: asyncio.Task[None] | None = None
        self._deaths: deque[float] = deque(maxlen=policy.max_restarts + 1)

    def next_delay_s(self) -> float | None:
        """Note a death; return how long to wait before the next start, ``None`` to give up."""
        now = time.monotonic()
        self._deaths.append(now)
        recent = sum(now - died <= self.policy.window_s for died in self._deaths)
        if recent > self.policy.max_restarts:
            return None
        delay = min(self.policy.first_delay_s * 2.0 ** (recent - 1), self.policy.max_delay_s)
        return delay * (1 + random.random() / 4)


class Supervisor:
    """Runs named tasks in one group; a task that fails is restarted by its policy."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.units: dict[str, Unit] = {}

    def start(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        policy: RestartPolicy | None = None,
    ) -> Unit:
        """Keep ``run`` running; it ends when it returns, or when it was restarted too often.

        Where a task of that name runs already, the unit's name gets a number.
        """
        unit = Unit(self._free(name), run, policy or RestartPolicy())
        self.units[unit.name] = unit
        unit.task = self.tasks.create_task(self._keep(unit), name=unit.name)
        return unit

    def _free(self, name: str) -> str:
        for number in itertools.count(2):
            taken = self.units.get(name)
            if taken is None or taken.state == "failed":
                break
            name = f"{name.removesuffix(f' ({number - 1})')} ({number})"
        return name

    def stop(self, name: str) -> None:
        """Cancel a task and forget it."""
        unit = self.units.pop(name, None)
        if unit is not None and unit.task is not None:
            unit.task.cancel()

    async def stop_all(self, owner: str) -> None:
        """Cancel the tasks that bear their owner's name before a colon, and wait for their end."""
        names = [name for name in self.units if name.startswith(f"{owner}: ")]
        tasks = {task for name in names if (task := self.units[name].task) is not None}
        for name in names:
            self.stop(name)
        if tasks:
            await asyncio.wait(tasks)

    async def _keep(self, unit: Unit) -> None:
        while True:
            unit.state = "running"
            try:
                await unit.run()
            except BaseException as error:
                if is_cancelled(error):
                    raise
                unit.last_error = told(error)
                log.exception("a background task failed", extra={"task": unit.name})
                if is_stopping():
                    return  # its clean-up failed: to start it again would lose the cancellation
            else:
                unit.state = "finished"
                if self.units.get(unit.name) is unit:  # else another has taken its place
                    del self.units[unit.name]
                return
            delay = unit.next_delay_s()
            if delay is None:
                unit.state = "failed"
                log.critical(
                    "a background task is given up",
                    extra={"task": unit.name, "restarts": unit.restarts, "error": unit.last_error},
                )
                return
            unit.state = "backing_off"
            unit.restarts += 1
            await asyncio.sleep(delay)

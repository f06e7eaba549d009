"""Brings agents from what is so to what is wanted: at each change, and by a sweep what was left."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Self

import msgspec

from ksi_agents.agents import Agents, Given, Going, Kept
from ksi_agents.events import AgentChanged, Phase
from ksi_agents.settings import AgentsSettings
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Busy, KsiError, TimedOut, Unavailable
from ksi_postgres.news import Waiters

log = logging.getLogger(__name__)

AWAY: Final = (Unavailable, TimedOut, Busy)
AT_ONCE: Final = 64
AT_START: Final = 100_000
SWEPT: Final = 500
TIDY_S: Final = 3600.0

Give = Callable[[Kept, Given, str | None], Awaitable[None]]
Start = Callable[[Kept], Awaitable[None]]
Cancel = Callable[[Kept], Awaitable[None]]


class Reconciler:
    """Does what agents need next: starts them, gives them their messages, ends what they are at.

    Args:
        agents: Keeps them.
        bus: Tells of their changes.
        settings: How often to look for those that nobody has taken on, and how long to keep those
            that have ended.

    Attributes:
        waiters: Those who wait for a change of an agent, by `about`.
    """

    def __init__(self, agents: Agents, bus: Bus, settings: AgentsSettings) -> None:
        self.waiters = Waiters()
        self._agents = agents
        self._bus = bus
        self._sweep_s = settings.sweep_s
        self._ended_kept_s = settings.ended_kept_s
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[tuple[str, ...], asyncio.Task[None]] = {}
        self._slots = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(AT_ONCE))
        self._looks = asyncio.Event()
        self._give: Give
        self._start: Start
        self._cancel: Cancel

    def attach(self, *, give: Give, start: Start, cancel: Cancel) -> None:
        """Name who gives messages, who starts agents, and who ends what they are at."""
        self._give, self._start, self._cancel = give, start, cancel

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Break off what is being done: whoever sweeps next does it."""
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        for task in list(self._running.values()):
            task.cancel()
        await tasks.__aexit__(None, None, None)

    # -- at each change -------------------------------------------------------------------------

    def go_on(self, going: Going, *, was: str | None = None, is_due: bool = False) -> None:
        """Do what an agent needs next, without waiting; tell if its phase has changed."""
        agent, given = going.agent, going.given
        key = (agent.tenant, agent.id)
        if agent.phase == "Terminated":
            self.tell(agent, was)
            if agent.at_work is not None:
                self.begin(("cancel", *key), lambda: self._cancel(agent))
        elif given is not None and agent.at_work == given.number:
            self.begin(("give", *key, str(given.number)), lambda: self._give(agent, given, was))
        else:
            self.tell(agent, was)
            if agent.phase in ("Pending", "Starting"):
                self._start_when_due(agent, is_due=is_due)

    def _start_when_due(self, agent: Kept, *, is_due: bool) -> None:
        if agent.next_start_at is None or is_due:
            key = ("start", agent.tenant, agent.id, str(agent.starts))
            self.begin(key, lambda: self._start(agent))
            return
        delay_s = (agent.next_start_at - datetime.now(UTC)).total_seconds()
        asyncio.get_running_loop().call_later(max(delay_s, 0.0) + 0.01, self._looks.set)

    def tell(
        self, agent: Kept, was: str | None, run: str | None = None, *, always: bool = False
    ) -> None:
        """Publish that an agent's phase has changed, if it has, or why it is in it."""
        self.waiters.wake(about(agent))
        if was is None or (was == agent.phase and not always):
            return
        change = AgentChanged(
            name=agent.name,
            phase=agent.phase,
            was=msgspec.convert(was or None, Phase | None),
            reason=agent.reason,
            run_id=run,
        )
        with acting_as(agent.context):
            self._bus.publish("agent:changed", change)

    def begin(self, key: tuple[str, ...], work: Callable[[], Awaitable[None]]) -> None:
        """Do something in the background, unless it is being done; the key begins with its kind."""
        if self._tasks is not None and key not in self._running:
            task = self._tasks.create_task(self._do(key, work), name=" ".join(key))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))

    def doing(self, *key: str) -> asyncio.Task[None] | None:
        """Return what is being done in the background under a key."""
        return self._running.get(key)

    async def _do(self, key: tuple[str, ...], work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._slots[key[0]]:  # what is slow to start holds up no message
                await work()
        except KsiError as error:
            log.warning(
                "an agent could not be seen to; it is tried again",
                extra={"what": " ".join(key), "error": error.message},
            )
        except Exception:
            log.exception("an agent could not be seen to", extra={"what": " ".join(key)})

    # -- what was left --------------------------------------------------------------------------

    async def run(self) -> None:
        """Look now and then, for ever; first after everything that is not at rest."""
        loop, at_start = asyncio.get_running_loop(), True
        tidied_at = loop.time()
        while True:
            self._looks.clear()
            try:
                found = await self.sweep(at_start=at_start)
                at_start = False
                if found >= SWEPT:
                    continue
                if loop.time() - tidied_at > TIDY_S:
                    tidied_at = loop.time()
                    await self._agents.forget_past(self._ended_kept_s)
            except AWAY:
                pass  # Postgres is away; there will be another time
            try:
                async with asyncio.timeout(self._sweep_s):
                    await self._looks.wait()
            except TimeoutError:
                pass

    async def sweep(self, *, at_start: bool = False) -> int:
        """See to agents that are due; return how many there were."""
        limit = AT_START if at_start else SWEPT
        found = await self._agents.due(at_start=at_start, limit=limit)
        for going in found:
            self.go_on(going, is_due=True)
        return 0 if at_start else len(found)


def about(agent: Kept) -> str:
    """Return under what one waits for changes of an agent."""
    return f"{agent.tenant}/{agent.id}"

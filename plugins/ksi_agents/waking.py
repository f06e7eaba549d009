"""Gives agents work by themselves: at times, or when an event happens.

Times are schedules of the workflows, so that each is had once, by whichever daemon; an event is
seen by the daemon in which it happens.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from ksi_agents.agents import Agents, Kept
from ksi_agents.definition import Definition, Wake
from ksi_agents.events import AgentSend
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, event_observer
from ksi_daemon.protocol import Context, Event, KsiError, NotFound
from ksi_workflows.api import current_run, step, workflow
from ksi_workflows.events import WorkflowSchedule, WorkflowUnschedule

log = logging.getLogger(__name__)

MAX_GLOBS: Final = 200
MAX_TOLD: Final = 4000  # characters of an event


class WakeArgs(Struct, frozen=True, kw_only=True):
    """Whom to tell what, when a time has come."""

    agent: str
    prompt: str


class Waking:
    """Keeps what wakes which agent.

    Args:
        bus: Sends messages, and sets schedules.
        agents: Who they are.
        watch: Has an object's decorated methods called from now on.
    """

    def __init__(self, bus: Bus, agents: Agents, watch: Callable[[object], None]) -> None:
        self._bus = bus
        self._agents = agents
        self._watch = watch
        self._globs: set[str] = set()
        self._awake: dict[tuple[str, str], tuple[Wake, ...]] = {}

    @workflow("agent-wake")
    async def wake(self, args: WakeArgs) -> None:
        """Tell an agent that its time has come."""
        await self.tell(current_run().tenant, args.agent, args.prompt, current_run().id)

    @step(name="tell")
    async def tell(self, tenant: str, agent: str, prompt: str, message_id: str) -> None:
        """Send an agent a message; told again it is the same one."""
        with acting_as(Context("", tenant=tenant)):
            request = AgentSend(agent=agent, prompt=prompt, message_id=message_id)
            try:
                await self._bus.request("agent:send", request)
            except NotFound:
                return  # it has ended meanwhile

    async def keep(self, agent: Kept, definition: Definition) -> None:
        """Have an agent woken as its definition says, and as no former one said."""
        if not definition.schedule and agent.starts == 1:
            return
        times = [wake for wake in definition.schedule if wake.cron is not None]
        with acting_as(Context("", tenant=agent.tenant)):
            for number, wake in enumerate(times):
                await self._bus.request("workflow:schedule", _schedule(agent.name, number, wake))
            await self._drop(agent.name, len(times))
        self._keep_events(agent, definition)

    async def drop(self, agent: Kept) -> None:
        """Have an agent woken no more."""
        self._awake.pop((agent.tenant, agent.name), None)
        with acting_as(Context("", tenant=agent.tenant)):
            await self._drop(agent.name, 0)

    async def _drop(self, name: str, first: int) -> None:
        """Drop the schedules of an agent from a number on: they have no gaps."""
        number = first
        while True:
            try:
                request = WorkflowUnschedule(name=_name(name, number))
                await self._bus.request("workflow:unschedule", request)
            except NotFound:
                return
            number += 1

    # -- events ---------------------------------------------------------------------------------

    async def watch_again(self) -> None:
        """Watch for the events that wake those that were spawned before this daemon began."""
        for agent in await self._agents.awaiting_events():
            self._keep_events(agent, await self._agents.definition_of(agent, agent.tenant))

    def _keep_events(self, agent: Kept, definition: Definition) -> None:
        wakes = tuple(wake for wake in definition.schedule if wake.event is not None)
        self._awake.pop((agent.tenant, agent.name), None)
        if wakes:
            self._awake[agent.tenant, agent.name] = wakes
        for glob in {wake.event for wake in wakes if wake.event is not None} - self._globs:
            if len(self._globs) >= MAX_GLOBS:
                log.warning(
                    "an agent is not woken by events: too many globs are watched",
                    extra={"agent": agent.name, "glob": glob, "most": MAX_GLOBS},
                )
                return
            self._globs.add(glob)
            self._watch(_watcher(glob, self._happened))

    async def _happened(self, glob: str, event: Event) -> None:
        for (tenant, name), wakes in list(self._awake.items()):
            of_event = event.context.tenant or "default"
            if of_event != tenant or event.context.agent == name:  # it does not wake itself
                continue
            for wake in wakes:
                if wake.event == glob:
                    await self._tell_of(event, tenant, name, wake)

    async def _tell_of(self, event: Event, tenant: str, name: str, wake: Wake) -> None:
        told = f"{wake.prompt}\n\nWhat happened: {event.name} {event.data!r}"[:MAX_TOLD]
        message_id = f"event:{event.context.id}:{_digest(wake.prompt)}"
        with acting_as(Context("", tenant=tenant)):
            request = AgentSend(agent=name, prompt=told, message_id=message_id)
            try:
                await self._bus.request("agent:send", request)
            except KsiError:
                return  # its mailbox is full, or it has ended: what happens is no one's order


def _watcher(glob: str, happened: Callable[[str, Event], Awaitable[None]]) -> object:
    """Return an object that watches the events of a glob."""

    class Watcher:
        @event_observer(glob)
        async def see(self, event: Event) -> None:
            await happened(glob, event)

    return Watcher()


def _schedule(agent: str, number: int, wake: Wake) -> WorkflowSchedule:
    return WorkflowSchedule(
        name=_name(agent, number),
        workflow="agent-wake",
        args=WakeArgs(agent=agent, prompt=wake.prompt),
        cron=wake.cron,
        timezone=wake.timezone,
    )


def _name(agent: str, number: int) -> str:
    return f"agent:{agent}:{number}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]

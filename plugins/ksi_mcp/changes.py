"""Tells other programs that what they are offered has changed."""

import asyncio
from typing import Final
from urllib.parse import quote

import msgspec

from ksi_agents.events import AgentChanged
from ksi_completion.events import CompletionResult
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, event_observer
from ksi_daemon.protocol import Context, Event
from ksi_mcp.events import Kind, McpChanged, McpUpdated
from ksi_memory.events import MemoryChanged

APART_S: Final = 0.5  # much may change at once
MAX_WAITING: Final = 1000
ENDED: Final = ("Completed", "Terminated")  # agents of these phases are not listed
FILES: Final = "files"


class Changes:
    """Gathers what changes, and tells of it once.

    Args:
        bus: Publishes.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lists: dict[McpChanged, None] = {}  # few, so that none is ever left out
        self._updates: dict[McpUpdated, None] = {}
        self._news = asyncio.Event()

    def tools_changed(self) -> None:
        """Note that there are other tools than before."""
        self._note_list(McpChanged(kind="tools"))

    def _changed(self, kind: Kind, event: Event) -> None:
        if event.outcome is None or event.outcome.error is None:
            self._note_list(McpChanged(kind=kind, tenant=event.context.tenant))

    def _note_list(self, change: McpChanged) -> None:
        self._lists[change] = None
        self._news.set()

    def _updated(self, event: Event, kind: str, name: str) -> None:
        uri = f"ksi://{kind}/{quote(name, safe='')}"
        if len(self._updates) < MAX_WAITING:
            self._updates[McpUpdated(uri=uri, tenant=event.context.tenant)] = None
        self._news.set()

    async def run(self) -> None:
        """Tell of what changes, for as long as the plugin runs."""
        while True:
            await self._news.wait()
            await asyncio.sleep(APART_S)
            self._news.clear()
            self._tell()

    def _tell(self) -> None:
        lists, self._lists = self._lists, {}
        updates, self._updates = self._updates, {}
        with acting_as(Context("")):  # the sidecar is of no tenant, and sees to each one's own
            for changed in lists:
                self._bus.publish("mcp:changed", changed)
            for updated in updates:
                self._bus.publish("mcp:updated", updated)

    @event_observer("agent:changed")
    def agent(self, event: Event) -> None:
        """See agents come, change and go."""
        agent = msgspec.convert(event.data, AgentChanged, from_attributes=True)
        self._updated(event, "agents", agent.name)
        if agent.was is None or agent.was in ENDED or agent.phase in ENDED:
            self._changed("resources", event)

    @event_observer("agent:apply", outcomes=True)
    @event_observer("agent:remove", outcomes=True)
    def definition(self, event: Event) -> None:
        """See agents defined anew, and definitions go: each is a prompt."""
        self._changed("prompts", event)

    @event_observer("completion:result")
    def turn(self, event: Event) -> None:
        """See conversations begin, and go on."""
        result = msgspec.convert(event.data, CompletionResult, from_attributes=True)
        self._updated(event, "conversations", result.conversation_id)
        if result.turn == 1:
            self._changed("resources", event)

    @event_observer("conversation:create", outcomes=True)
    @event_observer("conversation:fork", outcomes=True)
    @event_observer("conversation:import", outcomes=True)
    @event_observer("conversation:rename", outcomes=True)
    @event_observer("conversation:archive", outcomes=True)
    @event_observer("conversation:delete", outcomes=True)
    def conversations(self, event: Event) -> None:
        """See conversations come, get other names, and go."""
        self._changed("resources", event)

    @event_observer("memory:changed")
    def remembered(self, event: Event) -> None:
        """See files come into the memory."""
        changed = msgspec.convert(event.data, MemoryChanged, from_attributes=True)
        if changed.table == FILES:
            self._changed("resources", event)

    @event_observer("memory:forgot")
    def forgot(self, event: Event) -> None:
        """See files go, or something else that nobody can tell from one any more."""
        self._changed("resources", event)

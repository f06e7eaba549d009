"""Tells other programs that what they are offered has changed."""

import asyncio
from typing import Final
from urllib.parse import quote

from ksi_agents.events import AgentChanged
from ksi_completion.events import CompletionResult
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, event_observer
from ksi_daemon.protocol import Context, Event
from ksi_mcp.events import McpChanged, McpUpdated

APART_S: Final = 0.5  # much may change at once
MAX_WAITING: Final = 1000

Change = McpChanged | McpUpdated


class Changes:
    """Gathers what changes, and tells of it once.

    Args:
        bus: Publishes.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[Change, None] = {}
        self._news = asyncio.Event()

    def tools_changed(self) -> None:
        """Note that there are other tools than before."""
        self._note(McpChanged(kind="tools"))

    def _note(self, change: Change) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting[change] = None
        self._news.set()

    async def run(self) -> None:
        """Tell of what changes, for as long as the plugin runs."""
        while True:
            await self._news.wait()
            await asyncio.sleep(APART_S)
            self._news.clear()
            waiting, self._waiting = list(self._waiting), {}
            with acting_as(Context("")):  # the sidecar is of no tenant, and sees to each one's own
                for change in waiting:
                    is_list = isinstance(change, McpChanged)
                    self._bus.publish("mcp:changed" if is_list else "mcp:updated", change)

    @event_observer("agent:changed")
    def agent(self, event: Event) -> None:
        """See agents come, change and go."""
        if isinstance(event.data, AgentChanged):
            tenant = event.context.tenant
            self._note(
                McpUpdated(uri=f"ksi://agents/{quote(event.data.name, safe='')}", tenant=tenant)
            )
            if event.data.was is None:
                self._note(McpChanged(kind="resources", tenant=tenant))

    @event_observer("agent:apply", outcomes=True)
    def applied(self, event: Event) -> None:
        """See agents defined anew: each definition is a prompt."""
        self._note(McpChanged(kind="prompts", tenant=event.context.tenant))

    @event_observer("agent:remove", outcomes=True)
    def removed(self, event: Event) -> None:
        """See definitions go."""
        self._note(McpChanged(kind="prompts", tenant=event.context.tenant))

    @event_observer("completion:result")
    def turn(self, event: Event) -> None:
        """See conversations go on."""
        if isinstance(event.data, CompletionResult):
            uri = f"ksi://conversations/{quote(event.data.conversation_id, safe='')}"
            self._note(McpUpdated(uri=uri, tenant=event.context.tenant))

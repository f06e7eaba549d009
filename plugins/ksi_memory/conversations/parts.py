"""Puts together what makes conversations memory, and memory a part of conversations."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Busy, TimedOut, Unavailable
from ksi_daemon.supervisor import RestartPolicy
from ksi_memory.conversations.compaction import Compaction
from ksi_memory.conversations.dreaming import Dreaming
from ksi_memory.conversations.extraction import Extraction
from ksi_memory.conversations.handlers import MomentHandlers
from ksi_memory.conversations.recall import Recall
from ksi_memory.conversations.remembering import Remembering
from ksi_memory.conversations.store import ConversationStore
from ksi_memory.conversations.upkeep import Upkeep
from ksi_memory.items.store import Items
from ksi_memory.querying.search import Hit, Search
from ksi_memory.settings import MemorySettings
from ksi_memory.tools import MemoryTools
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_tools.api import Tools
from ksi_workflows.api import Workflows

FOR_EVER: Final = RestartPolicy(first_delay_s=0.2, max_delay_s=10.0, max_restarts=1_000_000)


@contextmanager
def conversing(plugin: Plugin, items: Items, search: Search) -> Iterator[None]:
    """Remember conversations, and recall before their turns, while the plugin runs.

    Args:
        plugin: The memory.
        items: Keeps what is remembered.
        search: Finds it.
    """
    settings: MemorySettings = plugin.settings
    workflows = plugin.service(Workflows)
    store = ConversationStore(plugin.service(Database))
    upkeep = Upkeep(plugin.bus, store, settings)
    compaction = Compaction(store, items, plugin.bus, upkeep, settings)
    extraction = Extraction(items, upkeep, settings)
    remembering = Remembering(store, items, compaction, extraction, plugin.bus, workflows, settings)
    dreaming = Dreaming(store, items, remembering, upkeep, plugin.bus, workflows, settings)
    workflows.register(remembering.remember, dreaming.dream, dreaming.dream_everywhere)

    async def find(whose: Whose, question: str, tables: Sequence[str], limit: int) -> Sequence[Hit]:
        # That something was loaded is no answer; what was loaded may be one.
        found = await search.search(whose, question, tables=tables, limit=limit, loads=False)
        return found.results

    async def schedule() -> None:
        await workflows.ready()
        while True:
            try:
                await dreaming.schedule()
            except (Unavailable, TimedOut, Busy):
                await asyncio.sleep(1.0)
            else:
                return

    plugin.add(
        Recall(store, find, settings),
        remembering,
        MomentHandlers(store, remembering, dreaming, plugin.bus, workflows),
    )
    plugin.start_task("reading", remembering.run_reading, FOR_EVER)
    plugin.start_task("sweeps", remembering.run_sweeps, FOR_EVER)
    plugin.start_task("dreams", schedule, FOR_EVER)
    with plugin.service(Tools).add(MemoryTools(plugin.bus, items), provider=plugin.name):
        yield

"""The hooks of the memory."""

from collections.abc import AsyncIterator
from typing import Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_memory.conversations.parts import conversing
from ksi_memory.embedding.choice import Choice
from ksi_memory.embedding.handlers import EmbeddingHandlers
from ksi_memory.embedding.service import Embedding
from ksi_memory.events import EmbedderStats
from ksi_memory.items.handlers import ItemHandlers
from ksi_memory.items.reasons import Reasons
from ksi_memory.items.schema_handlers import SchemaHandlers
from ksi_memory.items.store import Items
from ksi_memory.items.transfer import Transfer
from ksi_memory.loading.handlers import Content
from ksi_memory.querying.finding import Finding
from ksi_memory.querying.handlers import QueryHandlers
from ksi_memory.querying.search import Search
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.reader import Reader

FOR_EVER: Final = RestartPolicy(first_delay_s=0.5, max_delay_s=30.0, max_restarts=1_000_000)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(
        requires=("postgres", "workflows", "tools", "models", "completion"),
        settings=MemorySettings,
    )


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Remember while the daemon runs."""
    settings: MemorySettings = plugin.settings
    database = plugin.service(Database)
    choice = Choice(plugin.home, settings.embedder_threads, plugin.bus)
    embedding = Embedding(database, settings, choice)
    items = Items(database, settings, plugin.bus.publish)
    content = Content(database, settings, plugin.home, plugin.bus.publish)
    finding = Finding(database, plugin.service(Reader), settings)
    search = Search(database, embedding)

    async def embedders(whose: Whose) -> tuple[EmbedderStats, ...]:
        return await embedding.vectors.stats(whose.tenant, embedding.id)

    plugin.add(
        content,
        ItemHandlers(items, Reasons(items, plugin.bus), Transfer(database, settings), embedders),
        SchemaHandlers(items),
        EmbeddingHandlers(embedding),
        QueryHandlers(finding, search, settings),
    )
    plugin.start_task("embedding", embedding.run, FOR_EVER)
    plugin.start_task("counts", embedding.fold, FOR_EVER)
    plugin.start_task("uploads", content.run_sweeps, FOR_EVER)
    with conversing(plugin, items, search):
        yield
    await embedding.close()

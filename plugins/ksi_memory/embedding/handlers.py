"""Answers ``memory:reembed``."""

from ksi_daemon.event_system import event_handler
from ksi_memory.embedding.service import Embedding
from ksi_memory.events import MemoryReembed, MemoryReembedding
from ksi_memory.whose import current_whose


class EmbeddingHandlers:
    """Has vectors made anew.

    Args:
        embedding: Makes them.
    """

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding

    @event_handler("memory:reembed", timeout_s=0)
    async def reembed(self, request: MemoryReembed) -> MemoryReembedding:
        """Make vectors anew, by another model if one is named; the old ones answer meanwhile."""
        return await self._embedding.reembed(
            current_whose(), request.model, only_set_aside=request.retry_set_aside
        )

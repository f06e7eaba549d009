"""What the tests of searching share."""

import asyncio
from pathlib import Path
from typing import Any

from ksi_memory.embedding.choice import Choice
from ksi_memory.embedding.embedder import Embedder
from ksi_memory.embedding.service import Embedding
from ksi_memory.settings import MemorySettings
from ksi_postgres.database import Database


class Fixed(Choice):
    """Has one embedder, whatever is asked for, and others by their names."""

    def __init__(self, embedder: Embedder | None, *others: Embedder) -> None:
        super().__init__(Path("/nowhere"), 0, None)  # type: ignore[arg-type]  # nothing is sent
        self.embedder = embedder
        self.others = {each.name: each for each in (embedder, *others) if each is not None}

    async def find(self, spec: str) -> Embedder | None:
        return self.embedder

    async def find_again(self, name: str, dimension: int) -> Embedder | None:
        return self.others.get(name)


def embedding_of(
    database: Database, embedder: Embedder | None, *others: Embedder, **settings: Any
) -> Embedding:
    made = MemorySettings(embedder="test", **settings)
    return Embedding(database, made, Fixed(embedder, *others))


async def until_idle(embedding: Embedding, timeout_s: float = 30.0) -> None:
    """Wait until nothing waits for a vector, other than what was set aside."""
    seen: tuple[Any, ...] = ()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                embedding.idle.clear()
                known = await embedding.vectors.embedders()
                is_complete = any(each.id == embedding.id and each.is_complete for each in known)
                seen = (embedding.id, known)
                if is_complete and embedding.id is not None:
                    lease_s = await embedding.vectors.next_lease_end(embedding.id)
                    seen = (*seen, lease_s)
                    if lease_s is None:
                        return
                await embedding.idle.wait()
    except TimeoutError as error:
        raise AssertionError(f"it is not idle, but as it was seen last: {seen}") from error


async def drain(embedding: Embedding) -> None:
    """Embed what waits, and stop."""
    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(embedding.run())
        await until_idle(embedding)
        worker.cancel()

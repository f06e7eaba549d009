"""A memory of a benchmark's own: a server, a database with all migrations, a worker."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from ksi_memory.embedding.choice import Choice
from ksi_memory.embedding.embedder import Embedder
from ksi_memory.embedding.service import Embedding
from ksi_memory.settings import MemorySettings
from ksi_postgres import migrations, store
from ksi_postgres.database import Database
from ksi_postgres.embedded import EmbeddedServer
from ksi_postgres.logins import Logins
from ksi_postgres.place import SUPERUSER
from ksi_postgres.settings import PostgresSettings
from ksi_postgres.testing import TestServer, plugin_requirements

NAME = "memory"


@asynccontextmanager
async def memory_database(settings: PostgresSettings) -> AsyncIterator[tuple[Database, Logins]]:
    """Yield a database with the tables of all plugins; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="ksi-b-", ignore_cleanup_errors=True) as home:
        os.chmod(home, 0o711)  # noqa: PTH101  no wait: a directory of this moment
        server = EmbeddedServer(Path(home) / "pg", settings, fsync=False)
        await server.start()
        made = TestServer(server.host, dict(server.passwords))
        try:
            maintenance = await asyncpg.connect(made.logins("postgres").admin)
            await maintenance.execute(f"CREATE DATABASE {NAME} TEMPLATE template0")
            await maintenance.close()
            known = migrations.find_migrations(migrations.in_order(plugin_requirements()))
            passwords = {role: text for role, text in made.passwords.items() if role != SUPERUSER}
            logins = made.logins(NAME)
            await store.make_ready(logins, settings, known, passwords=passwords)
            database = Database(logins, settings)
            await database.open()
            try:
                yield database, logins
            finally:
                await database.close()
        finally:
            await server.stop()


class Local(Choice):
    """Has embedders that need no provider; each is loaded once."""

    def __init__(self) -> None:
        super().__init__(Path.cwd(), 0, None)  # type: ignore[arg-type]  # nothing is sent
        self._loaded: dict[str, Embedder | None] = {}

    async def find(self, spec: str) -> Embedder | None:
        """Return the embedder of that name."""
        if spec not in self._loaded:
            self._loaded[spec] = await super().find(spec)
        return self._loaded[spec]


async def embed_all(embedding: Embedding) -> None:
    """Have all that waits embedded, and then stop; with no embedder nothing waits."""
    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(embedding.run())
        await embedding.looked.wait()
        while embedding.id is not None and not await _is_done(embedding):
            await embedding.idle.wait()
        worker.cancel()


async def _is_done(embedding: Embedding) -> bool:
    embedding.idle.clear()
    number = embedding.id
    assert number is not None
    known = await embedding.vectors.embedders()
    if not any(each.id == number and each.is_complete for each in known):
        return False
    return await embedding.vectors.next_lease_end(number) is None


def embedding_for(database: Database, spec: str, choice: Choice) -> Embedding:
    """Make what embeds, by a setting."""
    return Embedding(database, MemorySettings(embedder=spec, question_timeout_s=60), choice)

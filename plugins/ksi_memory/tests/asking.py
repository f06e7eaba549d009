"""A daemon that answers questions, with a double of the search."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from ksi_client import AsyncClient, LocalTransport
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.testing import installed_plugins, module_plugin, running_daemon
from ksi_memory.events import Item
from ksi_memory.items.store import Items
from ksi_memory.querying.finding import Finding
from ksi_memory.querying.handlers import QueryHandlers
from ksi_memory.settings import MemorySettings
from ksi_memory.whose import Whose
from ksi_postgres.database import Database
from ksi_postgres.logins import Logins
from ksi_postgres.reader import Reader
from ksi_postgres.testing import settings_for


class Answer(Struct, frozen=True):
    """What the double of the search answers."""

    results: tuple[Any, ...]
    embedder: str | None = "test"
    notes: tuple[str, ...] = ()
    truncated: bool = False
    weights: dict[str, float] | None = None


class Hit(Struct, frozen=True, kw_only=True):
    """A hit of it."""

    id: str
    table: str
    key: str
    version: int
    score: float
    owner: str
    title: str
    body: str
    category: str | None
    attributes: dict[str, Any]
    session: str | None
    starts_at: Any
    ends_at: Any
    valid_from: Any
    valid_to: Any
    features: dict[str, float]


class Searching:
    """A double of the search: finds two documents, and keeps what it is asked."""

    def __init__(self, items: Items) -> None:
        self.items = items
        self.asked: dict[str, Any] = {}

    async def search(self, whose: Whose, question: str, **clauses: Any) -> Answer:
        self.asked = {"question": question, "user": whose.user, **clauses}
        found = [
            await self.items.get(whose, key=key, table="resources") for key in ("rent.md", "b.md")
        ]
        hits = tuple(map(hit_of, found))
        return Answer(hits, weights={"cos": 0.7})


def hit_of(item: Item) -> Hit:
    names = set(Hit.__struct_fields__) - {"score", "features"}
    columns = {name: getattr(item, name) for name in names}
    return Hit(**columns, score=1.0, features={"cos": 0.5})


@asynccontextmanager
async def asking_daemon(
    home: Path, logins: Logins, searching: Searching
) -> AsyncIterator[AsyncClient]:
    """Yield a client of a daemon that answers questions and does nothing else."""

    async def lifespan(plugin: Any) -> AsyncIterator[None]:
        finding = Finding(plugin.service(Database), plugin.service(Reader), MemorySettings())
        plugin.add(QueryHandlers(finding, searching, MemorySettings()))
        yield

    asking = module_plugin(
        "asking",
        ksi_plugin=hookimpl(lambda: PluginInfo(requires=("postgres",))),
        ksi_lifespan=hookimpl(lifespan),
    )
    postgres = installed_plugins("postgres")
    chosen = settings_for(logins)
    async with (
        running_daemon(home, *postgres, asking, settings=chosen) as daemon,
        AsyncClient(LocalTransport(daemon)) as connected,
    ):
        yield connected

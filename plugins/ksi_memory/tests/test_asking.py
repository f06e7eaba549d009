"""The memory asked in a daemon with all its plugins: what is upserted is searched and walked."""

import pytest

from ksi_client import AsyncClient
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_memory.events import MemoryFound

PLUGINS = ("postgres", "workflows", "tools", "models", "completion", "memory")


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    return installed_plugins(*PLUGINS)


@pytest.fixture
def ksi_settings() -> list[str]:
    return ["memory.embedder=test"]


@pytest.fixture
async def remembering(client: AsyncClient) -> AsyncClient:
    """A client of a daemon that knows of a rent."""
    items = [
        {"key": "rent.md", "title": "Rent", "body": "Anna pays the rent on the third of May."},
        {"key": "tea.md", "body": "Green tea wants water of eighty degrees."},
    ]
    people = [{"key": "Anna", "edges": [{"to": "Ben", "relation": "knows"}]}, {"key": "Ben"}]
    await client.request("memory:upsert", {"table": "resources", "items": items})
    await client.request("memory:upsert", {"table": "entities", "items": people})
    return client


async def test_what_was_told_is_found_by_every_mode(remembering: AsyncClient) -> None:
    async def keys(text: str) -> list[str]:
        found = await remembering.request("memory:query", {"text": text}, result_type=MemoryFound)
        return [each.key for each in found.results]

    assert (await keys("who is paying rent?"))[0] == "rent.md"
    assert (await keys("SEARCH rents FROM resources LIMIT 1")) == ["rent.md"]
    assert await keys("LOOKUP tea.md") == ["tea.md"]
    assert await keys("FUZZY ana") == ["Anna"]
    assert await keys("TRAVERSE anna") == ["Anna", "Ben"]
    assert "Anna" in await keys("TIMELINE anna")


async def test_a_search_shows_the_match_and_explains_itself(remembering: AsyncClient) -> None:
    found = await remembering.request(
        "memory:query", {"text": "SEARCH rents EXPLAIN LIMIT 1"}, result_type=MemoryFound
    )

    [rent] = found.results
    assert "**rent**" in rent.snippet
    assert rent.source == "owner"
    assert rent.features is not None
    assert found.weights is not None
    assert rent.features.keys() == found.weights.keys()
    score = sum(value * found.weights[name] for name, value in rent.features.items())
    assert score == pytest.approx(rent.score, abs=1e-3)

"""Vectors as a client meets them: made behind, told in answers, made anew."""

import asyncio
from typing import Any

import pytest

from ksi_client import AsyncClient, Denied, InvalidData
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins

NEEDED = {"postgres", "workflows", "tools", "models", "completion", "memory"}
ITEMS = (
    {"key": "a", "body": "We painted the lake at sunset."},
    {"key": "b", "body": "The violin lessons are on Tuesdays."},
)


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    """Copy a database that has the engine's tables."""
    return engine_template


@pytest.fixture
def ksi_settings() -> list[str]:
    """Make vectors that need no model."""
    return ["memory.embedder=test"]


@pytest.fixture
def ksi_plugins() -> list[EntryPoint]:
    """The memory, and what it needs."""
    return installed_plugins(*NEEDED)


async def embedded(client: AsyncClient, model: str, vectors: int) -> dict[str, Any]:
    """Return the figures of a model once it has so many vectors and answers."""
    async with asyncio.timeout(30):
        while True:
            stats = await client.request("memory:stats")
            for each in stats["embedders"]:
                if each["model"] == model and each["is_current"] and each["vectors"] == vectors:
                    found = await client.request("memory:query", {"text": "SEARCH violin"})
                    if found.get("embedder") == model and not found.get("notes"):
                        return dict(each)


async def test_what_is_remembered_is_found_by_its_meaning_and_another_model_takes_over(
    client: AsyncClient,
) -> None:
    await client.request("memory:upsert", {"table": "moments", "items": ITEMS})
    told = await embedded(client, "test-1", 2)

    found = await client.request(
        "memory:query", {"mode": "search", "query": "paintings of lakes", "explain": True}
    )
    anew = await client.request("memory:reembed", {})
    other = await client.request("memory:reembed", {"model": "test/letters"})
    provided = await embedded(client, "test/letters", 2)

    assert (told["waiting"], told["set_aside"]) == (0, 0)
    assert found["results"][0]["key"] == "a"
    assert found["results"][0]["features"]["cos"] > 0.1
    assert found["weights"]["cos"] == 0.7
    assert anew["model"] == "test-1"
    assert other["model"] == "test/letters"
    assert provided["dimension"] != told["dimension"]


async def test_a_user_makes_no_other_model_the_embedder(client: AsyncClient) -> None:
    with pytest.raises(Denied, match="owner"):
        await client.request("memory:reembed", {"model": "test/x"}, context={"user": "ann"})
    with pytest.raises(InvalidData, match="give auto, none"):
        await client.request("memory:reembed", {"model": "nonsense"})

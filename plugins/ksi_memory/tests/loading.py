"""What tests of loading share."""

from pathlib import Path
from typing import Any

from ksi_client import AsyncClient
from ksi_memory import events as e

NEEDED = ("postgres", "workflows", "tools", "models", "completion", "memory")


async def load(
    client: AsyncClient, path: Path | None = None, **more: Any
) -> tuple[e.ContentLoaded, list[e.ContentProgress]]:
    """Load something; return what came of it, and what was told on the way."""
    request = {**more, **({} if path is None else {"path": str(path)})}
    chunks = [
        each async for each in client.stream("content:load", request, result_type=e.ContentChunk)
    ]
    assert isinstance(chunks[-1], e.ContentLoaded)
    progress = [each for each in chunks if isinstance(each, e.ContentProgress)]
    return chunks[-1], progress


async def item(client: AsyncClient, key: str, table: str | None = None) -> e.Item:
    """Return an item."""
    request = {"key": key, **({"table": table} if table else {})}
    found: e.Item = await client.request("memory:get", request, result_type=e.Item)
    return found


async def told_new(client: AsyncClient) -> list[int]:
    """Return how many files were new, as the moments of loads tell it."""
    listed = await client.request("memory:moments", {"type": "upload"})
    return [each["attributes"]["new"] for each in listed["items"]]


def skipped(progress: list[e.ContentProgress]) -> dict[str, str]:
    """Return why files were skipped, by their keys."""
    return {each.path: each.skipped for each in progress if each.skipped}

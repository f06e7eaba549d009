"""Files and directories become documents, chunks, rows and edges; whole, or not at all."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksi_client import AsyncClient, Denied, InvalidData
from ksi_daemon.daemon import Daemon
from ksi_daemon.protocol.events import Grants
from ksi_memory import events as e
from ksi_postgres.database import Database

NOTE = """---
title: The rent
description: What we pay, and when.
author: Ada Lovelace
tags: [home, money]
date: 2024-05-03
project: "[[flat]]"
weight: 2
---
# Rent

It is due on the first, see [the flat](flat.md) and [[people/bob|Bob]].

## Raises

There was one in 2023, says [the law](https://example.org/law).

```python
[[no link]]
```
"""


@pytest.fixture(scope="session")
def database_template(engine_template: str) -> str:
    return engine_template


@pytest.fixture
def ksi_plugins() -> list[Any]:
    from importlib.metadata import entry_points

    needed = ("postgres", "workflows", "tools", "models", "completion", "memory")
    return [point for point in entry_points(group="ksi") if point.name in needed]


async def load(
    client: AsyncClient, path: Path | None = None, **more: Any
) -> tuple[e.ContentLoaded, list[e.ContentProgress]]:
    request = {**more, **({} if path is None else {"path": str(path)})}
    chunks = [
        each
        async for each in client.stream("content:load", request, result_type=e.ContentChunk)
    ]
    assert isinstance(chunks[-1], e.ContentLoaded)
    progress = [each for each in chunks if isinstance(each, e.ContentProgress)]
    return chunks[-1], progress


async def item(client: AsyncClient, key: str, table: str | None = None) -> e.Item:
    request = {"key": key, **({"table": table} if table else {})}
    found: e.Item = await client.request("memory:get", request, result_type=e.Item)
    return found


def skipped(progress: list[e.ContentProgress]) -> dict[str, str]:
    return {each.path: each.skipped for each in progress if each.skipped}


async def test_a_markdown_file_becomes_a_document_its_chunks_and_edges(
    client: AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "rent.md").write_text(NOTE)
    (folder / "flat.md").write_text("# Flat\nThree rooms.\n")

    loaded, progress = await load(client, folder)

    assert (loaded.files, loaded.skipped_files, loaded.problems) == (2, 0, ())
    assert [each.path for each in progress] == ["notes/flat.md", "notes/rent.md"]
    assert [(each.files_done, each.files_found) for each in progress] == [(1, 2), (2, 2)]
    document = await item(client, "notes/rent.md", "ontologies")
    assert document.title == "The rent"
    assert document.body == "What we pay, and when."
    assert document.persons == ("ada lovelace",)
    assert document.starts_at is not None
    assert document.starts_at.isoformat() == "2024-05-03T00:00:00+00:00"
    assert document.attributes["tags"] == ["home", "money"]
    assert document.attributes["weight"] == 2
    assert {(each.relation, each.to) for each in document.edges} == {
        ("project", "notes/flat.md"),
        ("links_to", "notes/flat.md"),
        ("links_to", "people/bob"),
        ("links_to", "https://example.org/law"),
        ("has_section", "notes/rent.md#0"),
        ("has_section", "notes/rent.md#1"),
    }
    chunk = await item(client, "notes/rent.md#1", "ontologies")
    assert (chunk.session, chunk.place) == ("notes/rent.md", 1)
    assert chunk.attributes["headings"] == ["Rent", "Raises"]
    assert NOTE[chunk.attributes["offset"] :].startswith("## Raises")
    assert chunk.body == NOTE[chunk.attributes["offset"] :]
    file = await item(client, "notes/rent.md", "files")
    assert file.attributes["media_type"] == "text/markdown"
    assert file.attributes["size_bytes"] == len(NOTE)
    assert chunk.sources[0].item == document.sources[0].item == file.id
    assert set(loaded.dangling) == {"people/bob", "https://example.org/law"}

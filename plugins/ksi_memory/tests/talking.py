"""Has conversations with a model that says what a test wants, and waits until they are read."""

from typing import Any

import asyncpg

from ksi_client import AsyncClient
from ksi_daemon.loader import EntryPoint
from ksi_daemon.testing import installed_plugins
from ksi_postgres.logins import Logins

SETTINGS = ["memory.embedder=none", "memory.remember_after_s=0", "workflows.queue_poll_s=0.2"]
NEEDED = {"postgres", "workflows", "tools", "completion", "memory"}


def needed() -> list[EntryPoint]:
    """Return the memory and what it needs but for the models, for which a script stands."""
    return installed_plugins(*NEEDED)


async def talk(
    client: AsyncClient, conversation: str, *prompts: str, user: str | None = None, **more: Any
) -> list[Any]:
    """Say one thing after the other, and return what was told once each was read."""
    context = {} if user is None else {"user": user}
    told = []
    async with await client.subscribe("memory:remembered") as news:
        for prompt in prompts:
            asked = {"prompt": prompt, "conversation_id": conversation, **more}
            turn = await client.request("completion:async", asked, context=context)
            told.append(await read(news, conversation, 2 * turn["turn"]))
    return told


async def read(news: Any, conversation: str, message: int) -> Any:
    """Return what is told of a conversation once it was read through a message."""
    async for event in news:
        if event.data["conversation_id"] == conversation and event.data["through"] >= message:
            return event.data
    raise AssertionError("nothing was told")


async def remembered(
    client: AsyncClient, table: str, *, user: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return what is remembered in a table, by its keys, as a user sees it."""
    context = {} if user is None else {"user": user}
    listed = await client.request("memory:list", {"table": table}, context=context)
    found = {}
    for each in listed["items"]:
        found[each["key"]] = await client.request("memory:get", {"id": each["id"]}, context=context)
    return found


async def run_sql(logins: Logins, sql: str, *arguments: Any) -> None:
    """Run a statement past the walls."""
    connection = await asyncpg.connect(logins.admin)
    try:
        await connection.execute(sql, *arguments)
    finally:
        await connection.close()

"""Follows what happens to an agent: ``ksi agent logs --follow``."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

from ksi_agents import events as e
from ksi_cli.connection import connect_async
from ksi_client import AsyncClient, Subscription, Unavailable

LOOK_AGAIN_S: Final = 2.0  # some things happen that are no change of phase, and some elsewhere
PAGE: Final = 1000
ENDED: Final = ("Completed", "Terminated")


def follow(name: str, lines: int, show: Callable[[e.LogEntry], None]) -> None:
    """Show the last entries of an agent's log, then each that comes, until the agent has ended."""

    async def run() -> None:
        async with connect_async() as client, aclosing(followed(client, name, lines)) as entries:
            async for entry in entries:
                show(entry)

    asyncio.run(run())


async def followed(client: AsyncClient, name: str, lines: int) -> AsyncGenerator[e.LogEntry]:
    """Yield the last entries of an agent's log, then each that comes, until the agent has ended.

    Raises:
        NotFound: There is no such agent.
    """
    seen = None
    async with await client.subscribe("agent:changed") as changes:
        while True:
            with suppress(Unavailable):  # the daemon is being started again
                has_ended = await _has_ended(client, name)
                for entry in await _news(client, name, seen, lines):
                    yield entry
                    seen = entry.number
                if has_ended:
                    return
            await _change(changes, name)


async def _has_ended(client: AsyncClient, name: str) -> bool:
    asked = e.AgentGet(name=name, sections=())
    shown = await client.request("agent:get", asked, result_type=e.AgentShown)
    return shown.agent.phase in ENDED


async def _news(client: AsyncClient, name: str, seen: int | None, lines: int) -> list[e.LogEntry]:
    """Return what has come since an entry, the oldest first; without one, the last lines."""
    found: list[e.LogEntry] = []
    limit, before = (lines if seen is None else PAGE), None
    while True:
        asked = e.AgentLogs(name=name, limit=limit, before=before)
        listed = await client.request("agent:logs", asked, result_type=e.LogsListed)
        news = [entry for entry in listed.entries if entry.number > (seen or 0)]
        found.extend(news)
        if seen is None or len(news) < limit:
            return found[::-1]
        before = news[-1].number


async def _change(changes: Subscription, name: str) -> None:
    """Wait until an agent has changed, or for as long as may be before one looks again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_AGAIN_S):
            async for event in changes:
                if event.name.startswith("router:") or event.data["name"] == name:
                    return

"""Asks daemons that may be dead just now."""

import asyncio
from typing import Any

from ksi_client import AsyncClient, Busy, TimedOut, Unavailable


async def ask(client: AsyncClient, event: str, data: Any) -> Any:
    """Send an event until a daemon is there that can answer it."""
    while True:
        try:
            return await client.request(event, data)
        except (Unavailable, Busy, TimedOut) as error:
            await asyncio.sleep(error.retry_after_s or 0.1)

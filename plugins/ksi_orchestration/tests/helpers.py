"""What the tests of orchestrations have in common."""

import asyncio
from typing import Any

from ksi_client import AsyncClient

TALK = """
name: chat
roles:
  ann: {}
  bob: {}
stages:
  - name: talk
    kind: talk
    prompt: "{{ topic }}\\n{{ heard }}"
    until: {rounds: 2}
"""
CHORUS = """
name: chorus
roles:
  ann: {}
  bob: {}
  eve: {}
stages:
  - name: sing
    kind: parallel
    prompt: "{{ topic }}"
  - name: close
    kind: judge
    members: [ann]
    prompt: "{{ results.sing }}"
"""


async def start(client: AsyncClient, document: str = TALK, **more: Any) -> str:
    """Start an orchestration, and return its id."""
    data = {"document": document, "topic": "Rain", **more}
    started: str = (await client.request("orchestration:start", data))["id"]
    return started


async def ended(client: AsyncClient, which: str) -> Any:
    """Wait for an orchestration's end; return its status with its members."""
    after = 0
    async with asyncio.timeout(30):
        while True:
            ask = {"id": which, "after": after, "wait_s": 10}
            told = await client.request("orchestration:transcript", ask)
            after = told["after"]
            if told["status"] not in ("running", "paused") and not told["utterances"]:
                return await client.request("orchestration:status", {"id": which})


async def state(client: AsyncClient, which: str) -> Any:
    """Return how an orchestration stands."""
    told = await client.request("orchestration:status", {"id": which})
    return told["orchestration"]


async def said(client: AsyncClient, which: str) -> list[Any]:
    """Return all that was said."""
    ask = {"id": which, "limit": 1000}
    told = await client.request("orchestration:transcript", ask)
    found: list[Any] = told["utterances"]
    return found


async def spoken(client: AsyncClient, which: str) -> list[tuple[str, str]]:
    """Return who said what."""
    return [(each["member"], each.get("text", "")) for each in await said(client, which)]


async def change(client: AsyncClient, what: str, which: str, **more: Any) -> Any:
    """Pause, resume or stop an orchestration, or say something in it."""
    return await client.request(f"orchestration:{what}", {"id": which, **more})

"""What the tests of agents' lives have in common."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from ksi_client import AsyncClient


def document(**fields: Any) -> dict[str, Any]:
    """Return a definition as a document."""
    named = {"name": "clerk", "description": "Does things.", "prompt": "You are a clerk."}
    return {"text": msgspec.json.encode({**named, **fields}).decode(), "path": "clerk.json"}


async def spawned(
    client: AsyncClient, name: str = "bob", fields: dict[str, Any] | None = None, **more: Any
) -> Any:
    """Spawn an agent by a document of its own, and wait for its start."""
    data = {"document": document(**(fields or {})), "name": name, "wait_s": 10, **more}
    return await client.request("agent:spawn", data)


async def get(client: AsyncClient, name: str = "bob", *sections: str) -> Any:
    """Return an agent, or sections of it."""
    shown = await client.request("agent:get", {"name": name, "sections": list(sections)})
    shown["agent"].setdefault("waiting", 0)  # what is as it is by default is left out
    return shown if sections else shown["agent"]


async def until(
    client: AsyncClient, holds: Callable[[Any], bool], name: str = "bob", *sections: str
) -> Any:
    """Wait until something is so of an agent, and return it."""
    async with asyncio.timeout(20):
        while True:
            agent = await get(client, name, *sections)
            if holds(agent):
                return agent
            await asyncio.sleep(0.01)


async def send(client: AsyncClient, prompt: str = "hello", name: str = "bob", **more: Any) -> Any:
    """Send an agent a message."""
    return await client.request("agent:send", {"agent": name, "prompt": prompt, **more})


async def ask(client: AsyncClient, prompt: str = "hello", name: str = "bob", **more: Any) -> Any:
    """Ask an agent."""
    return await client.request("agent:ask", {"agent": name, "prompt": prompt, **more})


async def change(client: AsyncClient, what: str, *names: str, **more: Any) -> Any:
    """Pause, resume, restart or terminate agents."""
    return await client.request(f"agent:{what}", {"which": {"names": names}, **more})


async def conditions(client: AsyncClient, name: str = "bob") -> Any:
    """Return what is so of an agent, by type."""
    shown = await get(client, name, "conditions")
    return {each["type"]: each for each in shown["conditions"]}

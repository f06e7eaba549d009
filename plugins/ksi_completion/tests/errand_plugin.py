"""A plugin whose tools leave traces in a file, so that kills can be counted out."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_tools.api import Tools, tool


async def strike(file: str, what: str, before_s: float, after_s: float) -> str:
    """Have an effect, some time after the beginning and some time before the end."""
    trace(file, f"begin {what}")
    await asyncio.sleep(before_s)
    trace(file, f"effect {what}")
    await asyncio.sleep(after_s)
    return f"did {what}"


def trace(file: str, line: str) -> None:
    """Append a line, whole, whoever else does."""
    with Path(file).open("ab", buffering=0) as traces:
        traces.write(f"{line} {os.getpid()}\n".encode())


@tool(effects="read_only", name="errand_look")
async def look(file: str, what: str, before_s: float = 0.0, after_s: float = 0.0) -> str:
    """Look at something."""
    return await strike(file, what, before_s, after_s)


@tool(effects="idempotent", name="errand_set")
async def put(file: str, what: str, before_s: float = 0.0, after_s: float = 0.0) -> str:
    """Set something."""
    return await strike(file, what, before_s, after_s)


@tool(effects="effectful", name="errand_pay")
async def pay(file: str, what: str, before_s: float = 0.0, after_s: float = 0.0) -> str:
    """Pay for something."""
    return await strike(file, what, before_s, after_s)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Require the tools."""
    return PluginInfo(requires=("tools",))


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Bring the tools."""
    with plugin.service(Tools).add(look, put, pay, provider=plugin.name):
        yield

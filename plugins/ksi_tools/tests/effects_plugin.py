"""A plugin whose tools leave traces in a file, so that kills can be counted out."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec import Struct

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_tools.api import ToolContext, Tools, tool


class WorkSettings(Struct, frozen=True, kw_only=True):
    """Nothing to set."""


def trace(file: str, line: str) -> None:
    """Append a line, whole, whoever else does."""
    with Path(file).open("ab", buffering=0) as traces:
        traces.write(f"{line} {os.getpid()}\n".encode())


async def strike(file: str, after_s: float, attempt: int) -> str:
    """Have an effect, some time before the end; in a second attempt at once."""
    trace(file, "begin")
    trace(file, "effect")
    if attempt == 1:
        await asyncio.sleep(after_s)
    return f"struck in attempt {attempt}"


@tool(effects="effectful", name="strike")
async def strike_once(file: str, context: ToolContext, after_s: float = 0.0) -> str:
    """Have an effect that must not be repeated."""
    return await strike(file, after_s, context.attempt)


@tool(effects="idempotent", name="set")
async def put(file: str, context: ToolContext, after_s: float = 0.0) -> str:
    """Have an effect that may be repeated."""
    return await strike(file, after_s, context.attempt)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Require the tools."""
    return PluginInfo(requires=("tools",), settings=WorkSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Bring the tools."""
    with plugin.service(Tools).add(strike_once, put, provider=plugin.name):
        yield

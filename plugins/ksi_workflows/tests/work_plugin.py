"""A plugin whose workflows leave traces in a file, so that kills can be counted out."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec import Struct

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_workflows.api import Workflows, step, workflow


class WorkSettings(Struct, frozen=True, kw_only=True):
    """Where the traces go."""

    folder: str = ""


class Count(Struct, frozen=True, kw_only=True):
    """How many steps to take, and how long each takes."""

    file: str
    steps: int = 20
    step_s: float = 0.0


class Poison(Struct, frozen=True, kw_only=True):
    """What kills the daemon as long as its file is there."""

    file: str


def trace(file: str, line: str) -> None:
    """Append a line, whole, whoever else does."""
    with Path(file).open("ab", buffering=0) as traces:
        traces.write(f"{line} {os.getpid()}\n".encode())


@step(name="take")
async def take(args: Count, number: int) -> int:
    """Have an effect."""
    trace(args.file, f"begin {number}")
    await asyncio.sleep(args.step_s)
    trace(args.file, f"effect {number}")
    return number


@workflow("count")
async def count(args: Count) -> int:
    """Take steps one after the other."""
    total = 0
    for number in range(1, args.steps + 1):
        total += await take(args, number)
    return total


@step(name="swallow")
async def swallow(args: Poison) -> str:
    """Kill the daemon, as a fault in a library would."""
    trace(args.file, "swallowed")
    if await asyncio.to_thread(Path(f"{args.file}.poison").exists):
        os.kill(os.getpid(), signal.SIGKILL)
    return "sound"


@workflow("poison")
async def poison(args: Poison) -> str:
    """Do what kills the daemon."""
    return await swallow(args)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Require the engine."""
    return PluginInfo(requires=("workflows",), settings=WorkSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Register the workflows."""
    plugin.service(Workflows).register(count, poison)
    yield

"""Plugins that can't start, each in its own way, chosen by the entry point's attribute."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

from msgspec import Struct

from ksi_daemon.event_system import event_interceptor
from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Event


class BrokenSettings(Struct, frozen=True, kw_only=True):
    """Settings that somebody will mistype."""

    colour: str = "grey"
    max_things: int = 3


@hookimpl
def describe() -> PluginInfo:
    """Describe a plugin with settings."""
    return PluginInfo(settings=BrokenSettings)


@event_interceptor("*")
async def intercept(event: Event, proceed: Any) -> Any:
    """Stand in the way."""
    return await proceed(event)


@hookimpl
async def start_badly(plugin: Plugin) -> AsyncIterator[None]:
    """Fail."""
    raise OSError("no such database")
    yield


@hookimpl
async def start_never(plugin: Plugin) -> AsyncIterator[None]:
    """Block the loop."""
    threading.Event().wait()
    yield


@hookimpl
async def die(plugin: Plugin) -> AsyncIterator[None]:
    """Leave without a word."""
    os._exit(9)
    yield


@hookimpl
async def add_interceptor_later(plugin: Plugin) -> AsyncIterator[None]:
    """Add an interceptor when it is almost too late."""
    module = ModuleType("later")
    vars(module)["intercept"] = intercept
    plugin.add(module)
    yield


def _module(**members: Any) -> ModuleType:
    module = ModuleType("broken")
    vars(module).update(members)
    return module


settings = _module(ksi_plugin=describe)
gate = _module(intercept=intercept)
late_gate = _module(ksi_lifespan=add_interceptor_later)
start = _module(ksi_lifespan=start_badly)
never = _module(ksi_lifespan=start_never)
dying = _module(ksi_lifespan=die)


@hookimpl
def needs_other() -> PluginInfo:
    """Require the other, which requires this one."""
    return PluginInfo(requires=("ring_two",))


@hookimpl
def needs_one() -> PluginInfo:
    """Require the one, which requires this one."""
    return PluginInfo(requires=("ring_one",))


ring_one = _module(ksi_plugin=needs_other)
ring_two = _module(ksi_plugin=needs_one)


@hookimpl
async def stop_never(plugin: Plugin) -> AsyncIterator[None]:
    """Start, and then refuse to end, whatever happens."""
    yield
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


endless = _module(ksi_lifespan=stop_never)

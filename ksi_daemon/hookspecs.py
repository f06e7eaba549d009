"""The hooks that a plugin may implement; both are optional.

Hooks serve registration and life cycle only. Whatever happens at run time is an event.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pluggy
from msgspec import Struct

if TYPE_CHECKING:
    from ksi_daemon.plugin import Plugin

hookspec = pluggy.HookspecMarker("ksi")
hookimpl = pluggy.HookimplMarker("ksi")


class PluginInfo(Struct, frozen=True, kw_only=True):
    """What a plugin says of itself before it starts.

    Attributes:
        requires: Names of plugins that must be ready before this one starts.
        essential: Whether the daemon stops when this plugin can't start.
        settings: The frozen Struct of its section in ``ksi.toml``; every field has a default.
    """

    requires: tuple[str, ...] = ()
    essential: bool = False
    settings: type[Struct] | None = None


@hookspec
def ksi_plugin() -> PluginInfo:
    """Describe the plugin; called once, after its module was imported."""
    raise NotImplementedError


@hookspec
def ksi_lifespan(plugin: "Plugin") -> AsyncIterator[None]:
    """Start, ``yield`` once, stop.

    An async generator that runs in a task of its own, so that it may hold ``async with`` blocks
    across the yield. What it raises before the yield makes the start fail, with the reason shown.
    """
    raise NotImplementedError

"""A plugin of patterns alone, for daemons under test."""

from collections.abc import AsyncIterator

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_orchestration.pattern_handlers import PatternHandlers
from ksi_orchestration.patterns import Patterns


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo()


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Find patterns."""
    plugin.add(PatternHandlers(Patterns(plugin.home / "patterns")))
    yield

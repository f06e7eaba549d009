"""The hooks of the plugin."""

from ksi_daemon.hookspecs import PluginInfo, hookimpl


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres",))

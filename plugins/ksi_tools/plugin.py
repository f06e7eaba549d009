"""The hooks of the tools."""

from collections.abc import AsyncIterator
from typing import Final

from ksi_daemon.hookspecs import PluginInfo, hookimpl
from ksi_daemon.plugin import Plugin
from ksi_daemon.supervisor import RestartPolicy
from ksi_postgres.database import Database
from ksi_tools import builtin
from ksi_tools.calls import Calls
from ksi_tools.handlers import Handlers
from ksi_tools.registry import Tools
from ksi_tools.settings import ToolsSettings
from ksi_tools.store import Ledger, Permissions
from ksi_workflows.api import Workflows

FOR_EVER: Final = RestartPolicy(first_delay_s=0.5, max_delay_s=30.0, max_restarts=1_000_000)


@hookimpl
def ksi_plugin() -> PluginInfo:
    """Describe the plugin."""
    return PluginInfo(requires=("postgres", "workflows"), settings=ToolsSettings)


@hookimpl
async def ksi_lifespan(plugin: Plugin) -> AsyncIterator[None]:
    """Call tools while the daemon runs."""
    settings: ToolsSettings = plugin.settings
    workflows = plugin.service(Workflows)
    database = plugin.service(Database)
    ledger = Ledger(database, lambda: workflows.office)
    tools = Tools(
        plugin.daemon.router, plugin.bus, settings.max_registered, settings.max_output_bytes
    )
    tools.add(builtin, provider=plugin.name)
    for name, declared in settings.events.items():
        tools.add_event(
            declared.event,
            effects=declared.effects,
            name=name,
            description=declared.description,
            timeout_s=declared.timeout_s,
        )

    def is_fresh() -> bool:
        return workflows.store.lease.is_fresh

    async with Calls(settings, tools, ledger, is_fresh, workflows.ready, plugin.bus) as calls:
        handlers = Handlers(settings, tools, calls, ledger, Permissions(database), plugin.bus)
        plugin.offer(tools)
        plugin.add(handlers)
        plugin.start_task("sweeps", handlers.run_sweeps, FOR_EVER)
        plugin.start_task("tidying", handlers.run_tidying, FOR_EVER)
        yield

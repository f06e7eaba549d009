"""Has the runtimes tried, gives tools to those that hold, and tells what came of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ksi_daemon.event_system import event_contributor, event_handler, event_observer
from ksi_daemon.plugin import Plugin
from ksi_daemon.protocol import Event
from ksi_mcp.events import McpRuntimes, McpRuntimesTold
from ksi_mcp.runtimes.claude import NAME, ClaudeTrial
from ksi_mcp.runtimes.sessions import Sessions
from ksi_mcp.runtimes.verdicts import Verdicts
from ksi_models.runtimes import Runtimes
from ksi_system.events import HealthCheck, HealthChecked


class Service:
    """Answers ``mcp:runtimes``, and has a share in the daemon's health.

    Args:
        verdicts: What is known of the runtimes.
        runtimes: The programs.
    """

    def __init__(self, verdicts: Verdicts, runtimes: Runtimes) -> None:
        self._verdicts = verdicts
        self._runtimes = runtimes

    @event_handler("mcp:runtimes", scope="mcp:read")
    def told(self, request: McpRuntimes) -> McpRuntimesTold:
        """Tell of each runtime that calls tools whether it was shown to do so by the gate alone."""
        return McpRuntimesTold(runtimes=self._verdicts.all())

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Tell of runtimes that are refused, or that could not be tried."""
        problems = self._verdicts.problems()
        return HealthChecked(
            health="degraded" if problems else "ok", why="; ".join(problems) or None
        )

    @event_observer("completion:result")
    def over(self, event: Event) -> None:
        """End what waits for results of a turn that is over."""
        if event.context.run is not None:
            self._runtimes.end_run(event.context.run)


@asynccontextmanager
async def runtimes_of(plugin: Plugin) -> AsyncIterator[None]:
    """Give tools to the programs behind models, once they were tried."""
    runtimes = plugin.service(Runtimes)
    verdicts = Verdicts()
    sessions = Sessions(plugin, verdicts)
    trial = ClaudeTrial(plugin, runtimes, sessions)
    verdicts.add(NAME, trial.run, lambda: trial.is_stale)
    plugin.add(sessions, Service(verdicts, runtimes))
    runtimes.serve_tools(sessions)
    plugin.start_task("trials", verdicts.run)
    try:
        yield
    finally:
        runtimes.serve_tools(None)

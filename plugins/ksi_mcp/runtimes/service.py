"""Has the runtimes tried, gives tools to those that hold, and tells what came of it."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from ksi_daemon.event_system import (
    event_contributor,
    event_handler,
    event_interceptor,
    event_observer,
)
from ksi_daemon.plugin import Plugin
from ksi_daemon.principals import is_bearers
from ksi_daemon.protocol import Denied, Event, Unavailable
from ksi_mcp.events import McpRuntimes, McpRuntimesTold
from ksi_mcp.runtimes.claude import NAME, ClaudeTrial
from ksi_mcp.runtimes.gate import AGENTS, PROGRAMS, TENANT, TURNS, GateTrial
from ksi_mcp.runtimes.sessions import Sessions
from ksi_mcp.runtimes.verdicts import Verdicts
from ksi_models.events import ModelWaiting
from ksi_models.runtimes import Runtimes
from ksi_postgres.patience import until_there
from ksi_system.events import HealthCheck, HealthChecked
from ksi_tools.api import Tools
from ksi_workflows.api import Workflows

Proceed = Callable[[Event], Awaitable[Any]]

ORDER: Final = 10  # before anything is counted or paid
OF_THE_GATE: Final = "the gate of tools lets through what it may not; a new version mends that"
OF_CLAUDE: Final = "update the command or go back a version, or take another model"


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

    @event_interceptor("model:call", order=ORDER)
    async def bound_models(self, event: Event, proceed: Proceed) -> Any:
        """Let no model have tools whose calls could go around the gate."""
        if not getattr(event.data, "tools", ()):
            return await proceed(event)
        wanted = (TURNS,) if event.context.agent is None else (TURNS, AGENTS)
        if not all(map(self._verdicts.is_known, wanted)):
            return self._answered_later(wanted, event, proceed)
        await self._check(*wanted)
        return await proceed(event)

    async def _answered_later(
        self, wanted: tuple[str, ...], event: Event, proceed: Proceed
    ) -> AsyncGenerator[Any]:
        """Answer once it is known whether models may have tools, and say that this is awaited."""
        yield ModelWaiting("trial", f"waiting until {' and '.join(wanted)} have been tried")
        await self._check(*wanted)
        async with aclosing(await proceed(event)) as chunks:
            async for chunk in chunks:
                yield chunk

    @event_interceptor("tool:call", order=ORDER)
    async def bound_programs(self, event: Event, proceed: Proceed) -> Any:
        """Let nobody from outside call tools where that could go around the gate."""
        if is_bearers(event.context) and event.context.tenant != TENANT:
            await self._check(PROGRAMS)
        return await proceed(event)

    async def _check(self, *names: str) -> None:
        for name in names:
            why = await self._verdicts.why_not(name, with_tools=True)
            if why is not None:
                raise Denied(why) if self._verdicts.is_refused(name) else Unavailable(why)

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
    gate = GateTrial(plugin.bus, plugin.service(Tools), runtimes.passes_on)

    async def ready() -> None:
        """Wait until tools can be called."""
        await until_there(plugin.service(Workflows).ready)
        await plugin.daemon.loader.plugins[plugin.name].settled.wait()

    for name, trial in ((TURNS, gate.turns), (AGENTS, gate.agents), (PROGRAMS, gate.programs)):
        verdicts.add(name, trial, advice=OF_THE_GATE, ready=ready)
    claude = ClaudeTrial(plugin, runtimes, sessions)
    verdicts.add(NAME, claude.run, advice=OF_CLAUDE, is_stale=lambda: claude.is_stale)
    plugin.add(sessions, Service(verdicts, runtimes))
    runtimes.serve_tools(sessions)
    plugin.start_task("trials", verdicts.run)
    try:
        yield
    finally:
        runtimes.serve_tools(None)

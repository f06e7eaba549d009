"""Answers ``system:*`` and ``token:*`` from the daemon's own state."""

import logging
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ksi_daemon import __version__
from ksi_daemon.bus import Bus
from ksi_daemon.daemon import Daemon
from ksi_daemon.event_system import current_context, event_contributor, event_handler
from ksi_daemon.loader import Loaded
from ksi_daemon.logs import DaemonLogHandler
from ksi_daemon.principals import TOKEN_PREFIX, Principal, TokenRecord
from ksi_daemon.protocol import PROTOCOL_VERSION, Context, Denied, NotFound
from ksi_daemon.protocol.names import did_you_mean, matches
from ksi_daemon.router import Contribution
from ksi_daemon.routes import Route
from ksi_daemon.schemas import schemas_of
from ksi_system import events as e

HEALTH_TIMEOUT_S = 2.0
HOST_PREFIX = "host:"
WORST_FIRST: tuple[e.HealthState, ...] = ("failed", "draining", "starting", "degraded", "ok")
HEALTH_OF_STATE: dict[str, e.HealthState] = {
    "loaded": "starting",
    "starting": "starting",
    "ready": "ok",
    "restarting": "degraded",
    "failed": "failed",
    "unavailable": "degraded",
    "disabled": "ok",
    "stopped": "draining",
}


class System:
    """Looks at the daemon and tells what it sees."""

    def __init__(self, daemon: Daemon, bus: Bus) -> None:
        self._daemon = daemon
        self._bus = bus

    @event_handler("system:hello", public=True)
    def hello(self, request: e.SystemHello) -> e.SystemGreeting:
        """Tell the protocol's and the daemon's version, and whom the connection acts as."""
        context = current_context() or Context("")
        return e.SystemGreeting(
            protocol=PROTOCOL_VERSION,
            version=__version__,
            principal=context.origin,
            tenant=context.tenant,
        )

    @event_handler("system:health", scope="system:read", timeout_s=10.0)
    async def health(self, request: e.SystemHealth) -> e.SystemHealthReport:
        """Tell whether all is well, and for each plugin why it is not."""
        daemon = self._daemon
        answers = await self._bus.gather(
            "health:check", e.HealthCheck(), timeout_s=HEALTH_TIMEOUT_S
        )
        told: dict[str, e.HealthChecked] = {}
        for answer in answers:
            checked, before = _checked(answer), told.get(answer.plugin)
            if before is None or _badness(checked.health) > _badness(before.health):
                told[answer.plugin] = checked
        plugins = [_plugin_health(p, told.get(p.name)) for p in daemon.loader.plugins.values()]
        problems = tuple(self._problems())
        states = {plugin.health for plugin in plugins} | ({"degraded"} if problems else set())
        if daemon.state in ("starting", "draining"):
            states.add("starting" if daemon.state == "starting" else "draining")
        if "failed" in states and not any(p.is_missed for p in daemon.loader.plugins.values()):
            states = (states - {"failed"}) | {"degraded"}
        return e.SystemHealthReport(
            health=next((state for state in WORST_FIRST if state in states), "ok"),
            state=daemon.state,
            uptime_s=round(time.time() - daemon.started_at, 3),
            plugins=tuple(plugins),
            problems=problems,
        )

    def _problems(self) -> Iterable[str]:
        daemon = self._daemon
        for unit in daemon.supervisor.units.values():
            if unit.state in ("failed", "backing_off"):
                yield f"task {unit.name} {unit.state.replace('_', ' ')}: {unit.last_error}"
        for observer in daemon.router.observers:
            if observer.missed:
                yield f"an observer of {observer.plugin} missed {observer.missed} events"
        handler = daemon.log_handler
        if isinstance(handler, DaemonLogHandler) and handler.lost_lines:
            yield f"{handler.lost_lines} log lines could not be written: {handler.last_error}"

    @event_handler("system:discover", scope="system:read")
    def discover(self, request: e.SystemDiscover) -> e.SystemDiscovered:
        """List the events that are answered."""
        return e.SystemDiscovered(
            events=tuple(
                e.EventSummary(
                    event=route.name,
                    plugin=route.plugin,
                    streams=route.streams,
                    summary=route.doc.partition("\n")[0],
                )
                for route in self._routes(request.pattern)
                if request.plugin in (None, route.plugin)
            )
        )

    @event_handler("system:describe", scope="system:read")
    def describe(self, request: e.SystemDescribe) -> e.SystemDescribed:
        """Describe events with their JSON Schemas and documentation."""
        found = tuple(self._describe(route) for route in self._routes(request.event))
        if not found:
            hint = did_you_mean(request.event, self._daemon.router.routes)
            raise NotFound(f"nothing answers {request.event!r}{hint}")
        return e.SystemDescribed(events=found)

    def _routes(self, pattern: str) -> list[Route]:
        routes = self._daemon.router.routes
        hosts = pattern.startswith(HOST_PREFIX)  # who does not ask for their events can't send them
        return [
            routes[name]
            for name in sorted(routes)
            if matches(name, pattern) and (hosts or not name.startswith(HOST_PREFIX))
        ]

    def _describe(self, route: Route) -> e.EventDescription:
        data_schema, result_schema = schemas_of(route)
        members = self._daemon.router.contributors.get(route.name, [])
        if members:
            data_schema, result_schema = schemas_of(members[0])
        return e.EventDescription(
            event=route.name,
            plugin=route.plugin,
            streams=route.streams,
            public=route.public,
            scope=route.scope,
            contributors=tuple(member.plugin for member in members),
            doc=route.doc,
            data_schema=data_schema,
            result_schema=result_schema,
        )

    @event_handler("system:plugins")
    def plugins(self, request: e.SystemPlugins) -> e.SystemPluginsListed:
        """List the plugins that are installed, and what has become of each."""
        routes = self._daemon.router.routes.values()
        return e.SystemPluginsListed(
            plugins=tuple(
                e.PluginState(
                    plugin=loaded.name,
                    state=loaded.state,
                    version=loaded.version,
                    isolated=loaded.common.isolate,
                    essential=loaded.is_essential,
                    requires=loaded.info.requires,
                    events=sum(route.plugin == loaded.name for route in routes),
                    pid=loaded.pid,
                    why=loaded.reason,
                )
                for loaded in self._daemon.loader.plugins.values()
            )
        )

    @event_handler("system:config")
    def config(self, request: e.SystemConfig) -> e.SystemConfigListed:
        """List the settings in force, and where each came from; secrets are masked."""
        values = self._daemon.settings.values()
        if request.section is not None and all(v.section != request.section for v in values):
            hint = did_you_mean(request.section, {value.section for value in values})
            raise NotFound(f"there is no section {request.section!r}{hint}")
        return e.SystemConfigListed(
            settings=tuple(
                e.SettingValue(section=v.section, key=v.key, value=v.value, origin=v.origin)
                for v in values
                if request.section in (None, v.section)
            )
        )

    @event_handler("system:stats")
    def stats(self, request: e.SystemStats) -> e.SystemStatsReport:
        """Tell counts, errors and latencies by event, queue depths, connections, lag and memory."""
        daemon = self._daemon
        server = daemon.server
        handler = daemon.log_handler
        return e.SystemStatsReport(
            events=tuple(_event_stats(r) for r in self._routes(request.pattern) if r.count),
            observers=tuple(
                e.ObserverStats(plugin=o.plugin, pattern=o.pattern, queued=o.depth, missed=o.missed)
                for o in daemon.router.observers
            ),
            tasks=tuple(
                e.TaskStats(
                    task=u.name, state=u.state, restarts=u.restarts, last_error=u.last_error
                )
                for u in daemon.supervisor.units.values()
            ),
            refusals=dict(server.hub.refusals),
            connections=len(server.connections),
            subscriptions=sum(len(each.subscriptions) for each in server.connections),
            in_flight=server.in_flight,
            idempotency_keys=len(server.hub.ledger),
            loop_lag_ms=round(daemon.watchdog.lag_s * 1000, 3),
            loop_stalls=daemon.watchdog.stalls,
            lost_log_lines=handler.lost_lines if isinstance(handler, DaemonLogHandler) else 0,
            rss_bytes=rss_bytes(),
            uptime_s=round(time.time() - daemon.started_at, 3),
        )

    @event_handler("system:shutdown")
    def shutdown(self, request: e.SystemShutdown) -> e.SystemStopping:
        """Stop the daemon, once what runs has had its grace."""
        self._daemon.shutdown(request.grace_s)
        return e.SystemStopping(in_flight=self._daemon.server.in_flight)

    @event_handler("system:log_level")
    def log_level(self, request: e.SystemLogLevel) -> e.SystemLogLevelSet:
        """Set the least severe level that is logged, until the daemon stops."""
        logger = logging.getLogger(request.logger)
        before = logging.getLevelName(logger.getEffectiveLevel()).lower()
        logger.setLevel(request.level.upper())
        return e.SystemLogLevelSet(before=before, level=request.level)

    @event_handler("token:create")
    def create_token(self, request: e.TokenCreate) -> e.TokenCreated:
        """Issue a token for a program that is not the owner's; a token's bearer can't."""
        context = current_context()
        if context is not None and context.origin.startswith(TOKEN_PREFIX):
            raise Denied("who came with a token issues none, lest it grant more than it has")
        principal = Principal(
            name=f"{TOKEN_PREFIX}{request.name}",
            grants=request.grants,
            tenant=request.tenant,
            user=request.user,
            agent=request.agent,
            conversation=request.conversation,
            run=request.run,
        )
        token = self._daemon.tokens.issue(principal, ttl_s=request.ttl_s, keep=True)
        return e.TokenCreated(token=token, expires_at=time.time() + request.ttl_s)

    @event_handler("token:list")
    def list_tokens(self, request: e.TokenList) -> e.TokenListed:
        """List the tokens that are valid, without their secrets."""
        return e.TokenListed(tokens=tuple(map(_describe_token, self._daemon.tokens.records())))

    @event_contributor("principal:scopes")
    def scopes(self, request: e.PrincipalScopes) -> e.PrincipalScoped:
        """Tell the scopes of a token: those that all of its name have."""
        records = [
            r for r in self._daemon.tokens.records() if r.principal.name == request.principal
        ]
        if not records:
            return e.PrincipalScoped()
        first, *rest = (set(record.principal.grants.scopes) for record in records)
        return e.PrincipalScoped(scopes=tuple(sorted(first.intersection(*rest))), known=True)

    @event_handler("token:revoke")
    def revoke_token(self, request: e.TokenRevoke) -> e.TokenRevoked:
        """End a token, and the connections that were made with it."""
        self._daemon.tokens.revoke(request.id)
        return e.TokenRevoked(id=request.id)


def _checked(answer: Contribution) -> e.HealthChecked:
    """Read one plugin's own word on its health; no word is a bad one."""
    if answer.error is not None:
        return e.HealthChecked(health="degraded", why=answer.error.message)
    if isinstance(answer.result, e.HealthChecked):
        return answer.result
    try:
        return msgspec.convert(answer.result, e.HealthChecked)
    except msgspec.ValidationError as error:
        why = f"its answer to health:check is wrong: {error}"
        return e.HealthChecked(health="degraded", why=why)


def _badness(health: e.HealthState) -> int:
    return -WORST_FIRST.index(health)


def _plugin_health(loaded: Loaded, told: e.HealthChecked | None) -> e.PluginHealth:
    health, why = HEALTH_OF_STATE[loaded.state], loaded.reason
    if health == "ok" and told is not None:
        health, why = told.health, told.why
    return e.PluginHealth(plugin=loaded.name, health=health, why=why)


def _event_stats(route: Route) -> e.EventStats:
    ordered = sorted(route.recent)

    def at(share: float) -> float:
        position = min(int(share * len(ordered)), len(ordered) - 1)
        return round(ordered[position] * 1000, 4) if ordered else 0.0

    return e.EventStats(
        event=route.name,
        count=route.count,
        errors=route.errors,
        p50_ms=at(0.50),
        p95_ms=at(0.95),
        p99_ms=at(0.99),
        max_ms=at(1.0),
    )


def _describe_token(record: TokenRecord) -> e.TokenDescription:
    principal = record.principal
    return e.TokenDescription(
        id=record.id,
        name=principal.name,
        tenant=principal.tenant,
        grants=principal.grants,
        created_at=record.created_at,
        expires_at=record.expires_at,
        user=principal.user,
        agent=principal.agent,
        conversation=principal.conversation,
        run=principal.run,
    )


def rss_bytes() -> int:
    """Return the memory that this process holds now; at its peak, where the system has no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(pages) * resource.getpagesize()

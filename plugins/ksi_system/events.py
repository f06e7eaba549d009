"""The payloads of ``system:*`` and ``token:*``."""

from typing import Any, Literal

from msgspec import Struct

from ksi_daemon.protocol.events import Grants

Level = Literal["debug", "info", "warning", "error", "critical"]
DaemonState = Literal["starting", "ready", "draining", "stopped"]
HealthState = Literal["ok", "starting", "degraded", "failed", "draining"]


class SystemHello(Struct, frozen=True, kw_only=True):
    """Ask who answers; any connection may."""


class SystemGreeting(Struct, frozen=True, kw_only=True):
    """The daemon's versions, and as whom it sees the connection."""

    protocol: int
    version: str
    principal: str
    tenant: str


class SystemHealth(Struct, frozen=True, kw_only=True):
    """Ask whether all is well."""


class PluginHealth(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One plugin's health, and why it is not well where it is not."""

    plugin: str
    health: HealthState
    why: str | None = None


class SystemHealthReport(Struct, frozen=True, kw_only=True):
    """The health of the whole, and of each plugin; ``problems`` are those of the daemon itself."""

    health: HealthState
    state: DaemonState
    uptime_s: float
    plugins: tuple[PluginHealth, ...]
    problems: tuple[str, ...] = ()


class HealthCheck(Struct, frozen=True, kw_only=True):
    """Sent to contributors to ``health:check``: say how you are."""


class HealthChecked(Struct, frozen=True, kw_only=True):
    """A contributor's answer; ``why`` is a sentence for people."""

    health: HealthState = "ok"
    why: str | None = None


class PrincipalScopes(Struct, frozen=True, kw_only=True):
    """Sent to contributors to ``principal:scopes``: which scopes has whoever bears this name?"""

    principal: str


class PrincipalScoped(Struct, frozen=True, kw_only=True):
    """Globs over scopes; not ``known`` is a principal of somebody else's."""

    scopes: tuple[str, ...] = ()
    known: bool = False


class SystemDiscover(Struct, frozen=True, kw_only=True):
    """List the events that are answered.

    ``pattern`` is a glob over their names, ``plugin`` names one plugin.
    """

    pattern: str = "*"
    plugin: str | None = None


class EventSummary(Struct, frozen=True, kw_only=True):
    """One event: its name, who answers it, whether with a stream, and what it does."""

    event: str
    plugin: str
    streams: bool
    summary: str


class SystemDiscovered(Struct, frozen=True, kw_only=True):
    """The events that are answered, by name."""

    events: tuple[EventSummary, ...]


class SystemDescribe(Struct, frozen=True, kw_only=True):
    """Describe one event, or with ``event`` a glob all that match."""

    event: str = "*"


class EventDescription(Struct, frozen=True, kw_only=True):
    """An event's documentation and the JSON Schemas of its payload and answer.

    For a stream ``result_schema`` is that of a chunk. ``None`` is plain data of any shape.
    """

    event: str
    plugin: str
    streams: bool
    public: bool
    scope: str | None
    contributors: tuple[str, ...]
    doc: str
    data_schema: dict[str, Any] | None
    result_schema: dict[str, Any] | None


class SystemDescribed(Struct, frozen=True, kw_only=True):
    """The descriptions of the events that were asked for."""

    events: tuple[EventDescription, ...]


class SystemPlugins(Struct, frozen=True, kw_only=True):
    """List the plugins that are installed."""


class PluginState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A plugin and what has become of it; ``pid`` is that of its host where it has one."""

    plugin: str
    state: str
    version: str = ""
    isolated: bool = False
    essential: bool = False
    requires: tuple[str, ...] = ()
    events: int = 0
    pid: int | None = None
    why: str | None = None


class SystemPluginsListed(Struct, frozen=True, kw_only=True):
    """The plugins, by name."""

    plugins: tuple[PluginState, ...]


class SystemConfig(Struct, frozen=True, kw_only=True):
    """List the settings; ``section`` names one section."""

    section: str | None = None


class SettingValue(Struct, frozen=True, kw_only=True):
    """A setting's value and where it came from: ``default``, a file, ``$KSI_…`` or ``--set``."""

    section: str
    key: str
    value: Any
    origin: str


class SystemConfigListed(Struct, frozen=True, kw_only=True):
    """The settings that are in force; secrets are masked."""

    settings: tuple[SettingValue, ...]


class SystemStats(Struct, frozen=True, kw_only=True):
    """Ask for counts, latencies and queue depths; ``pattern`` is a glob over events' names."""

    pattern: str = "*"


class EventStats(Struct, frozen=True, kw_only=True):
    """What became of an event so far; latencies are of its last 512 answers."""

    event: str
    count: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class ObserverStats(Struct, frozen=True, kw_only=True):
    """An observer's queue, and what it missed because that was full."""

    plugin: str
    pattern: str
    queued: int
    missed: int


class TaskStats(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A supervised background task."""

    task: str
    state: str
    restarts: int = 0
    last_error: str | None = None


class SystemStatsReport(Struct, frozen=True, kw_only=True):
    """How the daemon fares."""

    events: tuple[EventStats, ...]
    observers: tuple[ObserverStats, ...]
    tasks: tuple[TaskStats, ...]
    refusals: dict[str, int]
    connections: int
    subscriptions: int
    in_flight: int
    idempotency_keys: int
    loop_lag_ms: float
    loop_stalls: int
    lost_log_lines: int
    rss_bytes: int
    uptime_s: float


class SystemShutdown(Struct, frozen=True, kw_only=True):
    """Stop the daemon.

    What runs gets ``grace_s`` to finish, or the setting ``shutdown_grace_s``.
    """

    grace_s: float | None = None


class SystemStopping(Struct, frozen=True, kw_only=True):
    """The daemon takes no new work and will stop; ``in_flight`` requests still run."""

    in_flight: int


class SystemLogLevel(Struct, frozen=True, kw_only=True):
    """Set the least severe level that is logged, until the daemon stops."""

    level: Level
    logger: str = ""


class SystemLogLevelSet(Struct, frozen=True, kw_only=True):
    """The level before and now."""

    before: str
    level: Level


class TokenCreate(Struct, frozen=True, kw_only=True):
    """Issue a token for a program that is not the owner's.

    ``grants`` are globs over events, denied unless granted; ``ttl_s`` is how long it is valid.
    """

    name: str
    ttl_s: float
    grants: Grants = Grants()
    tenant: str = "default"
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None


class TokenCreated(Struct, frozen=True, kw_only=True):
    """The token: shown here and never again. Hand it over in a file or a pipe."""

    token: str
    expires_at: float


class TokenList(Struct, frozen=True, kw_only=True):
    """List the tokens that are valid."""


class TokenDescription(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token without its secret; times are seconds since the epoch."""

    id: str
    name: str
    tenant: str
    grants: Grants
    created_at: float
    expires_at: float
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None


class TokenListed(Struct, frozen=True, kw_only=True):
    """The tokens that are valid, the oldest first."""

    tokens: tuple[TokenDescription, ...]


class TokenRevoke(Struct, frozen=True, kw_only=True):
    """End a token, and the connections that were made with it."""

    id: str


class TokenRevoked(Struct, frozen=True, kw_only=True):
    """The token that is no longer valid."""

    id: str

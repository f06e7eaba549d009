"""The payloads of ``journal:*``, and of what the journal tells of the daemon."""

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

Limit = Annotated[int, Meta(ge=1, le=1000)]


class JournalRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record of one event.

    Attributes:
        position: Its place in the journal; a later record has a greater one.
        at: When the event's handling ended, or when it was published.
        event: Its name.
        id: Which the event bears in logs and answers, too.
        parent: The event that caused it.
        origin: Who sent it: a principal's name, or a plugin's.
        user: In whose name, where anybody's.
        agent: Of which agent.
        conversation: In which conversation.
        run: In which run.
        outcome: ``ok``, an error's code, or ``begun`` for what was recorded before it was done;
            none for what was published.
        message: The error's sentence.
        duration_s: How long its handling took.
        payload: What it came with, if that was asked for; secrets are masked.
        payload_bytes: How large that is.
    """

    position: int
    at: datetime
    event: str
    id: str
    parent: str | None = None
    origin: str = ""
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    outcome: str | None = None
    message: str | None = None
    duration_s: float | None = None
    payload: Any = None
    payload_bytes: int = 0


class JournalHistory(Struct, frozen=True, kw_only=True):
    """Ask what happened; what is given must all be so.

    Attributes:
        patterns: Globs over events' names, one of which matches; all events without.
        since: Not before this time.
        until: Before this time.
        outcome: ``ok``, an error's code, ``begun``; or ``failed`` for every error.
        user: In whose name.
        agent: Of which agent.
        conversation: In which conversation.
        run: In which run.
        text: Stands in the payload, in whatever case; looks at one event after the other.
        payloads: Whether the payloads are wanted, but for those that are kept apart.
        limit: How many at most; fewer come where they are large.
        cursor: Of the answer before: what comes after that.
    """

    patterns: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    outcome: str | None = None
    user: str | None = None
    agent: str | None = None
    conversation: str | None = None
    run: str | None = None
    text: str | None = None
    payloads: bool = False
    limit: Limit = 50
    cursor: int | None = None


class JournalHistoryListed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened, the newest first; with a ``cursor`` there is more."""

    records: tuple[JournalRecord, ...]
    cursor: int | None = None


class JournalGet(Struct, frozen=True, kw_only=True):
    """Ask for all that was recorded of one event, with its payload."""

    id: str


class JournalGot(Struct, frozen=True, kw_only=True):
    """The records of one event, in their order; most events have one."""

    records: tuple[JournalRecord, ...]


class JournalTrace(Struct, frozen=True, kw_only=True):
    """Ask for the tree of causes and effects that an event stands in.

    Attributes:
        id: The event's.
        max_depth: How many steps up, and from there down.
        limit: How many events at most.
    """

    id: str
    max_depth: Annotated[int, Meta(ge=1, le=200)] = 50
    limit: Limit = 500


class TraceNode(Struct, frozen=True, kw_only=True):
    """An event in a tree; its effects follow it, one level deeper."""

    depth: int
    record: JournalRecord


class JournalTraced(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tree of causes and effects.

    Attributes:
        id: The event that was asked for.
        root: The furthest cause that was recorded.
        nodes: The events, each before its effects, those in the order in which they were recorded.
        cut: What was left out, and by which bound.
        cause_missing: The root's own cause, of which nothing is recorded.
    """

    id: str
    root: str
    nodes: tuple[TraceNode, ...]
    cut: str | None = None
    cause_missing: str | None = None


class JournalTail(Struct, frozen=True, kw_only=True):
    """Follow what happens, in the order of positions, without a gap.

    Attributes:
        patterns: Globs over events' names; all events without.
        after: The position of the last record that was seen; what is new from now on without.
        payloads: Whether the payloads are wanted, too.
    """

    patterns: tuple[str, ...] = ()
    after: Annotated[int, Meta(ge=0)] | None = None
    payloads: bool = False


class JournalStats(Struct, frozen=True, kw_only=True):
    """Ask how the journal fares."""


class EventCount(Struct, frozen=True, kw_only=True):
    """How often an event was recorded by this daemon since it started."""

    event: str
    count: int


class PartitionSize(Struct, frozen=True, kw_only=True):
    """A part of the journal: its name and size."""

    partition: str
    bytes: int
    estimated_rows: int


class JournalStatsReport(Struct, frozen=True, kw_only=True):
    """How the journal fares: this daemon's counts since it started, and what Postgres keeps.

    Attributes:
        accepted: Ordinary events that were to be recorded: written, dropped and queued together.
        written: Those that Postgres has.
        dropped: Those that are lost.
        queued: Those that wait.
        queued_bytes: How large these are.
        secured: Security-relevant records that were made.
        spooled_bytes: How much of those waits in the file.
        unrecorded: Security-relevant records that could not be made, the file being full.
        last_position: The newest position.
        dropped_through: Up to this position retention may have dropped records.
        events: Counts of the caller's tenant, the most frequent first.
        partitions: The parts, with payloads that are kept apart.
    """

    accepted: int
    written: int
    dropped: int
    queued: int
    queued_bytes: int
    secured: int
    spooled_bytes: int
    unrecorded: int
    last_position: int
    dropped_through: int
    events: tuple[EventCount, ...]
    partitions: tuple[PartitionSize, ...]


class JournalDropped(Struct, frozen=True, kw_only=True):
    """Published, and recorded, when events could not be recorded for a while."""

    count: int
    since: datetime
    until: datetime
    why: str


class SystemStarted(Struct, frozen=True, kw_only=True):
    """Published when every plugin has started or failed; ``plugins`` has the state of each."""

    version: str
    plugins: dict[str, str]


class SystemStopping(Struct, frozen=True, kw_only=True):
    """Published when the daemon has ended its work and stops."""

    uptime_s: float


class SettingChange(Struct, frozen=True, kw_only=True):
    """A setting that is not what it was when the daemon started before; secrets are masked."""

    setting: str
    before: Any
    now: Any
    origin: str


class SystemConfigured(Struct, frozen=True, kw_only=True):
    """Published at start where settings differ from those of the start before."""

    changes: tuple[SettingChange, ...]

"""The settings of the journal."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from ksi_daemon.settings import Positive

# What tells nothing new: questions about what is recorded anyway, and calls of models, which have
# whole conversations in them: `model:called` tells what each took and which messages it saw.
QUESTIONS: Final = (
    "*:get",
    "*:list",
    "agent:logs",
    "model:call",
    "model:describe",
    "model:embed",
    "model:slots",
    "orchestration:follow",
    "orchestration:pattern",
    "orchestration:patterns",
    "orchestration:status",
    "orchestration:transcript",
    "orchestration:validate",
    "tool:calls",
    "tool:describe",
    "tool:in_doubt",
    "tool:permissions",
    "workflow:queues",
    "workflow:result",
    "workflow:schedules",
    "workflow:steps",
)


class JournalSettings(Struct, frozen=True, kw_only=True):
    """The section ``[journal]``.

    Attributes:
        events: Globs over the events that are recorded, when they were handled or published.
        leave_out: Globs over events that are not, though one of `events` matches.
        security_events: Globs over the events that are recorded without fail, whatever `events`
            says: they go to a file first, and from there to Postgres.
        flush_interval_s: How long an event waits at most until it is written.
        batch_events: How many events are written at once; as many are not waited for.
        queue_events: How many events may wait to be written; more are dropped and counted.
        queue_bytes: How many bytes those may have.
        max_payload_bytes: A larger payload is kept apart, each content once a day.
        max_kept_payload_bytes: A larger payload is not kept; its beginning is.
        spool_bytes: How large the file of security-relevant events may grow while Postgres is
            away. When it is full, what has to be recorded first is refused.
        retention_days: How many days ordinary events are kept.
        security_retention_days: How many days security-relevant events are kept, to the month.
        max_bytes: How much space ordinary events may take, with their indexes; of what is more,
            the oldest days are dropped, but never today.
        retention_interval_s: How often is looked for what to drop.
    """

    events: tuple[str, ...] = (
        "agent:*",
        "approval:*",
        "completion:*",
        "memory:add",
        "memory:delete",
        "memory:remember",
        "memory:store",
        "memory:update",
        "model:*",
        "orchestration:*",
        "postgres:connected",
        "postgres:lost",
        "system:started",
        "system:stopping",
        "tool:*",
        "workflow:*",
    )
    leave_out: tuple[str, ...] = QUESTIONS
    security_events: tuple[str, ...] = (
        "approval:*",
        "budget:*",
        "http:key_create",
        "http:key_revoke",
        "router:denied",
        "spend:*",
        "system:configured",
        "token:create",
        "token:revoke",
    )
    flush_interval_s: Annotated[float, Meta(gt=0)] = 0.2
    batch_events: Positive = 2000
    queue_events: Positive = 100_000
    queue_bytes: Positive = 128 * 1024 * 1024
    max_payload_bytes: Positive = 16 * 1024
    max_kept_payload_bytes: Positive = 1024 * 1024
    spool_bytes: Positive = 64 * 1024 * 1024
    retention_days: Positive = 30
    security_retention_days: Positive = 400
    max_bytes: Positive = 10 * 1024 * 1024 * 1024
    retention_interval_s: Annotated[float, Meta(gt=0)] = 3600.0

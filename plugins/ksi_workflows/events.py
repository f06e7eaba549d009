"""The payloads of ``workflow:*``."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ksi_daemon.protocol.wire import ErrorBody

RunStatus = Literal[
    "waiting", "queued", "delayed", "running", "finished", "failed", "cancelled", "quarantined"
]
RunId = Annotated[str, Meta(min_length=1, max_length=200)]
GivenId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,100}\Z")]
Key = Annotated[str, Meta(min_length=1, max_length=200)]
Name = Annotated[str, Meta(min_length=1, max_length=150)]
Limit = Annotated[int, Meta(ge=1, le=1000)]


class WorkflowStart(Struct, frozen=True, kw_only=True):
    """Start a run of a workflow; once this is answered, the run outlives the daemon.

    With an ``id`` starting twice is starting once. Runs with one ``key`` are run one at a time, in
    the order in which they were started. ``priority`` counts within a queue, 1 first. ``delay_s``,
    ``key`` and ``priority`` need a queue; without a ``queue`` of its own the run gets one of the
    engine's.
    """

    name: Name
    args: Any = None
    id: GivenId | None = None
    key: Key | None = None
    delay_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    priority: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    queue: Name | None = None
    timeout_s: Annotated[float, Meta(gt=0)] | None = None


class WorkflowAccepted(Struct, frozen=True, kw_only=True):
    """The run is recorded, and will be run whatever happens to this daemon."""

    run_id: str
    name: str
    version: int


class WorkflowGet(Struct, frozen=True, kw_only=True):
    """Tell what is known of a run, and why it does not get further."""

    run_id: RunId


class WorkflowRun(Struct, frozen=True, kw_only=True):
    """A run, without what it was given and what came of it.

    ``attempts`` counts how often it was begun since it last got further; ``executor`` is the daemon
    that had it last. A run ``waiting`` is of a workflow, or a version of one, that no plugin knows.
    """

    run_id: str
    name: str
    version: int
    status: RunStatus
    queue: str | None = None
    key: str | None = None
    priority: int | None = None
    attempts: int = 0
    executor: str | None = None
    parent_run_id: str | None = None
    forked_from: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    completed_at: datetime | None = None
    due_at: datetime | None = None


class WorkflowTrouble(Struct, frozen=True, kw_only=True):
    """What is known of the attempts at a run that failed.

    Attributes:
        why: What happened, for people.
        step: The step that was being executed when the worker ended.
        step_number: Its number.
        executor: The daemon that executed it.
        traceback: Of the last error that a step was tried again after.
    """

    why: str
    step: str | None = None
    step_number: int | None = None
    executor: str | None = None
    traceback: str | None = None


class WorkflowDescribed(Struct, frozen=True, kw_only=True):
    """A run, what it was given, and what went wrong so far."""

    run: WorkflowRun
    args: Any = None
    trouble: WorkflowTrouble | None = None


class WorkflowList(Struct, frozen=True, kw_only=True):
    """List runs, the newest first; what they were given and returned is not loaded.

    ``since`` and ``until`` are about when the run was started. ``cursor`` is that of the answer
    before.
    """

    name: Name | None = None
    status: tuple[RunStatus, ...] | None = None
    queue: Name | None = None
    key: Key | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: Limit = 50
    cursor: Annotated[str, Meta(max_length=300)] | None = None


class WorkflowListed(Struct, frozen=True, kw_only=True):
    """Runs; ``cursor`` is ``None`` on the last page."""

    runs: tuple[WorkflowRun, ...]
    cursor: str | None = None


class WorkflowResult(Struct, frozen=True, kw_only=True):
    """Wait for a run's end; past ``timeout_s`` the answer is a ``timeout``, and the run goes on."""

    run_id: RunId
    timeout_s: Annotated[float, Meta(ge=0, le=3600)] = 25.0


class WorkflowOutcome(Struct, frozen=True, kw_only=True):
    """How a run ended: with its ``output``, or with an ``error``."""

    run_id: str
    status: RunStatus
    output: Any = None
    error: ErrorBody | None = None


class WorkflowSteps(Struct, frozen=True, kw_only=True):
    """List the steps of a run whose outcome is recorded."""

    run_id: RunId
    after: Annotated[int, Meta(ge=0)] = 0
    limit: Limit = 100


class StepOutcome(Struct, frozen=True, kw_only=True):
    """A step of a run, and what came of it."""

    number: int
    name: str
    output: Any = None
    error: ErrorBody | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None


class WorkflowStepsListed(Struct, frozen=True, kw_only=True):
    """Steps by number; ``after`` is what to ask for next, ``None`` on the last page."""

    steps: tuple[StepOutcome, ...]
    after: int | None = None


class WorkflowCancel(Struct, frozen=True, kw_only=True):
    """End a run: at once in a preemptible step, else after the step that it is in."""

    run_id: RunId


class WorkflowResume(Struct, frozen=True, kw_only=True):
    """Let a run go on that was cancelled, after the last step that is recorded."""

    run_id: RunId


class WorkflowRelease(Struct, frozen=True, kw_only=True):
    """Let a run go on that was set aside because its workers died, with all its attempts anew."""

    run_id: RunId


class WorkflowFork(Struct, frozen=True, kw_only=True):
    """Start a copy of a run which takes over the outcomes of the steps before ``from_step``."""

    run_id: RunId
    from_step: Annotated[int, Meta(ge=1)] = 1
    id: GivenId | None = None


class WorkflowChanged(Struct, frozen=True, kw_only=True):
    """The status that the run has now."""

    run_id: str
    status: RunStatus


class WorkflowSignal(Struct, frozen=True, kw_only=True):
    """Leave a signal for a run, which takes those of a topic in the order in which they came."""

    run_id: RunId
    topic: Name
    payload: Any = None


class WorkflowSignalled(Struct, frozen=True, kw_only=True):
    """The signal is recorded; the run takes it when it asks for it."""

    run_id: str
    topic: str


class WorkflowSchedule(Struct, frozen=True, kw_only=True):
    """Start a workflow by a ``cron`` expression in a time zone, or once, ``at`` a time.

    A schedule of that name is replaced. Each time is started once, by whichever daemon; times that
    went by while none ran are made good with one run.
    """

    name: GivenId
    workflow: Name
    args: Any = None
    cron: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    at: datetime | None = None
    timezone: Annotated[str, Meta(max_length=100)] = "UTC"
    queue: Name | None = None
    key: Key | None = None


class WorkflowScheduled(Struct, frozen=True, kw_only=True):
    """When the schedule starts its workflow next."""

    name: str
    next_at: datetime


class WorkflowUnschedule(Struct, frozen=True, kw_only=True):
    """End a schedule; what it has started goes on."""

    name: GivenId


class WorkflowUnscheduled(Struct, frozen=True, kw_only=True):
    """The schedule that has ended."""

    name: str


class WorkflowSchedules(Struct, frozen=True, kw_only=True):
    """List schedules by name."""

    limit: Limit = 100
    cursor: Annotated[str, Meta(max_length=100)] = ""


class ScheduleState(Struct, frozen=True, kw_only=True):
    """A schedule; ``next_at`` is ``None`` once it has nothing more to start."""

    name: str
    workflow: str
    cron: str | None = None
    timezone: str = "UTC"
    queue: str | None = None
    key: str | None = None
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_run_id: str | None = None
    last_error: str | None = None


class WorkflowSchedulesListed(Struct, frozen=True, kw_only=True):
    """Schedules; ``cursor`` is ``None`` on the last page."""

    schedules: tuple[ScheduleState, ...]
    cursor: str | None = None


class WorkflowQueues(Struct, frozen=True, kw_only=True):
    """List the queues, and how much waits in them."""


class QueueState(Struct, frozen=True, kw_only=True):
    """A queue's bounds, and how many runs of the caller's tenant are in it.

    In a partitioned queue ``concurrency`` and ``rate`` are bounds of each key.
    """

    queue: str
    concurrency: int | None = None
    worker_concurrency: int | None = None
    rate: int | None = None
    rate_period_s: float | None = None
    partitioned: bool = False
    queued: int = 0
    delayed: int = 0
    running: int = 0


class WorkflowQueuesListed(Struct, frozen=True, kw_only=True):
    """The queues that this daemon serves."""

    queues: tuple[QueueState, ...]


class WorkflowStarted(Struct, frozen=True, kw_only=True):
    """Published by the daemon that begins to execute a run, anew at each attempt."""

    run_id: str
    name: str
    version: int
    attempt: int


class WorkflowFinished(Struct, frozen=True, kw_only=True):
    """Published by the daemon that executed a run, once its output is recorded."""

    run_id: str
    name: str
    version: int
    duration_s: float


class WorkflowFailed(Struct, frozen=True, kw_only=True):
    """Published by the daemon that executed a run, once its error is recorded."""

    run_id: str
    name: str
    version: int
    duration_s: float
    error: ErrorBody


class WorkflowQuarantined(Struct, frozen=True, kw_only=True):
    """Published when a run is set aside since its workers died; see ``workflow:release``."""

    run_id: str
    name: str
    version: int
    why: str

"""Answers ``workflow:*``."""

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ksi_daemon.event_system import current_context, event_contributor, event_handler
from ksi_daemon.protocol import Context, InvalidData, NotFound
from ksi_system.events import HealthCheck, HealthChecked
from ksi_workflows import codec
from ksi_workflows import events as e
from ksi_workflows.duty import why_aside
from ksi_workflows.schedules import next_time, zone_of
from ksi_workflows.workflows import Workflows

WAIT_MARGIN_S: Final = 3700.0
DRAIN_SHARE: Final = 0.8  # of the time that a contributor has, so that it ends before it is ended


class Handlers:
    """Shows and touches what is the caller's tenant's, and nothing else.

    Args:
        workflows: The runs.
        drain_timeout_s: How long a contributor to the drain may take.
    """

    def __init__(self, workflows: Workflows, drain_timeout_s: float) -> None:
        self._workflows = workflows
        self._drain_timeout_s = drain_timeout_s
        self._store = workflows.store

    @event_handler("workflow:start", scope="workflows:write")
    async def start(self, request: e.WorkflowStart) -> e.WorkflowAccepted:
        """Start a run of a workflow."""
        run_id = await self._workflows.start(
            request.name,
            request.args,
            id=request.id,
            key=request.key,
            delay_s=request.delay_s,
            priority=request.priority,
            queue=request.queue,
            timeout_s=request.timeout_s,
        )
        definition = self._workflows.definitions.newest(request.name)
        version = 0 if definition is None else definition.version
        return e.WorkflowAccepted(run_id=run_id, name=request.name, version=version)

    @event_handler("workflow:get", scope="workflows:read")
    async def get(self, request: e.WorkflowGet) -> e.WorkflowDescribed:
        """Tell what is known of a run."""
        tenant = _tenant()
        row = await self._workflows.find(tenant, request.run_id)
        text = await self._store.arguments(tenant, request.run_id) or "null"
        args = msgspec.json.decode(text)["args"][0]["args"]
        trouble = await self._store.trouble(tenant, request.run_id)
        run = _run_of(row)
        return e.WorkflowDescribed(run=run, args=args, trouble=self._trouble(run, trouble))

    def _trouble(self, run: e.WorkflowRun, row: Any) -> e.WorkflowTrouble | None:
        is_aside = run.status == "quarantined"
        if row is None and not is_aside:
            return None
        why = why_aside(row, self._workflows.settings.max_recovery_attempts) if is_aside else None
        if row is None:
            return e.WorkflowTrouble(why=why or "")
        begun = f"attempt {row['attempt']} began after a worker had ended"
        return e.WorkflowTrouble(
            why=why or row["why"] or begun,
            step=row["step"],
            step_number=row["step_number"],
            executor=row["executor"],
            traceback=row["traceback"],
        )

    @event_handler("workflow:list", scope="workflows:read")
    async def list(self, request: e.WorkflowList) -> e.WorkflowListed:
        """List runs, the newest first."""
        rows = await self._store.runs(
            _tenant(),
            name=request.name,
            status=request.status,
            queue=request.queue,
            key=request.key,
            since=_aware(request.since),
            until=_aware(request.until),
            after=_read_cursor(request.cursor),
            limit=request.limit + 1,
        )
        shown = rows[: request.limit]
        cursor = None
        if len(rows) > request.limit:
            last = shown[-1]
            cursor = f"{round(last['created_at'].timestamp() * 1000)}-{last['run']}"
        return e.WorkflowListed(runs=tuple(map(_run_of, shown)), cursor=cursor)

    @event_handler("workflow:result", scope="workflows:read", timeout_s=WAIT_MARGIN_S)
    async def result(self, request: e.WorkflowResult) -> e.WorkflowOutcome:
        """Wait for a run's end."""
        row = await self._workflows.wait(_tenant(), request.run_id, request.timeout_s)
        output = msgspec.json.decode(row["output"]) if row["output"] is not None else None
        error = codec.decode_error(row["error"]).body if row["error"] is not None else None
        return e.WorkflowOutcome(
            run_id=request.run_id, status=row["status"], output=output, error=error
        )

    @event_handler("workflow:steps", scope="workflows:read")
    async def steps(self, request: e.WorkflowSteps) -> e.WorkflowStepsListed:
        """List the steps of a run whose outcome is recorded."""
        tenant = _tenant()
        await self._workflows.find(tenant, request.run_id)
        limit = request.limit
        rows = await self._store.steps(tenant, request.run_id, request.after, limit + 1)
        steps = tuple(map(_step_of, rows[:limit]))
        after = steps[-1].number if len(rows) > limit else None
        return e.WorkflowStepsListed(steps=steps, after=after)

    @event_handler("workflow:cancel", scope="workflows:write")
    async def cancel(self, request: e.WorkflowCancel) -> e.WorkflowChanged:
        """End a run."""
        return _changed(request.run_id, await self._workflows.cancel(request.run_id))

    @event_handler("workflow:resume", scope="workflows:write")
    async def resume(self, request: e.WorkflowResume) -> e.WorkflowChanged:
        """Let a run go on that was cancelled."""
        status = await self._workflows.resume(request.run_id, was="cancelled")
        return _changed(request.run_id, status)

    @event_handler("workflow:release", scope="workflows:write")
    async def release(self, request: e.WorkflowRelease) -> e.WorkflowChanged:
        """Let a run go on that was set aside."""
        status = await self._workflows.resume(request.run_id, was="quarantined")
        return _changed(request.run_id, status)

    @event_handler("workflow:fork", scope="workflows:write")
    async def fork(self, request: e.WorkflowFork) -> e.WorkflowAccepted:
        """Start a copy of a run from one of its steps on."""
        run_id = await self._workflows.fork(request.run_id, request.from_step, id=request.id)
        row = await self._workflows.find(_tenant(), run_id)
        return e.WorkflowAccepted(run_id=run_id, name=row["name"], version=row["version"])

    @event_handler("workflow:signal", scope="workflows:write")
    async def signal(self, request: e.WorkflowSignal) -> e.WorkflowSignalled:
        """Leave a signal for a run."""
        await self._workflows.signal(request.run_id, request.topic, request.payload)
        return e.WorkflowSignalled(run_id=request.run_id, topic=request.topic)

    @event_handler("workflow:schedule", scope="workflows:write")
    async def schedule(self, request: e.WorkflowSchedule) -> e.WorkflowScheduled:
        """Start a workflow by the clock."""
        if (request.cron is None) == (request.at is None):
            raise InvalidData("a schedule has either a cron expression, or a time (at)")
        zone = zone_of(request.timezone)
        if request.cron is not None:
            next_at = next_time(request.cron, request.timezone, datetime.now(UTC))
        else:
            at = request.at
            assert at is not None
            next_at = at if at.tzinfo is not None else at.replace(tzinfo=zone)
        definition, args = self._workflows.check(request.workflow, request.args)
        self._workflows.choose_queue(request.queue or definition.queue, request.key)
        context = current_context() or Context("")
        await self._store.put_schedule(
            context.tenant,
            request.name,
            definition.name,
            definition.version,
            args.decode(),
            request.cron,
            request.timezone,
            request.queue,
            request.key,
            msgspec.json.encode(context).decode(),
            next_at,
        )
        self._workflows.clock.wake()
        self._workflows.news.tell("schedule")
        return e.WorkflowScheduled(name=request.name, next_at=next_at.astimezone(UTC))

    @event_handler("workflow:unschedule", scope="workflows:write")
    async def unschedule(self, request: e.WorkflowUnschedule) -> e.WorkflowUnscheduled:
        """End a schedule."""
        if not await self._store.drop_schedule(_tenant(), request.name):
            raise NotFound(f"there is no schedule {request.name}")
        return e.WorkflowUnscheduled(name=request.name)

    @event_handler("workflow:schedules", scope="workflows:read")
    async def schedules(self, request: e.WorkflowSchedules) -> e.WorkflowSchedulesListed:
        """List schedules by name."""
        rows = await self._store.schedules(_tenant(), request.cursor, request.limit + 1)
        shown = tuple(map(_schedule_of, rows[: request.limit]))
        cursor = shown[-1].name if len(rows) > request.limit else None
        return e.WorkflowSchedulesListed(schedules=shown, cursor=cursor)

    @event_handler("workflow:queues", scope="workflows:read")
    async def queues(self, request: e.WorkflowQueues) -> e.WorkflowQueuesListed:
        """List the queues, and how much waits in them."""
        counts = {row["queue"]: row for row in await self._store.queues(_tenant())}
        return e.WorkflowQueuesListed(
            queues=tuple(
                e.QueueState(
                    queue=options.name,
                    concurrency=options.concurrency,
                    worker_concurrency=options.worker_concurrency,
                    rate=options.rate,
                    rate_period_s=options.rate_period_s if options.rate else None,
                    partitioned=options.is_partitioned,
                    **_counts(counts.get(options.name)),
                )
                for options in self._workflows.all_queues()
            )
        )

    @event_contributor("health:check")
    def health(self, request: HealthCheck) -> HealthChecked:
        """Tell whether runs can be started, and go on."""
        why = self._workflows.why_not
        return HealthChecked(health="ok" if why is None else "degraded", why=why)

    @event_contributor("system:drained")
    async def drained(self) -> None:
        """Let the steps that run finish while the plugins are there that they need."""
        await self._workflows.duty.wind_up(self._drain_timeout_s * DRAIN_SHARE)


def _tenant() -> str:
    context = current_context()
    return "default" if context is None else context.tenant


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _read_cursor(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    created, dash, run = cursor.partition("-")
    if not (dash and run and created.isdigit() and len(created) < 16):
        raise InvalidData("the cursor is not one that workflow:list has answered")
    return int(created), run


def _run_of(row: Any) -> e.WorkflowRun:
    return e.WorkflowRun(
        run_id=row["run"],
        name=row["name"] or "",
        version=row["version"] or 0,
        status=row["status"],
        queue=row["queue"],
        key=row["key"],
        priority=row["priority"] or None,
        attempts=row["attempts"] or 0,
        executor=row["executor"],
        parent_run_id=row["parent"],
        forked_from=row["forked_from"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        updated_at=row["updated_at"],
        completed_at=row["completed_at"],
        due_at=row["due_at"],
    )


def _step_of(row: Any) -> e.StepOutcome:
    output = msgspec.json.decode(row["output"]) if row["output"] is not None else None
    error = codec.decode_error(row["error"]).body if row["error"] is not None else None
    return e.StepOutcome(
        number=row["number"],
        name=row["name"],
        output=output,
        error=error,
        started_at=row["started_at"],
        completed_at=row["completed_at"],
    )


def _schedule_of(row: Any) -> e.ScheduleState:
    return e.ScheduleState(
        name=row["name"],
        workflow=row["workflow"],
        cron=row["cron"],
        timezone=row["timezone"],
        queue=row["queue"],
        key=row["key"],
        next_at=row["next_at"],
        last_at=row["last_at"],
        last_run_id=row["last_run"],
        last_error=row["last_error"],
    )


def _counts(row: Any) -> dict[str, int]:
    return {} if row is None else {name: row[name] for name in ("queued", "delayed", "running")}


def _changed(run_id: str, status: Any) -> e.WorkflowChanged:
    return e.WorkflowChanged(run_id=run_id, status=status)

"""What other plugins call: starts runs, tells of them, and keeps the engine going."""

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import msgspec
from msgspec import Raw

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, current_context
from ksi_daemon.protocol import (
    Busy,
    Cancelled,
    Conflict,
    Context,
    Failed,
    InvalidData,
    NotFound,
    TimedOut,
    Unavailable,
)
from ksi_daemon.protocol.names import did_you_mean
from ksi_postgres.database import Database
from ksi_postgres.news import News, Waiters
from ksi_workflows import codec
from ksi_workflows import events as e
from ksi_workflows.codec import Envelope
from ksi_workflows.definitions import ACTIVE_RUN, Workflow
from ksi_workflows.duty import Duty
from ksi_workflows.engine import (
    DEFAULT_QUEUE,
    KEYED_QUEUE,
    OWN_QUEUES,
    Dispatched,
    Engine,
    QueueOptions,
)
from ksi_workflows.office import Fenced
from ksi_workflows.runs import (
    DEADLINE_MARGIN_S,
    Definitions,
    Run,
    Runner,
    convert_args,
)
from ksi_workflows.schedules import Clock
from ksi_workflows.settings import WorkflowsSettings
from ksi_workflows.store import RunOptions, Store

CHANNEL: Final = "ksi_workflows"
LOOK_AGAIN_S: Final = 10.0  # where a word that was told got lost
ENDED: Final = frozenset({"finished", "failed", "cancelled", "quarantined"})


class Workflows:
    """The durable engine, as `ksi_daemon.plugin.Plugin.service` gives it to other plugins.

    Args:
        settings: The plugin's.
        database: The store.
        bus: Publishes what becomes of runs.
        give_up: Called with the reason when this daemon must not run workflows any more.
    """

    def __init__(
        self,
        settings: WorkflowsSettings,
        database: Database,
        bus: Bus,
        give_up: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.store = Store(database)
        self.definitions = Definitions()
        self.runner = Runner(settings, self.store, self.definitions, self)
        self.engine = Engine(settings, self)
        self.duty = Duty(
            settings, self.store, self.engine, self.runner, self.definitions, self, bus
        )
        self.news = News(CHANNEL, database)
        self.clock = Clock(self.store, self)
        self.queues: dict[str, QueueOptions] = {}
        self._database = database
        self._bus = bus
        self._give_up = give_up
        self._waiters = Waiters()
        self._opened = asyncio.Event()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self.news.on("ended", self._waiters.wake)
        self.news.on("cancelled", self._cancelled)
        self.news.on("signal", self._signalled)
        self.news.on("schedule", lambda _: self.clock.wake())
        self.news.on_missed(self._missed)

    # What plugins declare.

    def register(self, *workflows: Workflow[Any, Any]) -> None:
        """Make workflows known, so that they can be started, and their runs go on here.

        Call it in the plugin's lifespan, before its ``yield``.

        Raises:
            Conflict: There is another workflow of that name and version.
        """
        for workflow in workflows:
            self.definitions.add(workflow)

    def queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        worker_concurrency: int | None = None,
        rate: int | None = None,
        rate_period_s: float = 1.0,
        partitioned: bool = False,
        poll_s: float | None = None,
    ) -> None:
        """Declare a queue.

        Args:
            name: What starters name.
            concurrency: How many of its runs are executed at once, by all daemons together; in a
                partitioned queue how many of each key, 1 unless given.
            worker_concurrency: How many this daemon executes at once.
            rate: How many are begun within ``rate_period_s``; in a partitioned queue of each key.
            rate_period_s: See ``rate``.
            partitioned: Whether every run has a key, and those of one key wait for each other.
            poll_s: How often the queue is looked at.

        Raises:
            Conflict: There is another of that name.
        """
        here = worker_concurrency or self.settings.max_running
        if concurrency is not None and not partitioned:
            here = min(here, concurrency)
        options = QueueOptions(
            name=name,
            concurrency=concurrency,
            worker_concurrency=here,
            rate=rate,
            rate_period_s=rate_period_s,
            is_partitioned=partitioned,
            poll_s=poll_s or self.settings.queue_poll_s,
        )
        if name in OWN_QUEUES or self.queues.get(name, options) != options:
            raise Conflict(f"there is another queue {name!r}")
        self.queues[name] = options
        self.duty.add_queue(options)

    @property
    def why_not(self) -> str | None:
        """Why runs can't be started, or don't go on."""
        if not self._database.is_up:
            return "runs wait: Postgres is away"
        return self.duty.problem

    @property
    def office(self) -> tuple[str, int]:
        """The executor and the epoch that this daemon's own writes are fenced with.

        Functions of other plugins hand them to ``ksi_workflows.hold`` in their transaction.

        Raises:
            Unavailable: The daemon is not in office yet.
        """
        if not self.store.is_in_office:
            raise Unavailable("this daemon does not run workflows yet", retry_after_s=0.5)
        lease = self.store.lease
        return lease.executor, lease.epoch

    def all_queues(self) -> list[QueueOptions]:
        """Return the queues that plugins have declared, and the engine's own."""
        worker = self.settings.max_running
        own = [
            QueueOptions(name=DEFAULT_QUEUE, worker_concurrency=worker),
            QueueOptions(name=KEYED_QUEUE, worker_concurrency=worker, is_partitioned=True),
        ]
        return [*self.queues.values(), *own]

    # What plugins, and handlers, do with runs.

    async def start(
        self,
        workflow: Workflow[Any, Any] | str,
        args: Any = None,
        *,
        id: str | None = None,  # noqa: A002  it is what it is called
        key: str | None = None,
        delay_s: float = 0.0,
        priority: int | None = None,
        queue: str | None = None,
        timeout_s: float | None = None,
        tenant: str | None = None,
        is_light: bool = False,
    ) -> str:
        """Start a run, and return its id once the run is recorded.

        Inside of a run this is a step: it starts the same run each time. See `events.WorkflowStart`
        for the arguments; ``tenant`` is that of the event being handled unless given. One that
        ``is_light`` may be forgotten when Postgres itself crashes within the next second: who
        starts it so starts it again.

        Raises:
            NotFound: No plugin has registered the workflow.
            InvalidData: The arguments don't fit, or are too large; the queue is not there.
            Conflict: Another workflow's run has that id.
            Unavailable: Postgres, or the engine, is not there.
        """
        definition, data = self.check(workflow, args)
        run = ACTIVE_RUN.get()
        inside = run if isinstance(run, Run) else None
        context = inside.context if inside else current_context() or Context(uuid.uuid4().hex)
        if tenant is not None:
            context = msgspec.structs.replace(context, tenant=tenant)
        envelope = Envelope(
            name=definition.name, version=definition.version, args=Raw(data), context=context
        )
        run_id = inside.next_child if inside and id is None else self._run_id(context.tenant, id)
        limit_s = timeout_s or definition.timeout_s
        attributes = {
            "tenant": context.tenant,
            "name": definition.name,
            "version": definition.version,
            **({"parent": inside.id} if inside else {}),
        }
        options = RunOptions(
            queue=self.choose_queue(queue or definition.queue, key, delay_s, priority),
            key=key,
            delay_s=delay_s,
            priority=priority,
            timeout_s=None if limit_s is None else limit_s + DEADLINE_MARGIN_S,
            is_light=is_light,
        )
        if inside is None:
            await self._start(run_id, envelope, attributes, options)
            return run_id

        async def start() -> str:
            await self._start(run_id, envelope, attributes, options)
            return run_id

        started: str = await inside.record(f"start {definition.name}", start, str)
        return started

    def check(
        self, workflow: Workflow[Any, Any] | str, args: Any
    ) -> tuple[Workflow[Any, Any], bytes]:
        """Return a workflow and the arguments for a run as they are recorded.

        Raises:
            NotFound: No plugin has registered it.
            InvalidData: The arguments don't fit, or are too large.
        """
        name = workflow if isinstance(workflow, str) else workflow.name
        found = self.definitions.newest(name)
        if found is None:
            hint = did_you_mean(name, self.definitions.names())
            raise NotFound(f"no plugin has registered a workflow {name!r}{hint}")
        return found, self._encode_args(found, args)

    def _encode_args(self, definition: Workflow[Any, Any], args: Any) -> bytes:
        if definition.args_type is None:
            if args not in (None, {}):
                raise InvalidData(f"the workflow {definition.name} takes no arguments")
            return b"null"
        what = f"what the workflow {definition.name} is given"
        data = codec.encoded(args, self.settings.max_args_bytes, what, "max_args_bytes")
        convert_args(definition, msgspec.json.decode(data))
        return data

    def _run_id(self, tenant: str, given: str | None) -> str:
        if given is None:
            return uuid.uuid4().hex
        return given if tenant == "default" else f"{tenant}:{given}"

    def choose_queue(
        self,
        queue: str | None,
        key: str | None,
        delay_s: float = 0.0,
        priority: int | None = None,
    ) -> str | None:
        """Return the queue that a run goes to; ``None`` when it is begun at once.

        Raises:
            InvalidData: There is no such queue, or it takes keys, or none.
        """
        if queue is None:
            if key is not None:
                return KEYED_QUEUE
            is_full = len(self.runner.running) >= self.settings.max_running
            return DEFAULT_QUEUE if delay_s or priority is not None or is_full else None
        options = self.queues.get(queue)
        if options is None:
            hint = did_you_mean(queue, self.queues)
            raise InvalidData(f"no plugin has declared a queue {queue!r}{hint}")
        if options.is_partitioned != (key is not None):
            wanted = "a key for each run" if options.is_partitioned else "no keys"
            raise InvalidData(f"the queue {queue} takes {wanted}")
        return queue

    async def _start(
        self, run_id: str, envelope: Envelope, attributes: dict[str, Any], options: RunOptions
    ) -> None:
        await self.ready()
        creator = uuid.uuid4().hex
        inputs = msgspec.json.encode({"args": [envelope], "kwargs": {}})
        try:
            verdict, deadline_ms = await self.store.start_run(
                run_id, creator, msgspec.json.encode(attributes), inputs, options
            )
        except Fenced as error:
            self.duty.lose()
            raise Unavailable("this daemon starts no runs any more", retry_after_s=1.0) from error
        if verdict == "other":
            raise Conflict(f"the id {run_id} is that of another run")
        if verdict == "new" and options.queue is None:
            self.runner.begin(Dispatched(run_id, creator, envelope, deadline_ms, is_fresh=True))

    async def ready(self) -> None:
        """Wait until the engine has been launched, and this daemon is in office.

        Raises:
            Unavailable: Postgres is away, or this daemon runs no workflows any more.
        """
        if self._is_closed:
            raise Unavailable("this daemon starts no runs any more", retry_after_s=1.0)
        if not self._database.is_up:
            raise Unavailable("nothing can be recorded: Postgres is away", retry_after_s=0.5)
        await self._opened.wait()
        if self._is_closed:
            raise Unavailable("this daemon starts no runs any more", retry_after_s=1.0)

    async def start_scheduled(self, due: Any, run_id: str, context: Context) -> str:
        """Start a run of a schedule, if it is not started yet; return its id."""
        with acting_as(context):
            definition, data = self.check(due["workflow"], msgspec.json.decode(due["args"]))
            limit_s = definition.timeout_s
            queue = due["queue"] or definition.queue
            attributes = {
                "tenant": context.tenant,
                "name": definition.name,
                "version": definition.version,
                "schedule": due["name"],
            }
            options = RunOptions(
                queue=self.choose_queue(queue, due["key"]),
                key=due["key"],
                timeout_s=None if limit_s is None else limit_s + DEADLINE_MARGIN_S,
            )
            envelope = Envelope(
                name=definition.name, version=definition.version, args=Raw(data), context=context
            )
            await self._start(run_id, envelope, attributes, options)
        return run_id

    async def result(
        self,
        run_id: str,
        *,
        timeout_s: float | None = None,
        result_type: Any = Any,
        tenant: str | None = None,
    ) -> Any:
        """Wait for a run's end, and return what it returned.

        Raises:
            TimedOut: It did not end within ``timeout_s``.
            KsiError: What the run failed with; `Cancelled` when it was cancelled.
        """
        row = await self.wait(tenant or _tenant(), run_id, timeout_s)
        if row["status"] == "finished":
            return msgspec.json.decode(row["output"] or "null", type=result_type)
        if row["status"] == "cancelled":
            raise Cancelled(f"the run {run_id} was cancelled")
        if row["status"] == "quarantined":
            raise Failed(f"the run {run_id} is set aside: its workers died")
        raise codec.error_of(codec.decode_error(row["error"] or ""))

    async def wait(self, tenant: str, run_id: str, timeout_s: float | None) -> Any:
        """Wait for a run's end; return the row of its outcome.

        Raises:
            NotFound: The tenant has no such run.
            TimedOut: It did not end in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with self._waiters.watching(run_id) as news:
                        row = await self.store.outcome(tenant, run_id)
                        if row is None:
                            raise NotFound(f"there is no run {run_id}")
                        if row["status"] in ENDED:
                            return row
                        await asyncio.wait({news}, timeout=LOOK_AGAIN_S)
        except TimeoutError as error:
            raise TimedOut(f"the run {run_id} did not end within {timeout_s} s") from error

    async def find(self, tenant: str, run_id: str) -> Any:
        """Return the row of a tenant's run.

        Raises:
            NotFound: The tenant has no such run.
        """
        rows = await self.store.runs(tenant, ids=[run_id], limit=1)
        if not rows:
            raise NotFound(f"there is no run {run_id}")
        return rows[0]

    async def cancel(self, run_id: str, *, tenant: str | None = None) -> str:
        """End a run; return the status that it has then."""
        await self.ready()
        owner = tenant or _tenant()
        if (await self.find(owner, run_id))["status"] not in ("finished", "failed"):
            await self.engine.cancel(run_id)
            self._cancelled(run_id)
            self.news.tell("cancelled", run_id)
        status: str = (await self.find(owner, run_id))["status"]
        return status

    async def resume(self, run_id: str, *, was: str, tenant: str | None = None) -> str:
        """Let a run go on that was ``cancelled`` or is ``quarantined``; return its status then.

        Raises:
            Conflict: It is something else.
        """
        await self.ready()
        owner = tenant or _tenant()
        status = (await self.find(owner, run_id))["status"]
        if status != was:
            raise Conflict(f"the run {run_id} is {status}, not {was}")
        await self.engine.resume(run_id)
        now: str = (await self.find(owner, run_id))["status"]
        return now

    async def fork(
        self,
        run_id: str,
        from_step: int,
        *,
        id: str | None = None,  # noqa: A002  it is what it is called
        tenant: str | None = None,
    ) -> str:
        """Start a copy of a run, which takes over the outcomes of earlier steps; return its id."""
        await self.ready()
        owner = tenant or _tenant()
        await self.find(owner, run_id)
        new_id = self._run_id(owner, id)
        if await self.store.outcome(None, new_id) is not None:
            raise Conflict(f"the id {new_id} is that of another run")
        await self.engine.fork(run_id, from_step, new_id)
        return new_id

    async def signal(
        self, run_id: str, topic: str, payload: Any = None, *, tenant: str | None = None
    ) -> None:
        """Leave a signal for a run.

        Raises:
            NotFound: The tenant has no such run.
            Conflict: It has ended.
            Busy: Too many wait for it.
        """
        limit = self.settings.max_output_bytes
        data = codec.encoded(payload, limit, f"a signal on {topic}", "max_output_bytes")
        maximum = self.settings.max_waiting_signals
        owner = tenant or _tenant()
        verdict = await self.store.send_signal(owner, run_id, topic, data, maximum)
        if verdict == "not_found":
            raise NotFound(f"there is no run {run_id}")
        if verdict == "ended":
            raise Conflict(f"the run {run_id} has ended")
        if verdict == "full":
            raise Busy(
                f"{maximum} signals wait for the run {run_id} (workflows.max_waiting_signals)",
                retry_after_s=5.0,
            )

    # What the engine tells, in its threads.

    def execute(self, dispatched: Dispatched) -> "Future[Any]":
        """Execute a run that the engine hands out."""
        return self.runner.execute(dispatched)

    def ended(self, run: str, written: bool, output: str | None, error: str | None) -> None:
        """Note that a run's outcome is recorded, or was not this daemon's to record."""
        self._on_loop(self.runner.ended, run, written, output, error)

    def set_aside(self, runs: list[str]) -> None:
        """Note that runs have used up their attempts."""
        self._on_loop(self._note_aside, runs)

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    # What becomes of the daemon's office.

    def opened(self) -> None:
        """Note that runs can be started."""
        self._opened.set()

    def closed(self) -> None:
        """Note that they can't be any more."""
        self._is_closed = True
        self._opened.set()

    def give_up(self, why: str) -> None:
        """Stop the daemon."""
        self._give_up(why)

    async def run_clock(self) -> None:
        """Start what is due by the clock, for ever."""
        await self._opened.wait()
        if not self._is_closed:
            await self.clock.run()

    # What becomes of runs, on the loop.

    def run_started(self, run: Run) -> None:
        """Publish that a run's body is about to be called."""
        with acting_as(run.context):
            self._bus.publish(
                "workflow:started",
                e.WorkflowStarted(
                    run_id=run.id, name=run.name, version=run.version, attempt=run.attempt
                ),
            )

    def run_ended(
        self, run_id: str, run: Run | None, output: str | None, error: str | None
    ) -> None:
        """Publish a run's end, and wake who waits for it."""
        self._waiters.wake(run_id)
        self.news.tell("ended", run_id)
        if run is None:
            return
        took_s = round(time.monotonic() - run.began_at, 4)
        with acting_as(run.context):
            if error is None:
                finished = e.WorkflowFinished(
                    run_id=run_id, name=run.name, version=run.version, duration_s=took_s
                )
                self._bus.publish("workflow:finished", finished)
            else:
                failed = e.WorkflowFailed(
                    run_id=run_id,
                    name=run.name,
                    version=run.version,
                    duration_s=took_s,
                    error=codec.decode_error(error).body,
                )
                self._bus.publish("workflow:failed", failed)

    def _note_aside(self, runs: list[str]) -> None:
        for run_id in runs:
            self._waiters.wake(run_id)
            self.news.tell("ended", run_id)
            self.duty.set_aside(run_id)

    def _cancelled(self, run_id: str) -> None:
        self._waiters.wake(run_id)
        run = self.runner.running.get(run_id)
        if run is not None:
            run.interrupt("cancelled")

    def _signalled(self, run_id: str) -> None:
        run = self.runner.running.get(run_id)
        if run is not None:
            run.signalled.set()

    def _missed(self) -> None:
        self._waiters.wake_all()
        self.clock.wake()
        for run in self.runner.running.values():
            run.signalled.set()


def _tenant() -> str:
    context = current_context()
    return "default" if context is None else context.tenant

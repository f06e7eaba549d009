"""Executes runs on the daemon's loop: calls their bodies, and records their steps."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol, Self, TypeVar

import msgspec
from msgspec import Raw, Struct

from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import (
    Conflict,
    Context,
    Failed,
    InvalidData,
    KsiError,
    TimedOut,
)
from ksi_postgres.patience import until_there
from ksi_workflows import codec
from ksi_workflows.codec import Envelope
from ksi_workflows.definitions import ACTIVE_RUN, Retry, Step, Workflow
from ksi_workflows.engine import Dispatched
from ksi_workflows.office import Fenced
from ksi_workflows.settings import WorkflowsSettings
from ksi_workflows.store import Store

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

FIRST_DELAY_S: Final = 0.05
SURELY_NEW_S: Final = 0.5
DEADLINE_MARGIN_S: Final = 5.0  # the engine's own deadline lies behind ours, which says why

Interruption = Literal["cancelled", "stopping", "lost"]


class Run:
    """A run that is being executed here.

    Attributes:
        id: The run's id.
        context: In whose name it acts; what it emits inherits it.
        attempt: How often it was begun since it last got further.
    """

    def __init__(
        self, store: Store, threads: ThreadPoolExecutor, limit: int, dispatched: Dispatched
    ) -> None:
        self.id = dispatched.run
        self.context = Context("")
        self.attempt = 1
        self.name = ""
        self.version = 0
        self.task: asyncio.Task[None] | None = None
        self.signalled = asyncio.Event()
        self.interruption: Interruption | None = None
        self.began_at = time.monotonic()
        self._store = store
        self._threads = threads
        self._max_output_bytes = limit
        self._owner = dispatched.owner
        self._is_fresh = dispatched.is_fresh
        self._number = 0
        self._unpreemptible = 0

    @property
    def tenant(self) -> str:
        """Whose run it is."""
        return self.context.tenant

    def interrupt(self, why: Interruption, *, at_once: bool = False) -> None:
        """End the execution, after the steps that must not be ended early unless ``at_once``."""
        self.interruption = self.interruption or why
        if self.task is not None and (at_once or not self._unpreemptible):
            self.task.cancel()

    async def call_step(self, step: Step[Any, Any], call: Callable[[], Any]) -> Any:
        """Return what a step returned, now or before."""
        number = self._next_number()
        recorded = await self._begin(number, step.name)
        if recorded is not None:
            return self._replay(recorded, step.result_type)
        started_ms = time.time_ns() // 1_000_000
        with self._unless_preemptible(step.preemptible):
            try:
                value = await self._with_retries(step, call)
                output = self._encoded(value, f"what step {number} ({step.name}) returned")
            except Exception as error:  # whatever a step raises is its outcome
                await self._end(number, step.name, started_ms, error=codec.encode_error(error))
                raise
            await self._end(number, step.name, started_ms, output=output)
        return _decoded(output, step.result_type)

    async def record(self, name: str, work: Callable[[], Awaitable[Any]], kind: Any) -> Any:
        """Return what a step of our own returned, now or before."""
        step: Step[Any, Any] = Step(
            work, name=name, retries=_OUR_OWN, timeout_s=None, preemptible=True
        )
        step.result_type = kind
        return await self.call_step(step, work)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    @property
    def next_child(self) -> str:
        """The id of a run that the next step starts: the same each time."""
        return f"{self.id}-{self._number + 1}"

    def _encoded(self, value: Any, what: str) -> bytes:
        return codec.encoded(value, self._max_output_bytes, what, "max_output_bytes")

    async def _begin(self, number: int, name: str) -> tuple[str | None, str | None] | None:
        """Return what was recorded of a step; ``None`` when it is to be called."""
        if self._is_surely_new(number):
            return None
        while True:
            verdict, output, error = await self._persist(
                lambda: self._store.begin_step(self.id, self._owner, number, name)
            )
            if verdict == "recorded":
                return output, error
            if verdict == "other":
                raise Conflict(
                    f"step {number} was {output!r} when it was recorded, and is {name!r} now: "
                    "give a changed workflow another version, and keep the old one for its runs"
                )
            if verdict != "run":
                await self._abandon("cancelled" if verdict == "cancelled" else "lost")
            if self.interruption is not None:
                await self._abandon(self.interruption)
            if self._store.lease.is_fresh:
                return None
            # The process stood still since it asked, and another may have taken over.
            await self._persist(self._store.renew)

    def _is_surely_new(self, number: int) -> bool:
        """Say whether nothing can be recorded of a step, as its run was started here just now."""
        return (
            number == 1
            and self._is_fresh
            and self.interruption is None
            and time.monotonic() - self.began_at < SURELY_NEW_S
            and self._store.lease.is_fresh
        )

    def _replay(self, recorded: tuple[str | None, str | None], kind: Any) -> Any:
        output, error = recorded
        if error is not None:
            raise codec.error_of(codec.decode_error(error))
        return _decoded(output or "null", kind)

    async def _end(self, number: int, name: str, started_ms: int, **outcome: bytes) -> None:
        verdict = await self._persist(
            lambda: self._store.end_step(self.id, self._owner, number, name, started_ms, **outcome)
        )
        if verdict == "lost":
            await self._abandon("lost")
        if verdict == "other":
            raise Conflict(f"step {number} ({name}) was recorded twice: its number is not stable")

    async def _with_retries(self, step: Step[Any, Any], call: Callable[[], Any]) -> Any:
        attempt = 1
        while True:
            try:
                return await self._call(step, call)
            except Exception as error:  # the policy says which of them may pass
                delay_s = step.retries.delay_s(attempt, error)
                if delay_s is None:
                    raise
                await self._note(step, attempt, error, delay_s)
                await asyncio.sleep(delay_s)
            attempt += 1

    async def _note(
        self, step: Step[Any, Any], attempt: int, error: Exception, delay_s: float
    ) -> None:
        record = codec.record_of(error)
        log.warning(
            "a step is tried again",
            extra={
                "step": step.name,
                "attempt": attempt,
                "delay_s": round(delay_s, 3),
                "error": record.body.message,
            },
        )
        why = f"step {step.name!r} failed: {record.body.message}"
        await self._persist(
            lambda: self._store.note_trouble(self.id, self._owner, why, record.traceback)
        )

    async def _call(self, step: Step[Any, Any], call: Callable[[], Any]) -> Any:
        token = ACTIVE_RUN.set(None)
        try:
            if step.is_plain:
                inside = contextvars.copy_context()
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, inside.run, call)
            async with asyncio.timeout(step.timeout_s) as limit:
                return await call()
        except TimeoutError as error:
            if not step.is_plain and limit.expired():
                raise TimedOut(f"step {step.name} took longer than {step.timeout_s} s") from error
            raise
        finally:
            ACTIVE_RUN.reset(token)

    @contextmanager
    def _unless_preemptible(self, is_preemptible: bool) -> Iterator[None]:
        """Hold off an interruption until the step is recorded."""
        if is_preemptible:
            yield
            return
        self._unpreemptible += 1
        try:
            yield
        finally:
            self._unpreemptible -= 1
            if self.interruption is not None and not self._unpreemptible and self.task:
                self.task.cancel()

    async def _abandon(self, why: Interruption) -> None:
        """Leave the run as it stands; never returns."""
        self.interrupt(why, at_once=True)
        await asyncio.Event().wait()

    async def _persist(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask until Postgres answers: what was done must not be lost because it is away."""
        try:
            return await until_there(ask)
        except Fenced:
            await self._abandon("lost")
            raise AssertionError from None  # that never returns

    async def sleep(self, seconds: float) -> None:
        """Wait until a time that is recorded once."""

        async def choose() -> float:
            return time.time() + seconds

        until = await self.record("sleep", choose, float)
        await asyncio.sleep(max(0.0, until - time.time()))

    async def receive(self, topic: str, kind: Any, timeout_s: float | None) -> Any:
        """Return the next signal on a topic; each is returned once."""

        async def choose() -> float:
            return time.time() + (timeout_s or 0.0)

        until: float | None = None
        if timeout_s is not None:
            until = await self.record(f"receive {topic} until", choose, float)
        name = f"receive {topic}"
        number = self._next_number()
        recorded = await self._begin(number, name)
        if recorded is not None:
            return self._replay(recorded, kind)
        started_ms = time.time_ns() // 1_000_000
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.time())):
                return _decoded(await self._take(number, name, started_ms, topic), kind)
        except TimeoutError as error:
            late = TimedOut(f"no signal came on {topic} within {timeout_s} s")
            await self._end(number, name, started_ms, error=codec.encode_error(late))
            raise late from error

    async def _take(self, number: int, name: str, started_ms: int, topic: str) -> str:
        while True:
            self.signalled.clear()
            verdict, taken = await self._persist(
                lambda: self._store.take_signal(
                    self.id, self._owner, number, name, started_ms, topic
                )
            )
            if verdict == "ok" and taken is not None:
                return taken
            if verdict == "lost":
                await self._abandon("lost")
            await self.signalled.wait()

    async def park(self) -> None:
        """Lay the run aside, since no plugin here knows its workflow; never returns."""
        log.warning(
            "a run waits for a plugin that knows its workflow",
            extra={"workflow": self.name, "version": self.version, "run": self.id},
        )
        await self._persist(lambda: self._store.park(self.id, self._owner))
        await self._abandon("lost")

    async def end(self, output: bytes | None, error: bytes | None) -> bool:
        """Record the outcome; say whether it was this daemon's to record."""
        return await self._persist(lambda: self._store.end_run(self.id, self._owner, output, error))

    async def count_attempts(self) -> None:
        """Note how often the run was begun."""
        self.attempt = await self._persist(lambda: self._store.attempts(self.tenant, self.id))


# What we do for a run ourselves is done until it works: Postgres may be away for a while.
_OUR_OWN: Final = Retry(max_attempts=1_000_000, first_delay_s=FIRST_DELAY_S, max_delay_s=5.0)


class _EnvelopeRead(Struct, frozen=True, kw_only=True):
    """An envelope as the engine gives it back."""

    name: str
    version: int
    args: Any
    context: Context


def _read(given: Any) -> _EnvelopeRead:
    """Return an envelope as it was started with, or as the engine gives it back."""
    if not isinstance(given, Envelope):
        return msgspec.convert(given, _EnvelopeRead)
    return _EnvelopeRead(
        name=given.name,
        version=given.version,
        args=msgspec.json.decode(given.args),
        context=given.context,
    )


class Watcher(Protocol):
    """Is told what becomes of runs."""

    def run_started(self, run: Run) -> None:
        """Note that a run's body is about to be called."""

    def run_ended(
        self, run_id: str, run: Run | None, output: str | None, error: str | None
    ) -> None:
        """Note that a run's outcome is recorded."""


def convert_args(definition: Workflow[Any, Any], args: Any) -> Any:
    """Return arguments as the workflow declares them.

    Raises:
        InvalidData: They don't fit; the message has the path of the field.
    """
    try:
        return msgspec.convert(args, definition.args_type)
    except msgspec.ValidationError as error:
        raise InvalidData(f"arguments of {definition.name}: {error}") from error


def _decoded(output: str | bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(output, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidData(f"what was recorded does not fit {kind}: {error}") from error


class Definitions:
    """The workflows that the plugins of this daemon have registered."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Workflow[Any, Any]] = {}
        self._added = asyncio.Event()
        self.is_complete = False

    def add(self, workflow: Workflow[Any, Any]) -> None:
        """Take on a workflow.

        Raises:
            Conflict: There is another of that name and version.
        """
        key = (workflow.name, workflow.version)
        known = self._known.get(key)
        if known is not None and known.function != workflow.function:
            raise Conflict(f"the workflow {key[0]} has two functions of version {key[1]}")
        self._known[key] = workflow
        self._wake()

    def complete(self) -> None:
        """Note that every plugin has registered what it has."""
        self.is_complete = True
        self._wake()

    def _wake(self) -> None:
        self._added.set()
        self._added = asyncio.Event()

    def names(self) -> list[str]:
        """Return the names of all."""
        return sorted({name for name, _ in self._known})

    def runnable(self) -> list[tuple[str, int]]:
        """Return the names and versions of runs that can go on here."""
        accepted = {(w.name, old) for w in self._known.values() for old in w.accepts}
        return sorted(accepted | self._known.keys())

    def newest(self, name: str) -> Workflow[Any, Any] | None:
        """Return the workflow that a new run is of."""
        of_name = [w for w in self._known.values() if w.name == name]
        return max(of_name, key=lambda w: w.version, default=None)

    def find(self, name: str, version: int) -> Workflow[Any, Any] | None:
        """Return the workflow that can go on with a run of that version."""
        accepting = [w for w in self._known.values() if w.name == name and version in w.accepts]
        newest = max(accepting, key=lambda w: w.version, default=None)
        return self._known.get((name, version)) or newest

    async def wait_for(self, name: str, version: int) -> Workflow[Any, Any] | None:
        """Return that workflow once its plugin has started, or ``None`` if none has it."""
        while (found := self.find(name, version)) is None and not self.is_complete:
            await self._added.wait()
        return found


class Runner:
    """Executes what the engine hands out.

    Args:
        settings: The plugin's.
        store: Asks Postgres.
        definitions: The workflows that are known.
        watcher: Is told what becomes of the runs.
    """

    def __init__(
        self,
        settings: WorkflowsSettings,
        store: Store,
        definitions: Definitions,
        watcher: "Watcher",
    ) -> None:
        self.running: dict[str, Run] = {}
        self._settings = settings
        self._store = store
        self._definitions = definitions
        self._watcher = watcher
        self._threads = ThreadPoolExecutor(settings.step_threads, "ksi-step")
        self._tasks: asyncio.TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._idle = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.abandon_all("stopping")
        assert self._tasks is not None
        await self._tasks.__aexit__(None, None, None)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def execute(self, dispatched: Dispatched) -> "Future[Any]":
        """Execute a run; called in the engine's thread."""
        future: Future[Any] = Future()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin, dispatched, future)
        return future

    def begin(self, dispatched: Dispatched) -> None:
        """Execute a run that the engine does not know of."""
        future: Future[Any] = Future()
        self._begin(dispatched, future)

    def _begin(self, dispatched: Dispatched, future: "Future[Any]") -> None:
        if self._is_stopping or self._tasks is None:
            future.cancel()
            return
        run = Run(self._store, self._threads, self._settings.max_output_bytes, dispatched)
        before = self.running.get(run.id)
        if before is not None:  # it was given back and came here again
            before.interrupt("lost", at_once=True)
        self.running[run.id] = run
        work = self._guarded(run, dispatched, future)
        run.task = self._tasks.create_task(work, name=f"run {run.id}")
        run.task.add_done_callback(lambda task: self._done(run, task, future))

    def _done(self, run: Run, task: "asyncio.Task[None]", future: "Future[Any]") -> None:
        if task.cancelled() or not future.done():  # a done one waits for the engine's record
            future.cancel()
            self._forget(run)

    def _forget(self, run: Run) -> None:
        if self.running.get(run.id) is run:
            del self.running[run.id]
        if not self.running:
            self._idle.set()

    async def _guarded(self, run: Run, dispatched: Dispatched, future: "Future[Any]") -> None:
        try:
            await self._execute(run, dispatched, future)
        except Exception:
            log.exception("a run is left as it stands", extra={"run": run.id})

    async def _execute(self, run: Run, dispatched: Dispatched, future: "Future[Any]") -> None:
        try:
            output = await self._body(run, dispatched)
        except asyncio.CancelledError:
            if run.interruption is not None or self._is_stopping:
                raise
            await self._fail(run, dispatched, future, Failed("the workflow cancelled itself"))
        except Exception as error:  # noqa: BLE001  whatever a body raises is the run's outcome
            await self._fail(run, dispatched, future, error)
        else:
            if dispatched.is_fresh:
                await self._record(run, output, None)
            else:
                future.set_result(Raw(output))

    async def _fail(
        self, run: Run, dispatched: Dispatched, future: "Future[Any]", error: Exception
    ) -> None:
        if run.interruption is not None:
            return
        self._log_failure(run, error)
        if dispatched.is_fresh:
            await self._record(run, None, codec.encode_error(error))
        else:
            future.set_exception(error)

    async def _record(self, run: Run, output: bytes | None, error: bytes | None) -> None:
        """Record the outcome of a run that the engine does not know of."""
        written = await run.end(output, error)
        texts = [None if part is None else part.decode() for part in (output, error)]
        self.ended(run.id, written, *texts)

    def _log_failure(self, run: Run, error: Exception) -> None:
        log.warning(
            "a run failed",
            exc_info=None if isinstance(error, KsiError) else error,
            extra={"workflow": run.name, "run": run.id, "error": str(error)},
        )

    async def _body(self, run: Run, dispatched: Dispatched) -> bytes:
        envelope = _read(dispatched.envelope)
        run.name, run.version = envelope.name, envelope.version
        run.context = msgspec.structs.replace(envelope.context, run=run.id)
        definition = await self._definitions.wait_for(envelope.name, envelope.version)
        if definition is None:
            await run.park()
        assert definition is not None
        if not dispatched.is_fresh:
            await run.count_attempts()
        self._watcher.run_started(run)
        return await self._call(run, definition, envelope.args, dispatched.deadline_ms)

    async def _call(
        self, run: Run, definition: Workflow[Any, Any], args: Any, deadline_ms: int | None
    ) -> bytes:
        given = []
        if definition.args_type is not None:
            given = [convert_args(definition, args)]
        limit_s = None
        if deadline_ms is not None:
            limit_s = deadline_ms / 1000 - DEADLINE_MARGIN_S - time.time()
        ACTIVE_RUN.set(run)
        with acting_as(run.context):
            try:
                async with asyncio.timeout(limit_s) as limit:
                    value = await definition.function(*given)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                took_s = definition.timeout_s
                raise TimedOut(f"the run took longer than {took_s} s") from error
        what = f"what the workflow {definition.name} returned"
        maximum = self._settings.max_output_bytes
        return codec.encoded(value, maximum, what, "max_output_bytes")

    def ended(self, run_id: str, written: bool, output: str | None, error: str | None) -> None:
        """Note that a run's outcome was recorded, or was not this daemon's to record."""
        run = self.running.get(run_id)
        if run is not None:
            self._forget(run)
        if written:
            self._watcher.run_ended(run_id, run, output, error)

    def abandon_all(self, why: Interruption) -> None:
        """End every execution at once, and take on no more; the runs stay as they are."""
        self._is_stopping = True
        for run in list(self.running.values()):
            run.interrupt(why, at_once=True)

    async def wind_up(self, grace_s: float) -> None:
        """Let the steps that run finish, and begin no others; does nothing the second time."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._idle.clear()
        for run in list(self.running.values()):
            run.interrupt("stopping")
        if self.running:
            try:
                async with asyncio.timeout(grace_s):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("steps are interrupted", extra={"runs": len(self.running)})

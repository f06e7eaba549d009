"""Drives DBOS, in threads of its own.

DBOS keeps the runs: it stores them, queues them, hands them out and gives them back after a crash.
It is synchronous underneath, and it makes the default executor of whatever loop it runs on its
own; so it has a loop in a thread of its own, and the bodies of workflows are executed on the
daemon's. What is asked often, to begin and end runs and steps, we ask ourselves in one round trip
each, in the rows that DBOS would write; whatever gets into a queue, by its starter or after its
worker's death, DBOS hands out. DBOS is one to a process.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

from msgspec import Struct

from ksi_daemon.protocol import Conflict, Unavailable
from ksi_workflows.codec import Serializer
from ksi_workflows.office import Lease
from ksi_workflows.settings import WorkflowsSettings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Pinned for ever: the engine recovers only what bears the version that it runs as. Which version
# of which workflow a run is of, we note ourselves.
APPLICATION_VERSION: Final = "ksi-1"
APPLICATION: Final = "ksi"
ENTRY: Final = "ksi"
DEFAULT_QUEUE: Final = "ksi_default"
KEYED_QUEUE: Final = "ksi_keyed"
OWN_QUEUES: Final = (DEFAULT_QUEUE, KEYED_QUEUE)
RENEW_TIMEOUT_S: Final = 2
LAUNCH_TIMEOUT_S: Final = 60.0
QUEUES_WITHIN_S: Final = 2.0
UNUSED_S: Final = 0.1  # a stop waits for it

_ONE: Final = threading.Lock()  # DBOS keeps its state in module globals
# What DBOS says of every run that fails or is given up, we say ourselves.
_SAID_BY_US: Final = (
    "Exception encountered in asynchronous workflow",
    "Asyncio task cancelled for workflow or step",
    "To view and manage workflows, connect to DBOS Conductor",
)


class QueueOptions(Struct, frozen=True, kw_only=True):
    """A queue as DBOS is told of it; see `ksi_workflows.workflows.Workflows.queue`."""

    name: str
    concurrency: int | None = None
    worker_concurrency: int | None = None
    rate: int | None = None
    rate_period_s: float = 1.0
    is_partitioned: bool = False
    poll_s: float = 1.0


class Dispatched(Struct, frozen=True):
    """A run that this process is to execute; ``owner`` fences it in its rows.

    One that is ``fresh`` was begun by its starter, and DBOS does not know of it.
    """

    run: str
    owner: str
    envelope: Any
    deadline_ms: int | None
    is_fresh: bool = False


class Listener(Protocol):
    """Whoever executes the runs; called in the engine's threads."""

    def execute(self, dispatched: Dispatched) -> "Future[Any]":
        """Execute a run; the future has its result, or is cancelled to leave it as it is."""

    def ended(self, run: str, written: bool, output: str | None, error: str | None) -> None:
        """Note that a run's outcome is recorded, or was not this process's to record."""

    def set_aside(self, runs: list[str]) -> None:
        """Note that runs have used up their attempts."""


class Engine:
    """DBOS, launched.

    Args:
        settings: The plugin's.
        listener: Executes the runs.
    """

    def __init__(self, settings: WorkflowsSettings, listener: Listener) -> None:
        self._settings = settings
        self._listener = listener
        self._dbos: Any = None
        self._sqlalchemy_engine: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entry: Any = None
        self._launched = threading.Event()
        self._is_held = False
        self._is_stopped = False
        self._url = ""

    def prepare(self, admin_url: str) -> None:
        """Make DBOS's tables, or bring them up to date. Blocks.

        Raises:
            Conflict: Another daemon in this process runs workflows.
        """
        if not _ONE.acquire(blocking=False):
            raise Conflict("another daemon in this process runs workflows: run it in its own")
        self._is_held = True
        make_tables(admin_url)

    def launch(self, url: str, lease: Lease) -> None:
        """Launch DBOS under a lease. Blocks."""
        import sqlalchemy as sa  # noqa: PLC0415  late: it takes a while
        from dbos import DBOS  # noqa: PLC0415  late: it takes a while

        settings = self._settings
        self._url, self._is_stopped = url, False
        self._sqlalchemy_engine = _make_engine(
            url,
            {
                "role": "ksi_app",
                "ksi.executor": lease.executor,
                "ksi.epoch": str(lease.epoch),
                # A frozen process must not hold up its successor: its transactions end before.
                "idle_in_transaction_session_timeout": str(int(lease.lease_s * 500)),
            },
            pool_size=settings.engine_connections,
            max_overflow=0,
        )
        sa.event.listen(self._sqlalchemy_engine, "checkin", self._close_what_comes_late)
        self._dbos = DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": _shown(url),
                "system_database_engine": self._sqlalchemy_engine,
                "application_version": APPLICATION_VERSION,
                "executor_id": lease.executor,
                "max_executor_threads": settings.engine_threads,
                "serializer": _serializer(),
                "run_migrations": False,
                "log_level": "WARNING",
                # DBOS's own streams and events have no use here; the thread that tells of them
                # would wake a hundred times a second.
                "notification_coalesce_sec": UNUSED_S,
            }
        )
        _quieten()

        async def enter(envelope: Any) -> Any:  # DBOS notes things on it, which a method can't bear
            return await self._enter(envelope)

        register = DBOS.workflow(name=ENTRY, max_recovery_attempts=settings.max_recovery_attempts)
        self._entry = register(enter)
        internal = self._dbos._registry.get_internal_queue()
        internal._polling_interval_sec = min(
            1.0, settings.queue_poll_s, settings.takeover_after_s / 8
        )
        DBOS.launch()
        self._watch_outcomes(self._dbos._sys_db)
        self._loop = self._dbos._background_event_loop._loop
        self._launched.set()
        worker = settings.max_running
        self.register_queue(
            QueueOptions(
                name=DEFAULT_QUEUE, worker_concurrency=worker, poll_s=settings.queue_poll_s
            )
        )
        self.register_queue(
            QueueOptions(
                name=KEYED_QUEUE,
                worker_concurrency=worker,
                is_partitioned=True,
                poll_s=settings.queue_poll_s,
            )
        )

    def _close_what_comes_late(self, connection: object, record: Any) -> None:
        """Close a connection that a thread of DBOS gives back when the pool is gone already."""
        if self._is_stopped:
            record.invalidate()

    def _watch_outcomes(self, database: Any) -> None:
        """Be told of every outcome, in the moment in which it is recorded."""
        record, set_aside = database.update_workflow_outcome, database.dead_letter_workflows

        def recording(run: str, status: str, **values: Any) -> bool:
            written: bool = record(run, status, **values)
            self._listener.ended(run, written, values.get("output"), values.get("error"))
            return written

        def setting_aside(runs: list[str], **values: Any) -> None:
            set_aside(runs, **values)
            self._listener.set_aside(runs)

        database.update_workflow_outcome = recording
        database.dead_letter_workflows = setting_aside

    async def _enter(self, envelope: Any) -> Any:
        """Be the one workflow that DBOS knows; which one it really is stands in the envelope."""
        from dbos._context import assert_current_dbos_context  # noqa: PLC0415  late: it takes a while

        if not self._launched.is_set():  # outcomes are watched from then on
            await asyncio.to_thread(self._launched.wait, LAUNCH_TIMEOUT_S)
        context = assert_current_dbos_context()
        assert context.owner_xid is not None
        dispatched = Dispatched(
            context.workflow_id, context.owner_xid, envelope, context.workflow_deadline_epoch_ms
        )
        return await asyncio.wrap_future(self._listener.execute(dispatched))

    @property
    def is_launched(self) -> bool:
        """Whether runs can be started."""
        return self._launched.is_set()

    def known_runs(self) -> list[str]:
        """Return the ids of the runs that are in DBOS's hands here."""
        return list(self._dbos._active_workflows_set.activeList()) if self._dbos else []

    async def on_loop(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return what a coroutine function returns that runs on DBOS's own loop.

        Raises:
            Unavailable: DBOS is not launched, or has been stopped.
        """
        loop = self._loop
        if loop is None:
            raise Unavailable("the durable engine is not running", retry_after_s=0.2)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_call(work), loop))

    def register_queue(self, options: QueueOptions) -> None:
        """Make a queue, or change one. Blocks."""
        from dbos import DBOS  # noqa: PLC0415  late: it takes a while

        rate: Any = None
        if options.rate is not None:
            rate = {"limit": options.rate, "period": options.rate_period_s}
        each = options.is_partitioned
        DBOS.register_queue(
            options.name,
            global_concurrency=None if each else options.concurrency,
            partition_concurrency=(options.concurrency or 1) if each else None,
            worker_concurrency=options.worker_concurrency,
            limiter=None if each else rate,
            partition_limiter=rate if each else None,
            polling_interval_sec=options.poll_s,
            on_conflict="always_update",
        )

    async def cancel(self, run: str) -> None:
        """Have a run end; what it executes ends at its next step."""
        from dbos import DBOS  # noqa: PLC0415  late: it takes a while

        await self.on_loop(lambda: DBOS.cancel_workflow_async(run))

    async def resume(self, run: str) -> None:
        """Queue a run that was cancelled or set aside; it goes on after its last step."""
        from dbos import DBOS  # noqa: PLC0415  late: it takes a while

        await self.on_loop(lambda: DBOS.resume_workflow_async(run, queue_name=DEFAULT_QUEUE))

    async def fork(self, run: str, from_step: int, new_run: str) -> None:
        """Queue a copy of a run with the outcomes of the steps before one."""
        from dbos import DBOS, SetWorkflowID  # noqa: PLC0415  late: it takes a while

        async def fork() -> None:
            with SetWorkflowID(new_run):
                await DBOS.fork_workflow_async(run, from_step, queue_name=DEFAULT_QUEUE)

        await self.on_loop(fork)

    def renew_at_once(self, lease: Lease) -> bool | None:
        """Prolong the lease before anything else; ``None`` when nobody can say. Blocks."""
        import psycopg  # noqa: PLC0415  late: it takes a while

        if not self._url:
            return None
        question = "SELECT ksi_workflows.renew(%s, %s)"
        options = f"-c role=ksi_app -c statement_timeout={RENEW_TIMEOUT_S * 1000}"
        try:
            with psycopg.connect(
                self._url, connect_timeout=RENEW_TIMEOUT_S, options=options
            ) as connection:
                row = connection.execute(question, (lease.executor, lease.epoch)).fetchone()
        except psycopg.Error:
            return None
        return bool(row and row[0])

    def stop(self) -> None:
        """End DBOS; what still runs is left as it is. Blocks."""
        try:
            if self._dbos is not None:
                from dbos import DBOS  # noqa: PLC0415  late: it takes a while

                self._loop = None
                _stop_queues(self._dbos)
                DBOS.destroy(destroy_registry=True)
                self._dbos = None
        finally:
            self._launched.clear()
            self._is_stopped = True
            if self._sqlalchemy_engine is not None:
                self._sqlalchemy_engine.dispose()
                self._sqlalchemy_engine = None
            if self._is_held:
                self._is_held = False
                _ONE.release()


def _stop_queues(dbos: Any) -> None:
    """Let nothing be taken out of queues any more: it would find DBOS's loop closed. Blocks."""
    for event in dbos.background_thread_stop_events:
        event.set()
    for thread in dbos._background_threads:
        if "queue_thread" in thread.name:
            thread.join(QUEUES_WITHIN_S)


def make_tables(admin_url: str) -> None:
    """Make DBOS's tables, or bring them up to date, as the owner, and wall them off. Blocks."""
    if not _wall_off(admin_url):
        _migrate(admin_url)
        _wall_off(admin_url)


def _wall_off(admin_url: str) -> bool:
    """Wall DBOS's tables off, if they are as it wants them; say whether they are.

    DBOS looks, too, by half a dozen connections, which takes a quarter of a start.
    """
    import psycopg  # noqa: PLC0415  late: it takes a while
    from dbos._migration import get_dbos_migrations  # noqa: PLC0415  late: it takes a while

    with psycopg.connect(admin_url, options="-c role=ksi_owner") as connection:
        made = connection.execute("SELECT to_regclass('dbos.dbos_migrations')").fetchone()
        if made == (None,):
            return False
        row = connection.execute("SELECT version FROM dbos.dbos_migrations").fetchone()
        if row is None or row[0] < len(get_dbos_migrations("dbos", use_listen_notify=True)):
            return False
        connection.execute("SELECT ksi_workflows.wall_engine()")
        return True


def _migrate(admin_url: str) -> None:
    import sqlalchemy as sa  # noqa: PLC0415  late, in a thread: it takes a while
    from dbos._sys_db import SystemDatabase  # noqa: PLC0415  late: it takes a while

    _quieten()
    # Over a hundred small transactions, each of which would be waited for; what a crash takes away
    # of them is made anew.
    options = {"role": "ksi_owner", "synchronous_commit": "off"}
    engine = _make_engine(admin_url, options, poolclass=sa.pool.NullPool)
    try:
        SystemDatabase.create(
            system_database_url=_shown(admin_url),
            engine_kwargs={},
            engine=engine,
            schema="dbos",
            serializer=_serializer(),
            executor_id=None,
            app_name=APPLICATION,
        ).run_migrations()
    finally:
        engine.dispose()


async def _call(work: Callable[[], Awaitable[Result]]) -> Result:
    return await work()


def _serializer() -> Any:
    from dbos._serialization import Serializer as Base  # noqa: PLC0415  late: it takes a while

    return type("KsiSerializer", (Serializer, Base), {})()


def _make_engine(url: str, options: Mapping[str, str], **pool: Any) -> Any:
    import sqlalchemy as sa  # noqa: PLC0415  late: it takes a while

    arguments = " ".join(f"-c {name}={value}" for name, value in options.items())
    made = sa.make_url(url).set(drivername="postgresql+psycopg")
    # No type of DBOS's is an hstore, and each engine would look for one.
    return sa.create_engine(
        made, connect_args={"options": arguments}, use_native_hstore=False, **pool
    )


def _shown(url: str) -> str:
    """Return the URL without its password, which DBOS need not know: it is given connections."""
    import sqlalchemy as sa  # noqa: PLC0415  late: it takes a while

    return sa.make_url(url).set(password=None).render_as_string()


def _quieten() -> None:
    """Let DBOS's lines go where ours go, but for those that say what we say."""
    logger = logging.getLogger("dbos")
    logger.setLevel(logging.WARNING)
    logger.propagate = True
    for handler in logger.handlers:
        if handler.name == "__dbos_console_log_handler__":
            logger.removeHandler(handler)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # else it would add one for the console
    if _is_news not in logger.filters:
        logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_SAID_BY_US)

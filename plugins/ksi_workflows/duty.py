"""Keeps this daemon in office, and sees to the runs of those that are not any more."""

import asyncio
import contextlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Busy, Context, TimedOut, Unavailable
from ksi_postgres.logins import Logins
from ksi_workflows import events as e
from ksi_workflows.engine import Engine, QueueOptions
from ksi_workflows.office import LEASE_SHARE, Fenced, boot_time, executor_of
from ksi_workflows.runs import Definitions, Runner
from ksi_workflows.settings import WorkflowsSettings
from ksi_workflows.store import Store

log = logging.getLogger(__name__)

AWAY: Final = (Unavailable, TimedOut, Busy)
STRAY_AFTER_S: Final = 10.0
STRAY_EVERY_S: Final = 5.0
TIDY_EVERY_S: Final = 600.0
RETRY_S: Final = 0.5
DAY_S: Final = 24 * 3600.0
LAUNCH_WITHIN_S: Final = 15.0


class Owner(Protocol):
    """Whom the duty is done for: `ksi_workflows.workflows.Workflows`."""

    def opened(self) -> None:
        """Note that runs can be started."""

    def closed(self) -> None:
        """Note that they can't be any more."""

    def give_up(self, why: str) -> None:
        """Stop the daemon."""


class Duty:
    """Launches the engine under a lease, renews it, and takes over from the dead.

    Args:
        settings: The plugin's.
        store: Asks Postgres.
        engine: DBOS.
        runner: Executes runs.
        definitions: The workflows that are known.
        owner: Is told.
        bus: Publishes what is set aside.
    """

    def __init__(
        self,
        settings: WorkflowsSettings,
        store: Store,
        engine: Engine,
        runner: Runner,
        definitions: Definitions,
        owner: Owner,
        bus: Bus,
    ) -> None:
        self.why_not: str | None = None
        self._settings = settings
        self._store = store
        self._engine = engine
        self._runner = runner
        self._definitions = definitions
        self._owner = owner
        self._bus = bus
        self._made_at = boot_time()
        self._has_tables = asyncio.Event()
        self._launched = asyncio.Event()
        self._is_over = False
        self._new_queues: asyncio.Queue[QueueOptions] = asyncio.Queue()
        self._set_aside: asyncio.Queue[str] = asyncio.Queue()

    @property
    def problem(self) -> str | None:
        """Why runs can't be started or go on, if so; that they have to wait a moment is none."""
        late = boot_time() - self._made_at > LAUNCH_WITHIN_S and not self._launched.is_set()
        return self.why_not or ("the engine is still being launched" if late else None)

    @property
    def _lease_s(self) -> float:
        return self._settings.takeover_after_s * LEASE_SHARE

    async def launch(self, home: Path, logins: Logins) -> None:
        """Launch the engine; raises, to be called again, when it can't be."""
        executor = executor_of(home)
        try:
            await to_its_end(self._engine.prepare, logins.admin)
            self._has_tables.set()
            lease, requeued = await self._store.take_office(executor, self._lease_s)
            await to_its_end(self._engine.launch, logins.direct, lease)
        except BaseException as error:
            self.why_not = f"the engine can't be launched: {error}"
            await asyncio.to_thread(self._engine.stop)
            raise
        log.info(
            "runs workflows",
            extra={"executor": executor, "epoch": lease.epoch, "recovered_runs": requeued},
        )
        self.why_not = None
        self._launched.set()
        self._owner.opened()

    async def await_tables(self) -> None:
        """Wait for the engine's tables, where they are being made for the first time."""
        if not await self._store.has_tables():
            with contextlib.suppress(TimeoutError):  # then it is told of by its health
                async with asyncio.timeout(LAUNCH_WITHIN_S):
                    await self._has_tables.wait()

    async def run_lease(self) -> None:
        """Renew the lease, for as long as it is this daemon's."""
        await self._launched.wait()
        while not self._is_over:
            await asyncio.sleep(self._lease_s / 4)
            try:
                async with asyncio.timeout(self._lease_s / 2):
                    await self._store.renew()
            except Fenced:
                self.lose()
            except (*AWAY, TimeoutError) as error:
                self._store.lease.interrupted()
                self.why_not = f"the lease on its runs could not be renewed: {error}"
            else:
                self.why_not = None

    def lose(self) -> None:
        """End all work at once: another daemon does it now."""
        if self._is_over:
            return
        self._is_over = True
        why = (
            "another daemon has taken over the runs of this one, which did not renew its lease "
            f"for {self._lease_s:.1f} s (workflows.takeover_after_s)"
        )
        self.why_not = why
        self._owner.closed()
        self._runner.abandon_all("lost")
        log.critical("the lease is lost: the daemon stops", extra={"why": why})
        self._owner.give_up(why)

    @contextmanager
    def watching_for_standstill(self) -> Iterator[None]:
        """Check the lease first of all when the process is continued after it was stopped.

        A signal handler comes before whatever waited for its turn meanwhile: no effect of a run is
        begun by a process that was stopped for so long that another has taken over.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGCONT, self._continued)
        try:
            yield
        finally:
            signal.signal(signal.SIGCONT, before)

    def _continued(self, number: int, frame: object) -> None:
        if not self._launched.is_set() or self._is_over or self._store.lease.is_fresh:
            return
        asked_at = boot_time()
        is_held = self._engine.renew_at_once(self._store.lease)
        if is_held:
            self._store.lease.renewed(asked_at)
        elif is_held is False:
            self.lose()

    async def run_sweeps(self) -> None:
        """Look after runs that nobody runs, for ever."""
        await self._launched.wait()
        strays_at = tidy_at = boot_time() + STRAY_EVERY_S
        while not self._is_over:
            await asyncio.sleep(self._lease_s / 6)
            try:
                await self._take_over()
                if boot_time() >= strays_at:
                    strays_at = boot_time() + STRAY_EVERY_S
                    await self._look_for_strays()
                if boot_time() >= tidy_at:
                    tidy_at = boot_time() + TIDY_EVERY_S
                    await self._tidy()
            except AWAY:
                continue
            except Fenced:
                self.lose()

    async def _tidy(self) -> None:
        await self._store.tidy()
        if self._settings.keep_ended_days:
            forgotten = await self._store.forget_runs(self._settings.keep_ended_days * DAY_S)
            if forgotten:
                log.info("runs that ended long ago are forgotten", extra={"runs": forgotten})

    async def _take_over(self) -> None:
        lease = self._store.lease
        if not lease.is_fresh or boot_time() - lease.held_since < lease.lease_s:
            return  # when Postgres comes back, the others must have had the time to renew theirs
        for executor, host, pid, requeued in await self._store.take_over():
            log.warning(
                "took over from a daemon that is gone",
                extra={"executor": executor, "host": host, "pid": pid, "runs": requeued},
            )

    async def _look_for_strays(self) -> None:
        known = {*self._engine.known_runs(), *self._runner.running}
        found = await self._store.give_back_stray(sorted(known), STRAY_AFTER_S)
        if found:
            log.warning("queued runs that nobody ran", extra={"runs": found})
        if self._definitions.is_complete:
            await self._unpark()

    async def _unpark(self) -> None:
        found = await self._store.unpark(self._definitions.runnable())
        if found:
            log.info("runs go on whose workflow is known now", extra={"runs": found})

    async def run_settling(self, settled: asyncio.Event) -> None:
        """Once all plugins have started, let the runs go on that waited for one of them."""
        await settled.wait()
        self._definitions.complete()
        await self._launched.wait()
        while True:
            try:
                await self._unpark()
            except AWAY:
                await asyncio.sleep(RETRY_S)
            except Fenced:
                self.lose()
                return
            else:
                return

    def add_queue(self, options: QueueOptions) -> None:
        """Have the engine know of a queue."""
        self._new_queues.put_nowait(options)

    async def run_queues(self) -> None:
        """Tell the engine of queues, for ever."""
        await self._launched.wait()
        while True:
            options = await self._new_queues.get()
            await asyncio.to_thread(self._engine.register_queue, options)

    def set_aside(self, run_id: str) -> None:
        """Note that a run has used up its attempts."""
        self._set_aside.put_nowait(run_id)

    async def run_quarantine(self) -> None:
        """Publish what was set aside, for ever."""
        await self._launched.wait()
        while True:
            run_id = await self._set_aside.get()
            try:
                await self._publish_quarantined(run_id)
            except AWAY:
                self._set_aside.put_nowait(run_id)
                await asyncio.sleep(RETRY_S)

    async def _publish_quarantined(self, run_id: str) -> None:
        text = await self._store.arguments(None, run_id)
        if text is None:
            return
        given = msgspec.json.decode(text)["args"][0]
        context = msgspec.convert(given["context"], Context)
        trouble = await self._store.trouble(context.tenant, run_id)
        why = why_aside(trouble, self._settings.max_recovery_attempts)
        log.error(
            "a run is set aside",
            extra={"workflow": given["name"], "run": run_id, "why": why},
        )
        with acting_as(msgspec.structs.replace(context, run=run_id)):
            quarantined = e.WorkflowQuarantined(
                run_id=run_id, name=given["name"], version=given["version"], why=why
            )
            self._bus.publish("workflow:quarantined", quarantined)

    async def wind_up(self, within_s: float = math.inf) -> None:
        """Let the steps that run finish, and begin no others; does nothing the second time."""
        await self._runner.wind_up(min(self._settings.stop_grace_s, within_s))

    async def stop(self) -> None:
        """Leave office in good order: what is recorded, any daemon can go on with."""
        self._owner.closed()
        await self.wind_up()
        self._runner.abandon_all("stopping")
        is_lost, self._is_over = self._is_over, True
        await asyncio.to_thread(self._engine.stop)
        if self._store.is_in_office and not is_lost:
            try:
                left = await self._store.leave_office()
            except AWAY as error:
                log.warning("left office without a word", extra={"why": str(error)})
            else:
                log.info("left office", extra={"runs_to_go_on_with": left})


async def to_its_end(work: Callable[..., None], *args: object) -> None:
    """Run a function in a thread, which can't be cancelled: whoever waits for it waits on."""
    working = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


def why_aside(trouble: Any, max_recovery_attempts: int) -> str:
    """Say why a run was set aside."""
    times = max_recovery_attempts + 1
    said = f"its worker ended {times} times (workflows.max_recovery_attempts) without getting on"
    if trouble is not None and trouble["step"] is not None:
        number, step, executor = trouble["step_number"], trouble["step"], trouble["executor"]
        said += f"; the last time in step {number} ({step}), in the daemon {executor}"
    return said

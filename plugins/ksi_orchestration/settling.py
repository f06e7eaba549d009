"""Looks after orchestrations that nobody works on: begins them, or notes how their work ended."""

import asyncio
import logging
from typing import Final

from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as, event_observer
from ksi_daemon.protocol import Context, ErrorBody, Event, Failed, KsiError, NotFound
from ksi_orchestration.performing import WORKFLOW, Performing
from ksi_orchestration.settings import OrchestrationSettings
from ksi_orchestration.store import Due, Store
from ksi_orchestration.telling import Telling
from ksi_orchestration.turns import Turns
from ksi_postgres.patience import AWAY, until_there
from ksi_workflows.events import (
    WorkflowDescribed,
    WorkflowFailed,
    WorkflowGet,
    WorkflowOutcome,
    WorkflowQuarantined,
    WorkflowResult,
)

log = logging.getLogger(__name__)

AT_ONCE: Final = 100


class Settling:
    """Has every orchestration worked on, and none go on for ever that is not.

    Args:
        settings: The plugin's.
        store: Keeps them.
        bus: Asks for the workflows' runs.
        performing: Works on them.
        turns: Calls off what goes on.
        telling: Tells how they ended.
    """

    def __init__(
        self,
        settings: OrchestrationSettings,
        store: Store,
        bus: Bus,
        performing: Performing,
        turns: Turns,
        telling: Telling,
    ) -> None:
        self._settings = settings
        self._store = store
        self._bus = bus
        self._performing = performing
        self._turns = turns
        self._telling = telling

    async def run(self) -> None:
        """Look after them, for as long as the plugin runs."""
        after_s = 0.0  # those that a daemon died with are seen to at once
        while True:
            try:
                for due in await self._store.due(after_s, AT_ONCE):
                    await self._look_after(due)
                await self._store.forget_ended(self._settings.ended_kept_s)
                after_s = self._settings.sweep_s
            except AWAY:
                after_s = 0.0
            await asyncio.sleep(self._settings.sweep_s)

    async def _look_after(self, due: Due) -> None:
        if self._performing.is_here(due.tenant, due.id):
            return
        try:
            if due.is_begun and await self._settle(due.tenant, due.id, due.run):
                return
            await self._performing.begin(due.tenant, due.id, due.run, due.context)
        except AWAY:
            raise
        except KsiError as error:
            log.warning(
                "an orchestration can't be begun",
                extra={"orchestration": due.id, "error": error.message},
            )

    async def _settle(self, tenant: str, which: str, run: str) -> bool:
        """Note that an orchestration's work has ended, if it has; say whether there is any."""
        with acting_as(Context("", tenant=tenant)):
            try:
                found: WorkflowDescribed = await self._bus.request(
                    "workflow:get", WorkflowGet(run_id=run), result_type=WorkflowDescribed
                )
            except NotFound:
                return False
            if found.run.status == "cancelled":
                await self._end(tenant, which, None)
            elif found.run.status == "failed":
                outcome: WorkflowOutcome = await self._bus.request(
                    "workflow:result",
                    WorkflowResult(run_id=run, timeout_s=1.0),
                    result_type=WorkflowOutcome,
                )
                await self._end(tenant, which, outcome.error or Failed("its work has failed").body)
            elif found.run.status == "quarantined":
                why = "its workers died" if found.trouble is None else found.trouble.why
                await self._end(tenant, which, Failed(f"it was set aside: {why}").body)
        return True

    @event_observer("workflow:failed")
    async def failed(self, event: Event) -> None:
        """Note that the work on an orchestration has failed."""
        assert isinstance(event.data, WorkflowFailed)
        if event.data.name == WORKFLOW:
            await self._end_run(event.context.tenant, event.data.run_id, event.data.error)

    @event_observer("workflow:quarantined")
    async def set_aside(self, event: Event) -> None:
        """Note that the work on an orchestration was set aside."""
        assert isinstance(event.data, WorkflowQuarantined)
        if event.data.name == WORKFLOW:
            why = Failed(f"it was set aside: {event.data.why}").body
            await self._end_run(event.context.tenant, event.data.run_id, why)

    async def _end_run(self, tenant: str, run: str, error: ErrorBody) -> None:
        found = await until_there(lambda: self._store.of_run(tenant, run))
        if found is not None:
            with acting_as(Context("", tenant=tenant)):
                await until_there(lambda: self._end(tenant, found, error))

    async def _end(self, tenant: str, which: str, error: ErrorBody | None) -> None:
        """Have an orchestration end whose work has ended, and with it the turns that go on."""
        async with self._store.changing(tenant, None, which) as change:
            if change.kept.has_ended:
                return
            if error is None:
                await change.end("stopped", "stopped")
            else:
                await change.end("failed", "failed", error=error)
            moves, now = await change.open_moves(), await change.now()
        await self._turns.call_off(now, moves)
        self._telling.changed(now)

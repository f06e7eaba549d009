"""The workflow of an orchestration: has turns as long as its play has some."""

from typing import Final

from msgspec import Struct

from ksi_agents.events import AgentLimit
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import acting_as
from ksi_daemon.protocol import Context, ErrorBody, Failed
from ksi_orchestration.events import Status
from ksi_orchestration.play import Ended, Moves, Score, Seen, next_moves, result_so_far
from ksi_orchestration.settings import OrchestrationSettings
from ksi_orchestration.store import SPENT, Kept, Open, Store
from ksi_orchestration.telling import Telling
from ksi_orchestration.turns import Turns
from ksi_orchestration.watching import Watching
from ksi_postgres.patience import until_there
from ksi_workflows.api import Workflows, current_run, receive, step, workflow

WORKFLOW: Final = "orchestration"
QUEUE: Final = "orchestrations"
ORDERS: Final = "orders"
LEAST_TURN_S: Final = 1.0


class PerformArgs(Struct, frozen=True, kw_only=True):
    """Which orchestration is performed."""

    id: str


class Advanced(Struct, frozen=True, kw_only=True):
    """How far it has come."""

    is_ended: bool = False
    is_paused: bool = False


class Performing:
    """Works on orchestrations.

    Args:
        settings: The plugin's.
        store: Keeps them.
        bus: Bounds what they take.
        workflows: Make them last.
        turns: Has their turns.
        telling: Tells how they get on.
        watching: Sees events that end a stage.
    """

    def __init__(
        self,
        settings: OrchestrationSettings,
        store: Store,
        bus: Bus,
        workflows: Workflows,
        turns: Turns,
        telling: Telling,
        watching: Watching,
    ) -> None:
        self._settings = settings
        self._store = store
        self._bus = bus
        self._workflows = workflows
        self._turns = turns
        self._telling = telling
        self._watching = watching
        self._here: set[tuple[str, str]] = set()

    def is_here(self, tenant: str, which: str) -> bool:
        """Say whether an orchestration is worked on in this daemon."""
        return (tenant, which) in self._here

    # -- the workflow ---------------------------------------------------------------------------

    @workflow(WORKFLOW, version=1)
    async def perform(self, args: PerformArgs) -> None:
        """Have turns until the play is over; while it is paused, wait for orders."""
        tenant = current_run().tenant
        kept = await until_there(lambda: self._store.find(tenant, None, args.id))
        if kept is None:
            return
        self._here.add((tenant, args.id))
        try:
            with self._watching.during(tenant, args.id, kept.score.pattern):
                await self.bound(tenant, args.id)
                while not (state := await self.advance(tenant, args.id)).is_ended:
                    if state.is_paused:
                        await receive(ORDERS)
        finally:
            self._here.discard((tenant, args.id))

    @step(name="bound", preemptible=True)
    async def bound(self, tenant: str, which: str) -> None:
        """Bound what all turns of it take together."""
        kept = await until_there(lambda: self._store.find(tenant, None, which))
        if kept is None:
            return
        limit = AgentLimit(
            run_id=kept.told.run_id, limits=kept.limits, parent_run_id=kept.context.run
        )
        with acting_as(Context("", tenant=tenant, user=kept.context.user)):
            await until_there(lambda: self._bus.request("agent:limit", limit))

    @step(name="advance", preemptible=True)
    async def advance(self, tenant: str, which: str) -> Advanced:
        """Have the turns that are next, or those that were begun."""
        return await until_there(lambda: self._advance(tenant, which))

    async def _advance(self, tenant: str, which: str) -> Advanced:
        seen = await self._store.look(tenant, None, which)
        if seen is None:
            return Advanced(is_ended=True)
        kept, moves = seen.kept, list(seen.moves)
        if kept.has_ended:
            await self._turns.call_off(kept, moves)
            return Advanced(is_ended=True)
        score = kept.score
        if kept.is_held:
            moves = [each for each in moves if each.is_begun]
            if not moves and kept.is_spent:
                await self._end(kept, "failed", SPENT, result_so_far(score, seen.said))
            if not moves:
                return Advanced(is_ended=kept.is_spent, is_paused=not kept.is_spent)
        if not moves:
            outcome = next_moves(score, seen.said, _as_seen(kept))
            if isinstance(outcome, Ended):
                await self._end_well(kept, outcome)
                return Advanced()
            moves = await self._keep(kept, outcome, score)
        await self._turns.have(kept, score, moves)
        return Advanced()

    async def _keep(self, kept: Kept, next_ones: Moves, score: Score) -> list[Open]:
        """Write down the turns that are next, and where it stands."""
        limits = score.pattern.limits
        async with self._store.changing(kept.tenant, None, kept.id) as change:
            if change.kept.told.status != "running":
                return []
            opened = await change.open_moves()
            if not opened:  # else another daemon was at it
                left_s = max(limits.wall_s - change.kept.elapsed_s, LEAST_TURN_S)
                await change.keep_moves(next_ones, left_s, limits.parallel)
                opened = await change.open_moves()
            now = await change.now()
        if (kept.told.stage, kept.told.round) != (now.told.stage, now.told.round):
            self._telling.changed(now)
        return opened

    async def _end_well(self, kept: Kept, ended: Ended) -> None:
        """Note how a play has ended, unless somebody has paused or stopped it meanwhile."""
        error = None
        if ended.status == "failed":
            error = Failed(ended.message, details={"kind": ended.reason}).body
        await self._end(kept, ended.status, ended.reason, ended.result, error)

    async def _end(
        self,
        kept: Kept,
        status: Status,
        reason: str,
        result: str,
        error: ErrorBody | None = None,
    ) -> None:
        totals = await self._turns.totals(kept)
        async with self._store.changing(kept.tenant, None, kept.id) as change:
            if change.kept.told.status != kept.told.status:
                return
            await change.end(status, reason, result, error or change.kept.told.error, totals)
            await change.finish_moves()
            now = await change.now()
        self._telling.changed(now)

    # -- what surrounds it ----------------------------------------------------------------------

    async def begin(self, tenant: str, which: str, run: str, context: Context) -> None:
        """Have a workflow work on an orchestration; begun twice it is begun once."""
        is_full = len(self._here) >= self._settings.max_at_once
        with acting_as(context):
            await self._workflows.start(
                self.perform,
                PerformArgs(id=which),
                id=run if tenant == "default" else run.removeprefix(f"{tenant}:"),
                queue=QUEUE if is_full else None,
            )
        await self._store.begun(tenant, which)


def _as_seen(kept: Kept) -> Seen:
    return Seen(elapsed_s=kept.elapsed_s, stage_elapsed_s=kept.stage_elapsed_s, events=kept.seen)

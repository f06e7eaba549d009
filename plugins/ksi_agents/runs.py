"""Answers ``agent:limit`` and ``agent:spent``: what a run of a workflow may take, and has taken."""

from typing import Final

from ksi_agents.events import AgentLimit, AgentSpent, RunLimits, Spent
from ksi_agents.ledger import Bounds, Ledger, Taken
from ksi_agents.limits import Bounding, account_of_run, bounds_of_turn
from ksi_daemon.bus import Bus
from ksi_daemon.event_system import current_context, event_handler
from ksi_daemon.principals import TOKEN_PREFIX
from ksi_daemon.protocol import Context, Denied, InvalidData
from ksi_workflows.events import WorkflowDescribed, WorkflowGet, WorkflowRun

TURN: Final = "turn"  # the workflow of the completions


class Budgets:
    """Bounds runs of workflows that have agents work for them.

    Args:
        ledger: Keeps what is taken.
        bounding: Has calls count.
        bus: Asks whose a run is.
    """

    def __init__(self, ledger: Ledger, bounding: Bounding, bus: Bus) -> None:
        self._ledger = ledger
        self._bounding = bounding
        self._bus = bus

    @event_handler("agent:limit")
    async def limit(self, request: AgentLimit) -> Spent:
        """Bound what a workflow's run takes, its own calls and those of all turns within it."""
        context = _context()
        if context.agent is not None and context.origin.startswith(TOKEN_PREFIX):
            raise Denied("an agent does not say itself what it may take")
        run = await self._find(request.run_id)
        if run.name == TURN:
            raise InvalidData(
                f"the run {run.run_id} is a turn, and has the limits of its agent: see limits in "
                "its definition"
            )
        above = request.parent_run_id or run.parent_run_id
        if above == run.run_id:
            raise InvalidData("a run is not part of itself (parent_run_id)")
        await self._bounding.limit(
            context.tenant, run.run_id, above, bounds_of_turn(request.limits)
        )
        return await self._spent(context.tenant, run.run_id)

    @event_handler("agent:spent", scope="agents:read")
    async def spent(self, request: AgentSpent) -> Spent:
        """Tell what a run has taken, with all turns within it."""
        await self._find(request.run_id)
        return await self._spent(_context().tenant, request.run_id)

    async def _find(self, run_id: str) -> WorkflowRun:
        """Return a run of the caller's tenant.

        Raises:
            NotFound: There is none.
        """
        asked = WorkflowGet(run_id=run_id)
        found = await self._bus.request("workflow:get", asked, result_type=WorkflowDescribed)
        run: WorkflowRun = found.run
        return run

    async def _spent(self, tenant: str, run_id: str) -> Spent:
        taken = await self._ledger.taken(tenant, account_of_run(run_id))
        return spent_of(taken, limits_of(taken.bounds))


def limits_of(bounds: Bounds) -> RunLimits:
    """Return the limits of an account that may take so much."""
    return RunLimits(
        requests=bounds.requests,
        tool_calls=bounds.tool_calls,
        tokens=bounds.tokens,
        cost_usd=bounds.usd,
    )


def spent_of(taken: Taken, limits: object) -> Spent:
    """Return what was taken, and of the limits those that are set."""
    names: tuple[str, ...] = getattr(limits, "__struct_fields__", ())
    return Spent(
        requests=taken.requests,
        tool_calls=taken.tool_calls,
        tokens=taken.tokens,
        cost_usd=taken.usd,
        reserved_usd=taken.reserved_usd,
        limits={name: value for name in names if (value := getattr(limits, name)) is not None},
    )


def _context() -> Context:
    context = current_context()
    assert context is not None  # events come with one
    return context

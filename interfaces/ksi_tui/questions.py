"""What is asked of the daemon again and again, when, and what of the answer is kept."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from msgspec import Struct

from ksi_agents import events as agents
from ksi_models import events as models
from ksi_orchestration import events as orchestrations
from ksi_system import events as system
from ksi_tools import events as tools
from ksi_workflows import events as workflows

Answer = TypeVar("Answer")
Ask = Callable[[str, Any, Any], Awaitable[Any]]  # an event, its payload, the answer's type

MAX_AGENTS: Final = 5_000
PAGE: Final = 1_000
NEWEST_RUNS: Final = 300


class Question(Struct, frozen=True):
    """A question whose answer is an attribute of `Known`.

    Attributes:
        known: The attribute.
        event: What is asked; where nobody answers it, it isn't.
        put: Asks it, and returns what is kept.
        wakes: After events of these namespaces the answer may be another.
        every_s: How often it is asked without any; events of other daemons don't come here.
    """

    known: str
    event: str
    put: Callable[[Ask], Awaitable[Any]]
    wakes: frozenset[str] = frozenset()
    every_s: float = 10.0


async def _health(ask: Ask) -> Any:
    return await ask("system:health", system.SystemHealth(), system.SystemHealthReport)


async def _stats(ask: Ask) -> Any:
    only_this_event = system.SystemStats(pattern="system:stats")
    return await ask("system:stats", only_this_event, system.SystemStatsReport)


async def _agents(ask: Ask) -> Any:
    found: list[agents.Agent] = []
    cursor: str | None = None
    while len(found) < MAX_AGENTS:
        request = agents.AgentList(limit=PAGE, cursor=cursor)
        listed = await ask("agent:list", request, agents.AgentListed)
        found += listed.agents
        cursor = listed.cursor
        if cursor is None:
            break
    return tuple(found)


async def _runs(ask: Ask) -> Any:
    request = workflows.WorkflowList(limit=NEWEST_RUNS)
    return (await ask("workflow:list", request, workflows.WorkflowListed)).runs


async def _orchestrations(ask: Ask) -> Any:
    request = orchestrations.OrchestrationList()
    listed = await ask("orchestration:list", request, orchestrations.OrchestrationsListed)
    return listed.orchestrations


async def _queues(ask: Ask) -> Any:
    request = workflows.WorkflowQueues()
    return (await ask("workflow:queues", request, workflows.WorkflowQueuesListed)).queues


async def _slots(ask: Ask) -> Any:
    return (await ask("model:slots", models.ModelSlots(), models.SlotsListed)).providers


async def _doubts(ask: Ask) -> Any:
    in_doubt = await ask("tool:in_doubt", tools.ToolInDoubt(), tools.ToolCallsListed)
    waiting = await ask("tool:calls", tools.ToolCalls(status="waiting"), tools.ToolCallsListed)
    return (*in_doubt.calls, *waiting.calls)


QUESTIONS: Final = (
    Question("health", "system:health", _health, frozenset({"system", "postgres"}), 5.0),
    Question("stats", "system:stats", _stats, every_s=2.0),
    Question("agents", "agent:list", _agents, frozenset({"agent", "completion"})),
    Question("runs", "workflow:list", _runs, frozenset({"workflow", "completion", "agent"})),
    Question("orchestrations", "orchestration:list", _orchestrations, frozenset({"orchestration"})),
    Question("queues", "workflow:queues", _queues, frozenset({"workflow"})),
    Question("providers", "model:slots", _slots, frozenset({"model"}), 2.0),
    Question("doubts", "tool:in_doubt", _doubts, frozenset({"tool"}), 15.0),
)

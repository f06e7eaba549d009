"""Has agents ask one another: the tools ``ask_agent`` and ``list_agents``."""

from collections import OrderedDict
from typing import Annotated, Any, Final

from msgspec import Meta

from ksi_agents.agents import Agents
from ksi_agents.definitions import Definitions
from ksi_agents.events import NAME_PATTERN, AgentAnswered, AgentAsk
from ksi_agents.settings import AgentsSettings
from ksi_completion.events import (
    CompletionAccepted,
    CompletionAsync,
    CompletionResult,
    CompletionWait,
)
from ksi_daemon.bus import Bus
from ksi_daemon.protocol import Conflict, Failed, NotFound, TimedOut
from ksi_daemon.protocol.names import did_you_mean, nearest
from ksi_tools.api import ToolContext, tool

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="The name of an agent.")]
Request = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200_000,
        description="The whole task, with all it takes: the agent knows nothing of this talk.",
    ),
]
LONGEST_S: Final = 86_400.0
MAX_RUNS: Final = 100_000
MAX_DEPTH: Final = 100


class Lineage:
    """Knows of the turns at work here which agent's each is, and which turn asked for it.

    A mailbox sees who waits for whom among the agents that were spawned, whatever each is at and
    wherever (``is_awaited_by`` in ``sql/agents``). It doesn't see those in between that nobody
    spawned: their turns have no mailbox, and are seen here.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[str, tuple[str, str | None]] = OrderedDict()

    def note(self, run: str, agent: str, parent_run: str | None) -> None:
        """Note whose a turn is."""
        self._runs[run] = (agent, parent_run)
        if len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)

    def forget(self, run: str) -> None:
        """Forget a turn that has ended."""
        self._runs.pop(run, None)

    def above(self, run: str | None) -> list[str]:
        """Return the agents that wait for a turn, one for another."""
        found: list[str] = []
        while run is not None and run in self._runs and len(found) < MAX_DEPTH:
            agent, run = self._runs[run]
            found.append(agent)
        return found


class Delegation:
    """The tools by which agents have others work for them.

    A question that an agent asks bears its tool call's id: asked again after a crash it is the same
    question, and its answer the same answer.

    Args:
        bus: Asks.
        definitions: What agents are.
        agents: Those that have been spawned.
        lineage: Which agents wait already.
        settings: How long an answer may take.
    """

    def __init__(
        self,
        bus: Bus,
        definitions: Definitions,
        agents: Agents,
        lineage: Lineage,
        settings: AgentsSettings,
    ) -> None:
        self._bus = bus
        self._definitions = definitions
        self._agents = agents
        self._lineage = lineage
        self._settings = settings

    @tool(effects="idempotent", timeout_s=LONGEST_S)
    async def ask_agent(self, agent: Name, prompt: Request, context: ToolContext) -> Any:
        """Have another agent do something, and get its answer."""
        if agent == context.agent:
            raise Conflict(f"you are {agent} yourself: do it, or ask another agent")
        if await self._agents.who(context.tenant, agent) is not None:
            if agent in self._lineage.above(context.run):
                raise Conflict(
                    f"{agent} waits for this answer itself, so that it can't be asked: that is a "
                    "circle; answer with what you know"
                )
            return await self._ask_spawned(agent, prompt, context)
        if await self._definitions.find(context.tenant, agent) is None:
            raise await self._unknown(agent, context.tenant)
        return await self._ask_defined(agent, prompt, context)

    async def _ask_spawned(self, agent: str, prompt: str, context: ToolContext) -> Any:
        answered = await self._bus.request(
            "agent:ask",
            AgentAsk(
                agent=agent,
                prompt=prompt,
                timeout_s=min(self._settings.ask_timeout_s, 3600.0),
                message_id=context.call_id,
            ),
            result_type=AgentAnswered,
        )
        if answered.status == "succeeded":
            return answered.text if answered.output is None else answered.output
        if answered.error is not None:
            raise Failed(f"the agent {agent} failed: {answered.error.message}")
        raise TimedOut(f"the agent {agent} has not answered yet; its message is {answered.status}")

    async def _ask_defined(self, agent: str, prompt: str, context: ToolContext) -> Any:
        """Have an agent that nobody spawned do it, in a conversation of its own."""
        accepted = await self._bus.request(
            "completion:async",
            CompletionAsync(
                prompt=prompt,
                agent=agent,
                conversation_id=conversation_of(context.call_id),
                request_id=context.call_id,
            ),
            result_type=CompletionAccepted,
        )
        result = await self._bus.request(
            "completion:wait",
            CompletionWait(
                run_id=accepted.run_id, timeout_s=min(self._settings.ask_timeout_s, 3600.0)
            ),
            result_type=CompletionResult,
        )
        if result.status == "succeeded":
            return result.text if result.output is None else result.output
        if result.error is not None:
            raise Failed(f"the agent {agent} failed: {result.error.message}")
        raise TimedOut(
            f"the agent {agent} has not answered in {self._settings.ask_timeout_s:g} s "
            f"(agents.ask_timeout_s); its turn {result.run_id} is {result.status}"
        )

    async def _unknown(self, agent: str, tenant: str) -> NotFound:
        known = [each.name for each in await self._definitions.all(tenant)]
        return NotFound(
            f"there is no agent {agent!r}{did_you_mean(agent, known)}",
            details={"nearest": nearest(agent, known)},
        )

    @tool(effects="read_only", timeout_s=30.0)
    async def list_agents(self, context: ToolContext) -> list[dict[str, str]]:
        """List the agents that can be asked, and what each is good for."""
        return [
            {"name": each.name, "description": each.description}
            for each in await self._definitions.all(context.tenant)
            if each.name != context.agent
        ]


def conversation_of(call_id: str) -> str:
    """Return the conversation in which an agent answers one call of another."""
    return f"asked:{call_id}"[:200]

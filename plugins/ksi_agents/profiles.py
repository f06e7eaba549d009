"""Says who an agent is when it has a turn: its prompt, its models, its limits, what it may call."""

from typing import Final

from ksi_agents.agents import Agents, Known
from ksi_agents.definition import Definition, Limits
from ksi_agents.definitions import Definitions
from ksi_agents.delegation import Lineage
from ksi_agents.limits import Bounding, account_of_agent
from ksi_agents.permits import Permits
from ksi_agents.routing import Routing
from ksi_completion.events import AgentProfile, CompletionAgent, CompletionResult, TurnLimits
from ksi_daemon.event_system import current_context, event_contributor, event_observer
from ksi_daemon.protocol import Event

OTHERS: Final = "{{ agents }}"


class Profiles:
    """Answers ``completion:agent``.

    Args:
        definitions: What agents are.
        agents: Those that have been spawned.
        permits: Says to the gate what each may call.
        bounding: Holds each to its limits.
        routing: Chooses for agents that choose another one.
        lineage: Is told whose each turn is.
    """

    def __init__(
        self,
        definitions: Definitions,
        agents: Agents,
        permits: Permits,
        bounding: Bounding,
        routing: Routing,
        lineage: Lineage,
    ) -> None:
        self._definitions = definitions
        self._agents = agents
        self._permits = permits
        self._bounding = bounding
        self._routing = routing
        self._lineage = lineage

    @event_contributor("completion:agent")
    async def who(self, asked: CompletionAgent) -> AgentProfile | None:
        """Say who that is, and see to it that it can do no more than it may."""
        context = current_context()
        tenant = context.tenant if context is not None else "default"
        name = asked.agent
        if not name:
            await self._within(tenant, asked)
            return None
        if asked.version is None and asked.prompt:
            name = await self._routing.chosen(tenant, name, asked.prompt)
        found = await self._find(tenant, name, asked.version)
        if found is None:
            return None
        definition, version, known = found
        await self._permits.say(tenant, name, definition, known.parent if known else None)
        if asked.run_id is not None:
            self._lineage.note(asked.run_id, name, asked.parent_run_id)
            account = account_of_agent(name, known.id if known is not None else "")
            await self._bounding.open(
                tenant, account, definition.limits, asked.run_id, asked.parent_run_id
            )
        return AgentProfile(
            agent=name,
            version=version,
            system=await self._system(tenant, name, definition),
            models=definition.models,
            settings=definition.settings,
            output_schema=definition.output,
            limits=limits_of(definition),
            is_told=definition.memory.read,
            is_remembered=definition.memory.write,
        )

    async def _within(self, tenant: str, asked: CompletionAgent) -> None:
        """Have a turn that no declared agent has count in the run that it is part of."""
        if asked.run_id is not None:
            nobody = account_of_agent("")
            await self._bounding.open(tenant, nobody, Limits(), asked.run_id, asked.parent_run_id)

    @event_observer("completion:result")
    async def ended(self, event: Event) -> None:
        """Forget what was counted of a turn that has ended."""
        if isinstance(event.data, CompletionResult):
            self._bounding.forget(event.data.run_id)
            self._lineage.forget(event.data.run_id)

    async def _find(
        self, tenant: str, name: str, version: int | None
    ) -> tuple[Definition, int, Known | None] | None:
        known = await self._agents.who(tenant, name)
        if known is not None and version in (None, known.version):
            return await self._agents.definition_of(known, tenant), known.version, known
        named = name if known is None else known.definition
        found = await self._definitions.find(tenant, named, version)
        return None if found is None else (found.definition, found.version, known)

    async def _system(self, tenant: str, name: str, definition: Definition) -> str | None:
        if OTHERS not in definition.prompt:
            return definition.prompt or None
        return definition.prompt.replace(OTHERS, await self._routing.others(tenant, name))


def limits_of(definition: Definition) -> TurnLimits:
    """Return what one turn of an agent may take."""
    limits = definition.limits
    return TurnLimits(
        requests=limits.requests,
        tool_calls=limits.tool_calls,
        tokens=limits.tokens,
        cost_usd=limits.cost_usd,
        wall_s=limits.wall_s,
        depth=limits.depth,
    )

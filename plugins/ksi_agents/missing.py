"""Says of an agent that is not there what to do: have it, or ask the one that was meant."""

from typing import Final

from ksi_agents.agents import Agents
from ksi_agents.definitions import Definitions
from ksi_daemon.protocol import Context, NotFound
from ksi_daemon.protocol.names import did_you_mean, nearest

MAX_NAMED: Final = 1000


class Missing:
    """Makes the errors for agents that there are none of.

    Args:
        agents: Those that there are.
        definitions: What there could be.
    """

    def __init__(self, agents: Agents, definitions: Definitions) -> None:
        self._agents = agents
        self._definitions = definitions

    async def error(self, context: Context, name: str) -> NotFound:
        """Return the error for whoever named an agent that is not there, or not his."""
        if await self._definitions.find(context.tenant, name) is not None:
            return NotFound(
                f"there is no agent {name}, only a definition of that name: have an agent run by "
                f"it first, with agent:spawn (ksi agent spawn {name} --name {name})",
                details={"kind": "not_spawned", "definition": name},
            )
        agents = await self._agents.list(context, limit=MAX_NAMED)
        definitions = await self._definitions.all(context.tenant)
        known = [*(each.name for each in agents), *(each.name for each in definitions)]
        return NotFound(
            f"there is no agent {name}{did_you_mean(name, known) or ': see agent:list'} "
            "(ksi agent list --all)",
            details={"kind": "agent", "nearest": nearest(name, known)},
        )

"""The commands of the agents: those of definitions, and those of agents that run, as one."""

from ksi_agents.commands import definitions
from ksi_agents.commands.agents import agent

__all__ = ["agent", "apply"]

agent.add_typer(definitions.app)
apply = definitions.apply

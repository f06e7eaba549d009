"""The commands of the agents: those of definitions, and those of agents that run."""

"""The commands of the agents."""

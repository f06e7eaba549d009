"""The commands of the orchestrations."""

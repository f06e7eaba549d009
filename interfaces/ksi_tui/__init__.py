"""Shows a person what the daemon is doing, in a terminal: ``ksi monitor``."""

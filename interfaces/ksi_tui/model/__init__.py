"""What the monitor knows, without a terminal, a daemon or a clock of its own."""

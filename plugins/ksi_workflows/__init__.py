"""The durable engine: runs and their steps, which outlive the daemon that began them."""
